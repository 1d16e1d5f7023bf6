"""What one tenant can do to another on a real server: nothing. Mallory tries every subject and every API."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import AlreadyAssigned, BusError, NotAllowed
from myna.actors.bus.jetstream import API
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import Alive, SessionId, Tenant, VarId, WorkerId
from myna.actors.subjects import FromWorker, Question, ToWorker
from tests.actors.tenants.realm import Realm, realm
from tests.network import Deliveries

__all__ = ["realm"]
pytestmark = pytest.mark.nats

ALICE, MALLORY = Tenant("alice"), Tenant("mallory")
S, V, W = SessionId("s-1"), VarId("v-1"), WorkerId("w-1")
ENGINE = WorkerId("engine-1")
SECRET = b"alice's secret"

OF_ALICE = (
    subjects.log(ALICE, S),
    subjects.alive(ALICE, S),
    subjects.write(ALICE, S, V),
    subjects.read(ALICE, S, V),
    subjects.write_chunk(ALICE, S, V, 0),
    subjects.read_chunk(ALICE, S, V, 0),
    *(subjects.ask(ALICE, question) for question in Question),
    *(subjects.from_agent(ALICE, W, leaf) for leaf in FromWorker),
    *(subjects.to_agent(ALICE, W, leaf) for leaf in ToWorker),
    subjects.policy(ALICE),
    subjects.usage(ALICE, S, 0),
    f"{subjects.inbox(ALICE)}.x",
)
"""One of each kind of subject that is Alice's."""

OF_THE_SYSTEM = (
    subjects.HELLO,
    *(subjects.question(question) for question in Question),
    *(subjects.from_worker(ENGINE, leaf) for leaf in FromWorker),
    *(subjects.to_worker(ENGINE, leaf) for leaf in ToWorker),
    *(f"{subjects.inbox(role)}.x" for role in ("scheduler", "engine", "gateway", "operator", "admin")),
    f"$KV.{subjects.LEASES}.scheduler",
    "_INBOX.x.y",
    "_R_.x",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$SYS.REQ.USER.INFO",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.REQ.CLAIMS.LIST",
    "$SYS.REQ.USER.AUTH",
    "$SYS.ACCOUNT.x.CONNECT",
)

_STREAM_VERBS = (
    *("CREATE", "UPDATE", "INFO", "DELETE", "PURGE", "SNAPSHOT", "RESTORE", "MSG.GET", "MSG.DELETE"),
    *("LEADER.STEPDOWN", "PEER.REMOVE"),
)
_STREAMS = (*(stream.name for stream in subjects.STREAMS), f"KV_{subjects.LEASES}")
APIS = (
    *("INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.TEMPLATE.NAMES", "META.LEADER.STEPDOWN", "ACCOUNT.PURGE.x"),
    *(f"STREAM.{verb}.{stream}" for verb in _STREAM_VERBS for stream in _STREAMS),
    *(f"CONSUMER.{verb}.{stream}" for verb in ("CREATE", "NAMES", "LIST") for stream in _STREAMS),
    *(
        f"CONSUMER.{verb}.{s}.c"
        for verb in ("CREATE", "DURABLE.CREATE", "INFO", "DELETE", "MSG.NEXT")
        for s in _STREAMS
    ),
    *(f"CONSUMER.CREATE.{stream}.c.myna.{MALLORY}.>" for stream in _STREAMS),
    *(f"DIRECT.GET.{stream}" for stream in _STREAMS),
    *(f"DIRECT.GET.{stream}.{subject}" for stream in _STREAMS for subject in OF_ALICE[:6]),
    *(f"DIRECT.GET.{stream}.myna.*.*.set.*" for stream in _STREAMS),
    f"DIRECT.GET.KV_{subjects.LEASES}.$KV.{subjects.LEASES}.scheduler",
)
ACKS = ("$JS.ACK.MYNA_LOG.c.1.1.1.1.0", "$JS.FC.MYNA_LOG.c.x", "$JSC.R.x", "$NRG.V.x", "$JSC.CI.x")

PATTERNS = (
    *(">", "*", "*.>", "*.*.*.*.*", "myna.>", "myna.*.>", "myna.*.*.var.*", "myna.*.*.set.*", "myna.*.*.log"),
    *(f"myna.{ALICE}.>", f"myna.{ALICE}.*.var.*", f"myna.{MALLORY}.>", f"myna.*.{S}.tok.*.*", "myna-agent.>"),
    *("myna-worker.>", "myna-workers.>", "myna-agents.>", "myna-ask.>", "myna-question.>", "myna-tenant.>"),
    *("_INBOX.>", "_INBOX_*.>", f"{subjects.inbox(ALICE)}.>", "_R_.>", "$JS.>", "$JS.EVENT.>", "$JS.API.>"),
    *("$KV.>", "$SYS.>", "$SYS.ACCOUNT.>", "$SYS.SERVER.>", "$G.>", "$O.>"),
)


@dataclass
class World:
    """Alice with a session of hers, Mallory, and one who sees what happens in the streams' account."""

    realm: Realm
    alice: NatsBus
    mallory: NatsBus
    witness: NatsBus
    seen: Deliveries
    counts: dict[str, int]

    async def check_untouched(self) -> None:
        """Nothing came through, and the streams hold what they held."""
        await self.witness.publish("settled", b"")
        await self.seen.until(len(self.seen.items) + 1)
        assert [d.subject for d in self.seen.items if not _expected(d.subject)] == []
        assert await counts(self.witness) == self.counts


def _expected(subject: str) -> bool:
    """What Mallory does to herself, the one-time subjects on which the server takes her answers, and the witness's own doing."""
    return f".{MALLORY}." in subject or subject.startswith(
        ("_R_.", "settled", f"{API}.STREAM.INFO.", "_INBOX_witness.")
    )


async def counts(bus: NatsBus) -> dict[str, int]:
    """How many messages each stream holds of others than Mallory."""
    found = {}
    for name in _STREAMS:
        info = await bus._jetstream.api(f"STREAM.INFO.{name}", {"subjects_filter": ">"}, timeout=5)
        per_subject = info["state"].get("subjects", {})
        found[name] = sum(n for subject, n in per_subject.items() if f".{MALLORY}." not in subject)
    return found


@pytest.fixture
async def world(realm: Realm) -> World:
    alice, mallory = await realm.tenant(ALICE), await realm.tenant(MALLORY)
    await alice.append(subjects.log(ALICE, S), SECRET, message_id="alice-1")
    await alice.append(subjects.write(ALICE, S, V), SECRET)
    await alice.append(subjects.write_chunk(ALICE, S, V, 0), SECRET)
    await mallory.append(subjects.write(MALLORY, S, V), b'{"purge": "everything"}', headers={"Myna-Status": "value"})
    witness, seen = await realm.witness(), Deliveries()
    before = await counts(witness)
    await witness.subscribe(">", seen)
    return World(realm, alice, mallory, witness, seen, before)


async def refused(bus: NatsBus, subject: str) -> bool:
    """Whether the server refuses to take a message there: sent raw, for our own client would refuse some of them itself."""
    denials: list[str] = []
    bus._link.on_denied = lambda error: denials.append(str(error))
    bus._link._queue(f"PUB {subject} {subjects.inbox(MALLORY)}.raw 2\r\n{{}}\r\n".encode())
    await bus._link.round_trip(5.0)
    return any(f'publish to "{subject.lower()}"' in denial for denial in denials)


async def test_a_tenant_may_publish_on_nothing_that_is_anothers_or_the_systems(world: World) -> None:
    tried = [*OF_ALICE, *OF_THE_SYSTEM, *ACKS]
    assert [subject for subject in tried if not await refused(world.mallory, subject)] == []
    await world.check_untouched()


async def test_a_tenant_may_not_publish_what_only_streams_publish_not_even_its_own(world: World) -> None:
    for subject in (subjects.read(MALLORY, S, V), subjects.read_chunk(MALLORY, S, V, 0), subjects.policy(MALLORY)):
        assert await refused(world.mallory, subject), subject
        assert await refused(world.alice, subject), subject


async def test_a_tenant_may_use_no_jetstream_api_but_the_direct_get_of_its_own(world: World) -> None:
    assert [name for name in APIS if not await refused(world.mallory, f"{API}.{name}")] == []
    own = await world.mallory.get(subjects.VALUES, subjects.write(MALLORY, S, V))
    assert own is not None
    await world.check_untouched()


async def test_a_tenant_may_subscribe_to_nothing_wider_than_its_own(world: World) -> None:
    allowed = []
    for pattern in (*PATTERNS, *OF_ALICE, *OF_THE_SYSTEM[1:]):
        try:
            await world.mallory.subscribe(pattern, Deliveries())
        except NotAllowed:
            continue
        allowed.append(pattern)
    assert allowed == []


async def test_a_tenant_hears_nothing_of_another_on_all_that_it_may_hear(world: World) -> None:
    heard = Deliveries()
    for pattern in (
        *(f"myna.{MALLORY}.*.var.*", f"myna.{MALLORY}.*.tok.*.*", f"myna-agent.{MALLORY}.*.*"),
        f"{subjects.inbox(MALLORY)}.>",
    ):
        await world.mallory.subscribe(pattern, heard)
    await world.alice.append(subjects.write(ALICE, S, VarId("v-2")), SECRET)
    await world.alice.append(subjects.write_chunk(ALICE, S, V, 1), SECRET)
    await world.witness.publish(subjects.to_agent(ALICE, W, ToWorker.RUN), SECRET)
    assert await world.alice.get(subjects.VALUES, subjects.write(ALICE, S, V)) is not None  # her inbox is in use
    await world.mallory.append(subjects.write(MALLORY, S, VarId("last")), b"mine")
    await heard.until(1)
    assert [d.data for d in heard.items if SECRET in d.data] == []


FORGED = (
    subjects.write(ALICE, S, VarId("forged")),
    subjects.read(ALICE, S, VarId("forged")),
    subjects.log(ALICE, S),
    subjects.to_worker(ENGINE, ToWorker.RUN),
    subjects.from_worker(ENGINE, FromWorker.LEAVE),
    subjects.to_agent(ALICE, W, ToWorker.STOP),
    subjects.HELLO,
    subjects.policy(MALLORY),
    f"{subjects.inbox(ALICE)}.x",
    f"{API}.STREAM.DELETE.MYNA_LOG",
    f"{API}.STREAM.PURGE.MYNA_VALUES",
    f"{API}.CONSUMER.CREATE.MYNA_VALUES",
    f"$KV.{subjects.LEASES}.scheduler",
)


async def test_what_a_tenant_asks_for_is_answered_nowhere_but_to_itself(world: World) -> None:
    """The server writes an answer wherever the one who asks wants it, unchecked: so answers must not leave the account."""
    link = world.mallory._link
    for n, reply in enumerate(FORGED):
        for stream in subjects.SESSION_STREAMS:  # the answer is what Mallory stored there
            await link.send(f"{API}.DIRECT.GET.{stream.name}.{subjects.write(MALLORY, S, V)}", b"", reply=reply)
        await link.send(subjects.write(MALLORY, S, VarId(f"ack-{n}")), b"{}", reply=reply)  # the acknowledgement
        await link.send(subjects.write(MALLORY, S, VarId(f"ack-{n}")), b"{}", reply=reply)  # the refusal
        await link.send(subjects.alive(MALLORY, S), codec.encode(Alive()), reply=reply)  # nobody's answer
    await link.round_trip(5.0)
    await world.check_untouched()
    assert (await world.witness.get(subjects.LOG, subjects.log(ALICE, S))).data == SECRET  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Rollup": "all"},
        {"Nats-Rollup": "sub"},
        {"Nats-TTL": "1s"},
        {"Nats-Schedule": "@at 2009-11-10T23:00:00Z", "Nats-Schedule-Target": subjects.write(ALICE, S, VarId("x"))},
        {"Nats-Incr": "+1"},
        {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
        {"Nats-Trace-Dest": subjects.write(ALICE, S, VarId("x"))},
        {"Nats-Trace-Dest": f"{API}.STREAM.DELETE.MYNA_LOG"},
        {"Nats-Subject": subjects.write(ALICE, S, VarId("x")), "Nats-Stream": "MYNA_LOG"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_no_header_reaches_beyond_a_tenants_own_subjects(world: World, headers: dict[str, str]) -> None:
    for subject in (subjects.write(MALLORY, S, VarId("h")), subjects.log(MALLORY, S)):
        try:
            await world.mallory.append(subject, b"x", headers=headers, timeout=1.0)
        except (BusError, ValueError):
            continue
    await world.check_untouched()


async def test_a_guess_at_anothers_variable_tells_nothing(world: World) -> None:
    """The refusal is the same whether the variable is there or not."""
    told = []
    for variable in (V, VarId("not-there")):
        for stream in subjects.SESSION_STREAMS:
            with pytest.raises(NotAllowed) as refusal:
                await world.mallory.get(stream, subjects.write(ALICE, S, variable))
            told.append(str(refusal.value).replace(variable, "?").replace(stream.name.lower(), "?"))
    assert len(set(told)) == 1


async def test_single_assignment_holds_across_the_border_of_accounts(world: World) -> None:
    audience = Deliveries()
    await world.alice.subscribe(subjects.read_all(ALICE, S), audience)
    await world.alice.append(subjects.write(ALICE, S, VarId("once")), b"first", message_id="m-1")
    again = await world.alice.append(subjects.write(ALICE, S, VarId("once")), b"first", message_id="m-1")
    assert again.duplicate
    with pytest.raises(AlreadyAssigned):
        await world.alice.append(subjects.write(ALICE, S, VarId("once")), b"second")
    await world.alice.append(subjects.write(ALICE, S, VarId("twice")), b"last")
    await audience.until(2)
    assert [d.data for d in audience.items] == [b"first", b"last"]


async def test_a_connection_without_credentials_is_refused(realm: Realm) -> None:
    for options in ({}, {"user": "default", "password": "default"}):
        with pytest.raises(NotAllowed):
            await NatsBus.connect(realm.server.url, timeout=5, **options)
