"""Writes of which it is in doubt whether they were stored, since the acknowledgement was lost."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from myna.actors import subjects
from myna.actors.bus import AlreadyAssigned, Stored, Unavailable
from myna.actors.bus.jetstream import API
from myna.actors.bus.link import Answer
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.tenants.rights import Role
from tests.actors.stage import until
from tests.actors.tenants.realm import Realm, realm
from tests.network import Collected, NatsNetwork

__all__ = ["realm"]
pytestmark = pytest.mark.nats

T, S = Tenant("acme"), SessionId("s1")
SUBJECT = subjects.write(T, S, VarId("v"))
FORGETFUL = dataclasses.replace(subjects.VALUES, duplicate_window=0.1)
LEADER = f"{API}.STREAM.MSG.GET.{subjects.VALUES.name}"
REPLICA = f"{API}.DIRECT.GET.{subjects.VALUES.name}.{SUBJECT}"
NOT_FOUND = Answer(REPLICA, b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")


class Losses:
    """What a bus asks. Of some subjects the next answers are lost, or others come instead."""

    def __init__(self, bus: NatsBus) -> None:
        self.asked: list[str] = []
        self._ask = bus._link.ask
        self._lost: dict[str, tuple[int, Answer | None]] = {}
        bus._link.ask = self.ask  # type: ignore[method-assign]

    def lose(self, subject: str, count: int = 1, instead: Answer | None = None) -> None:
        """The next `count` answers from `subject`."""
        self._lost[subject] = (count, instead)

    async def ask(self, subject: str, data: bytes, *, head: bytes = b"", timeout: float) -> Answer:
        """In place of the link's."""
        self.asked.append(subject)
        answer = await self._ask(subject, data, head=head, timeout=timeout)
        count, instead = self._lost.get(subject, (0, None))
        if not count:
            return answer
        self._lost[subject] = (count - 1, instead)
        if instead is not None:
            return instead
        if subject == SUBJECT:
            await self._forgotten(data, head)
        raise TimeoutError

    async def _forgotten(self, data: bytes, head: bytes) -> None:
        """Await that the stream has forgotten the message id, as after a long election."""

        async def refused() -> bool:
            return b"duplicate" not in (await self._ask(SUBJECT, data, head=head, timeout=5.0)).data

        await until(refused, "the stream remembers the message id")


async def forgetful(nats: NatsNetwork) -> tuple[NatsBus, Losses]:
    """A bus whose first acknowledgement will be lost."""
    bus = await nats.bus()
    await bus.ensure([FORGETFUL])
    losses = Losses(bus)
    losses.lose(SUBJECT)
    return bus, losses


async def test_what_was_stored_unseen_is_no_value_of_somebody_elses(nats: NatsNetwork) -> None:
    bus, losses = await forgetful(nats)
    got = Collected[Stored]()
    await bus.follow(FORGETFUL, got)
    receipt = await bus.append(SUBJECT, b"ours", message_id="m")
    await got.until(1)
    assert receipt.duplicate
    assert (receipt.stream, receipt.sequence) == (FORGETFUL.name, got.items[0].sequence)
    assert got.items[0].data == b"ours"
    assert losses.asked.count(SUBJECT) == 2


async def test_a_value_of_somebody_elses_is_told_after_a_doubtful_try_too(nats: NatsNetwork) -> None:
    bus, _ = await forgetful(nats)
    await (await nats.bus()).append(SUBJECT, b"theirs", message_id="n")
    with pytest.raises(AlreadyAssigned):
        await bus.append(SUBJECT, b"ours", message_id="m")
    stored = await bus.get(FORGETFUL, SUBJECT)
    assert stored is not None
    assert stored.data == b"theirs"


async def test_a_value_that_has_no_message_id_is_somebody_elses(nats: NatsNetwork) -> None:
    bus, _ = await forgetful(nats)
    await (await nats.bus()).append(SUBJECT, b"theirs")
    with pytest.raises(AlreadyAssigned):
        await bus.append(SUBJECT, b"ours", message_id="m")


async def test_without_a_doubtful_try_nothing_is_asked(nats: NatsNetwork) -> None:
    bus, losses = await forgetful(nats)
    await (await nats.bus()).append(SUBJECT, b"theirs", message_id="n")
    losses.lose(SUBJECT, 0)
    with pytest.raises(AlreadyAssigned):
        await bus.append(SUBJECT, b"ours", message_id="m")
    assert LEADER not in losses.asked


async def test_whose_it_is_is_asked_until_it_is_known(nats: NatsNetwork) -> None:
    bus, losses = await forgetful(nats)
    losses.lose(LEADER, 3)
    assert (await bus.append(SUBJECT, b"ours", message_id="m")).duplicate
    assert losses.asked.count(LEADER) == 4


async def test_nobody_is_told_that_it_is_somebody_elses_while_that_is_not_known(nats: NatsNetwork) -> None:
    bus, losses = await forgetful(nats)
    losses.lose(LEADER, 1000)
    began = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match=SUBJECT):
        await bus.append(SUBJECT, b"ours", message_id="m", timeout=2)
    assert asyncio.get_running_loop().time() - began < 3
    assert LEADER in losses.asked


async def test_a_tenant_who_may_not_ask_the_leader_asks_replicas_until_one_knows(realm: Realm) -> None:
    await (await realm.role(Role.SCHEDULER)).ensure([FORGETFUL])
    errors = Collected[Stored]()
    tenant = await realm.tenant(T, errors.error)
    losses = Losses(tenant)
    losses.lose(SUBJECT)
    losses.lose(REPLICA, 2, instead=NOT_FOUND)
    assert (await tenant.append(SUBJECT, b"ours", message_id="m")).duplicate
    assert losses.asked.count(LEADER) == 1, "once forbidden, it is not asked again"
    assert losses.asked.count(REPLICA) == 3
    assert not errors.errors
    losses.lose(SUBJECT)
    with pytest.raises(AlreadyAssigned):
        await tenant.append(SUBJECT, b"another", message_id="n")


async def test_who_may_not_ask_the_leader_of_one_stream_asks_those_of_others(realm: Realm) -> None:
    scheduler = await realm.role(Role.SCHEDULER)
    losses = Losses(scheduler)
    await scheduler.get(subjects.USAGE, subjects.usage(T, S, 0), fresh=True)  # nobody gave it a right to that
    await scheduler.get(subjects.VALUES, SUBJECT, fresh=True)
    assert losses.asked[-1] == LEADER


async def test_a_lease_whose_renewal_was_stored_unseen_is_asked_for_until_a_replica_shows_it(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    lease, replica = (f"{where}$KV.{subjects.LEASES}.it" for where in ("", f"{API}.DIRECT.GET.KV_{subjects.LEASES}."))
    acquired = await bus.acquire("it", b"me", ttl=60.0)
    before = await bus._link.ask(replica, b"", timeout=5.0)
    losses = Losses(bus)
    losses.lose(lease)
    losses.lose(replica, 2, instead=before)
    renewed = await bus.renew("it", b"me", acquired)
    assert renewed > acquired
    assert losses.asked.count(replica) == 3
    assert await bus.renew("it", b"me", renewed) > renewed
