"""The whole cast on a real server, each with its own credentials: what they may do is enough, and tenants meet nowhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import myna
from myna.actors import codec, subjects
from myna.actors.bus import Bus
from myna.actors.messages import (
    ErrorCode,
    SessionUsage,
    Status,
    StatusRequest,
    Tenant,
    TenantPolicy,
    Usage,
    WorkerId,
)
from myna.actors.scheduler.shell import Scheduler
from myna.actors.subjects import Question
from myna.actors.tenants.admin import tell_schedulers
from myna.actors.tenants.rights import Grant, Role
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker
from myna.sdk.agent import Agent
from myna.sdk.client import Client
from myna.sdk.serving import hosting
from tests.actors.stage import until
from tests.actors.tenants.realm import Realm, realm
from tests.network import StoredMessages

__all__ = ["realm"]
pytestmark = pytest.mark.nats

ALICE, BOB = Tenant("alice"), Tenant("bob")


@myna.function
def words(text: myna.Input, out: myna.Output(max_tokens=3)):  # type: ignore[valid-type]
    """{{text}}: {{out}}"""


@myna.function
def many_words(text: myna.Input, out: myna.Output(max_tokens=20)):  # type: ignore[valid-type]
    """{{text}}: {{out}}"""


@pytest.fixture
async def cast(realm: Realm) -> AsyncIterator[Realm]:
    """A scheduler and an engine, as their roles."""
    scheduler = Scheduler(await realm.role(Role.SCHEDULER), "scheduler")
    engine = Worker(await realm.role(Role.ENGINE), WorkerId("engine-1"), NoopBackend())
    tasks = [asyncio.ensure_future(scheduler.run())]
    await asyncio.wait([asyncio.ensure_future(scheduler.leading.wait()), *tasks], return_when="FIRST_COMPLETED")
    tasks.append(asyncio.ensure_future(engine.run()))
    await asyncio.wait([asyncio.ensure_future(engine.ready.wait()), *tasks], return_when="FIRST_COMPLETED")
    yield realm
    assert [task.exception() for task in tasks if task.done()] == []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def status(bus: Bus, tenant: Tenant | None = None) -> Status:
    subject = subjects.STATUS if tenant is None else subjects.ask(tenant, Question.STATUS)
    answer: Status = codec.decode((await bus.request(subject, codec.encode(StatusRequest()))).data, Status)
    return answer


def agent(tenant: Tenant) -> Agent:
    """Two tenants serve a function of the same name."""

    async def whose(text: str) -> str:
        return f"{tenant} heard {text}"

    return Agent(whose, "whose", 4)


async def test_two_tenants_run_the_same_program_and_each_is_served_by_its_own_agent(cast: Realm) -> None:
    async with contextlib.AsyncExitStack() as stack:
        answers = {}
        for tenant in (ALICE, BOB):
            bus = await cast.tenant(tenant)
            await stack.enter_async_context(hosting(bus, agent(tenant), tenant=tenant))
        for tenant in (ALICE, BOB):
            client = Client(bus=await cast.tenant(tenant), tenant=tenant)
            session = await stack.enter_async_context(client.session("same"))
            answers[tenant] = await agent(tenant)(text=words(text="x", session=session), session=session)
        assert answers == {tenant: f"{tenant} heard out0 out1 out2" for tenant in (ALICE, BOB)}
        await check_what_each_sees(cast)


async def check_what_each_sees(cast: Realm) -> None:
    seen = await status(await cast.tenant(ALICE), ALICE)
    assert {s.tenant for s in seen.sessions} == {t.tenant for t in seen.tenants} == {"alice"}
    assert sorted((w.kind.value, w.tenant) for w in seen.workers) == [("agent", "alice"), ("engine", None)]
    everything = await status(await cast.role(Role.OPERATOR))
    assert {s.tenant for s in everything.sessions} == {"alice", "bob"}
    assert [w.worker for w in everything.workers if w.tenant is None] == ["engine-1"]


async def test_an_agent_of_one_tenant_is_never_given_anothers_call(cast: Realm) -> None:
    alice, bob = await cast.tenant(ALICE), await cast.tenant(BOB)
    async with hosting(alice, agent(ALICE), tenant=ALICE), Client(bus=bob, tenant=BOB).session() as session:
        result = agent(BOB)(text="secret", session=session)
        operator = await cast.role(Role.OPERATOR)

        async def waits() -> bool:
            return (await status(operator)).queued == 1

        await until(waits, "nobody serves it")
        assert [w.running for w in (await status(operator)).workers] == [0, 0]
        assert not result.done


async def test_a_tenant_exports_its_own_sessions_page_by_page_and_goes_on_from_them_and_nobody_elses(
    cast: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("myna.actors.scheduler.history.PAGE", 300)
    alice = Client(bus=await cast.tenant(ALICE), tenant=ALICE)
    bob = Client(bus=await cast.tenant(BOB), tenant=BOB)
    async with alice.session(keep=60.0) as session:
        for n in range(5):
            assert await words(text=f"{n}", session=session)
    recording = await myna.export(alice, session.id)
    operators = await myna.export(Client(bus=await cast.role(Role.OPERATOR), tenant=ALICE), session.id)
    assert (recording.log, recording.outcomes) == (operators.log, operators.outcomes)
    assert len(recording.calls) == 5
    with pytest.raises(myna.RecordingError, match="nothing is stored"):
        await myna.export(bob, session.id)
    async with alice.session() as another:
        variables = await myna.replay(recording, another)
        assert [await v for v in variables.values()] == ["out0 out1 out2"] * 5


async def test_what_a_stream_stores_counts_among_its_tenants_bytes(realm: Realm) -> None:
    scheduler = Scheduler(await realm.role(Role.SCHEDULER), "scheduler")
    engine = Worker(await realm.role(Role.ENGINE), WorkerId("engine-1"), NoopBackend(NoopModel(step=0.025)))
    tasks = [asyncio.ensure_future(scheduler.run()), asyncio.ensure_future(engine.run())]
    alice, operator = Client(bus=await realm.tenant(ALICE), tenant=ALICE), await realm.role(Role.OPERATOR)
    async with alice.session() as session:
        assert await many_words(text="x", session=session)
        stored = sum([(await operator.measure(stream)).size for stream in subjects.SESSION_STREAMS])

        async def counted() -> bool:
            (told,) = (await status(operator)).tenants
            return told.bytes > 0.75 * stored

        await until(counted, f"{stored} bytes, most of them chunks, are counted")
        (told,) = (await status(operator)).tenants
        assert told.bytes < 1.25 * stored
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_quotas_reach_the_application_as_typed_failures_and_change_while_it_runs(cast: Realm) -> None:
    operator = await cast.role(Role.OPERATOR)
    alice = Client(bus=await cast.tenant(ALICE), tenant=ALICE)
    async with alice.session() as session:
        await tell_schedulers(operator, TenantPolicy(tenant=ALICE, calls=0))
        await policy_is(operator, 0)
        with pytest.raises(myna.CallFailed) as failed:
            await words(text="x", session=session)
        assert failed.value.failure.code is ErrorCode.OVER_QUOTA
        await tell_schedulers(operator, TenantPolicy(tenant=ALICE, calls=1))
        await policy_is(operator, 1)
        assert await words(text="x", session=session) == "out0 out1 out2"


async def policy_is(operator: Bus, calls: int) -> None:
    async def known() -> bool:
        return any(t.policy is not None and t.policy.calls == calls for t in (await status(operator)).tenants)

    await until(known, "the scheduler follows the policies")


async def test_what_was_used_is_kept_by_tenant_session_and_call_after_the_session_is_gone(cast: Realm) -> None:
    operator, alice = await cast.role(Role.OPERATOR), Client(bus=await cast.tenant(ALICE), tenant=ALICE)
    async with alice.session("bill") as session:
        await words(text="x", session=session)
        await words(text="y", session=session)
        (open_,) = (await status(operator)).tenants
        assert (open_.used, open_.used_by) == (Usage(output_tokens=6), 2)
    records = StoredMessages()
    await operator.follow(subjects.USAGE, records)
    await records.until(1)
    record: SessionUsage = codec.decode(records.items[0].data, SessionUsage)
    assert (record.tenant, record.session, record.name) == ("alice", session.id, "bill")
    assert [(c.function, c.usage) for c in record.calls] == [("words", Usage(output_tokens=3))] * 2

    async def settled() -> bool:
        (closed,) = (await status(operator)).tenants
        return (closed.sessions, closed.used, closed.used_by) == (0, Usage(output_tokens=6), 2)

    await until(settled, "the record counts in place of the session")


async def test_what_one_tenant_is_granted_of_another_it_reads_and_streams_where_it_stands(cast: Realm) -> None:
    alice = Client(bus=await cast.tenant(ALICE), tenant=ALICE)
    await cast.create(BOB)
    async with alice.session() as session:
        one, two, private = words(text="x", session=session), session.variable("two"), session.variable("private")
        for variable in (one, two):
            cast.keyring.authority.grant(BOB, Grant(ALICE, session.id, variable.id))
        await cast.tell(BOB)
        bob = await cast.tenant(BOB)  # rights of what is granted come with a new connection
        async with Client(bus=bob, tenant=BOB).shared(ALICE, session.id) as theirs:
            assert "".join([piece async for piece in theirs.stream(one.id)]) == "out0 out1 out2"
            assert await theirs.text(one.id) == "out0 out1 out2"
            waiting = asyncio.ensure_future(theirs.text(two.id))
            await private.set("mine")
            await two.set("yours")
            assert await waiting == "yours"
            with pytest.raises(myna.TimedOut, match="or is not granted"):
                await theirs.value(private.id, timeout=0.3)
            with pytest.raises(KeyError):
                async with Client(bus=bob, tenant=BOB).shared(ALICE, session.id):
                    raise KeyError("as it is")


async def test_a_slow_stream_is_read_by_its_tenant_while_it_is_made(cast: Realm) -> None:
    slow = Worker(await cast.role(Role.ENGINE), WorkerId("engine-2"), NoopBackend(NoopModel("slow", step=0.01)))
    running = asyncio.ensure_future(slow.run())
    try:
        async with Client(bus=await cast.tenant(ALICE), tenant=ALICE).session() as session:
            made = words(text="x", session=session)
            assert "".join([piece async for piece in made.stream()]) == "out0 out1 out2"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
