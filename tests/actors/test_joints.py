"""The joints: what holds when actors die, come back, lie, or speak late. Real actors, over a real nats-server and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import AlreadyAssigned, Bus, Delivery
from myna.actors.bus.mailbox import Limits
from myna.actors.messages import (
    Alive,
    Cancellation,
    Chunk,
    Close,
    Declare,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    Input,
    Leave,
    Message,
    ModelCall,
    Output,
    Run,
    Sampling,
    SessionId,
    StreamMode,
    Tenant,
    Value,
    VarId,
    Want,
    WorkerId,
)
from myna.actors.outcomes import pack
from myna.actors.scheduler.shell import SchedulerFailed
from myna.actors.subjects import FromWorker, ToWorker
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker, WorkerFailed
from tests.actors.stage import TENANT, Application, Audience, GatedBackend, Stage, call, stage, until, words
from tests.network import NatsNetwork, Network


@pytest.fixture
async def play(network: Network) -> AsyncIterator[Stage]:
    """A stage on each kind of network, with nobody on it yet."""
    async with stage(network.bus) as it:
        yield it


@pytest.fixture
async def real(nats: NatsNetwork) -> AsyncIterator[Stage]:
    """A stage on a real server."""
    async with stage(nats.bus) as it:
        yield it


async def opened(play: Stage, session: str = "s", **options: object) -> Application:
    app = Application(await play.bus("app"), session)
    await app.open(**options)  # type: ignore[arg-type]
    return app


async def bury(bus: Bus, worker: Worker) -> None:
    """The scheduler believes that this worker has left, while it works on."""
    leave = Leave(worker=worker._worker, incarnation=worker._incarnation)
    await bus.publish(subjects.from_worker(worker._worker, FromWorker.LEAVE), codec.encode(leave))


def written(session: str, variable: str, n: int | None = None) -> str:
    if n is None:
        return subjects.write(TENANT, SessionId(session), VarId(variable))
    return subjects.write_chunk(TENANT, SessionId(session), VarId(variable), n)


# --- zombies ----------------------------------------------------------------------------------------------------------


async def test_no_reader_ever_sees_what_a_zombie_publishes_late(play: Stage) -> None:
    await play.scheduler()
    first = GatedBackend(("a", 3))
    await play.worker("w1", first)
    app = await opened(play)
    audience = await Audience.of(app.bus, "s")
    await app.submit(call("a", tokens=6), call("b", "a"))
    await first.reached["a", 3].wait()
    await until(lambda: len(audience.chunks.get("a", [])) >= 1, "a first chunk")
    zombie = first.jobs[0].key[3]
    second = GatedBackend()
    await play.worker("w2", second)
    await bury(app.bus, play.workers["w1"])
    first.gates["a", 3].set()
    assert await app.text("b") == words("b")

    evil = Chunk(attempt=zombie, text="EVIL", tokens=(666,), last=True)
    refusals = 0
    for n in range(len(audience.chunks["a"])):
        await app.bus.publish(written("s", "a", n), codec.encode(evil))
        try:
            await app.bus.append(written("s", "a", n), codec.encode(evil), message_id=f"evil-{n}")
        except AlreadyAssigned:
            refusals += 1
    body, headers = pack(Value(text="EVIL", attempt=zombie))
    await app.bus.publish(written("s", "a"), body, headers=headers)
    with pytest.raises(AlreadyAssigned):
        await app.bus.append(written("s", "a"), body, headers=headers)
    await app.submit(call("after", "b"))
    assert await app.text("after") == words("after")

    assert refusals == len(audience.chunks["a"])
    assert audience.check("a") == words("a", 6)
    assert not any(b"EVIL" in delivery.data for delivery in audience.raw)


async def test_a_chunk_that_somebody_else_claimed_ends_the_attempt_and_the_next_goes_on_behind_it(play: Stage) -> None:
    await play.scheduler()
    backend = GatedBackend(("a", 2))
    await play.worker("w", backend)
    app = await opened(play)
    audience = await Audience.of(app.bus, "s")
    await app.submit(call("a", tokens=5))
    await backend.reached["a", 2].wait()
    await until(lambda: sum(len(c.tokens) for _, c in audience.chunks.get("a", [])) == 2, "two tokens")
    n = len(audience.chunks["a"])
    other = Chunk(attempt=1, text=" a2", tokens=(2,))
    await app.bus.append(written("s", "a", n), codec.encode(other))
    backend.gates["a", 2].set()
    assert await app.text("a") == words("a", 5)
    assert audience.check("a") == words("a", 5)
    assert backend.runs("a") == 2
    assert backend.jobs[1].resumed[VarId("a")].tokens == (0, 1, 2)


async def test_an_order_under_an_old_lease_is_refused_and_not_run(play: Stage) -> None:
    await play.scheduler()
    backend = GatedBackend()
    await play.worker("w", backend)
    bus = await play.bus("deposed")
    refused: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    async def listen(delivery: Delivery) -> None:
        event: Event = codec.decode(delivery.data, Event)
        if event.kind is EventKind.REFUSED:
            refused.set_result(event)

    app = await opened(play)
    await app.submit(call("before"))
    await app.text("before")  # since then the worker knows who leads
    await bus.subscribe(subjects.from_worker(WorkerId("w"), FromWorker.EVENT), listen)
    run = Run(tenant="default", session="s", call=call("a"), attempt=1, lease=0)
    await bus.publish(subjects.to_worker(WorkerId("w"), ToWorker.RUN), codec.encode(run))
    event = await asyncio.wait_for(refused, 10)
    assert (event.call, event.attempt) == ("call-a", 1)
    assert backend.runs("a") == 0


# --- schedulers die ---------------------------------------------------------------------------------------------------


async def test_a_scheduler_that_dies_again_and_again_loses_nothing_and_runs_nothing_twice(play: Stage) -> None:
    await play.scheduler()
    backends = [GatedBackend(("f0", 5), step=0.01), GatedBackend(("f0", 5), step=0.01)]
    for i, backend in enumerate(backends):
        await play.worker(f"w{i}", backend)
    app = await opened(play)
    audience = await Audience.of(app.bus, "s")
    chain = [call("c0", tokens=10), *(call(f"c{i}", f"c{i - 1}", tokens=10) for i in range(1, 12))]
    fan = [call(f"f{i}", "c0", tokens=20) for i in range(10)]
    sink = call("end", "c11", *(f"f{i}" for i in range(10)))
    await app.submit(*chain, *fan, sink)
    for ended in (1, 4, 9):
        await until(lambda ended=ended: len(audience.outcomes) >= ended, f"{ended} outcomes")  # type: ignore[misc]
        await play.crash("scheduler")
        await play.scheduler()
        play.schedulers["scheduler"]._core.check()
    core = play.schedulers["scheduler"]._core
    await until(lambda: not core.settling, "it dispatches again")
    for backend in backends:  # one call ran on all the while, and was adopted
        backend.gates["f0", 5].set()
    assert await app.text("end") == words("end")
    names = [*(f"c{i}" for i in range(12)), *(f"f{i}" for i in range(10)), "end"]
    assert {name: sum(b.runs(name) for b in backends) for name in names} == dict.fromkeys(names, 1)
    for name in names:
        audience.check(name)


async def test_what_was_submitted_while_no_scheduler_lived_is_served_by_the_next_one(play: Stage) -> None:
    await play.scheduler("one")
    await play.worker()
    app = await opened(play)
    await play.crash("one")
    await app.submit(call("a"), call("bad", "ghost"), call("b", "a"))
    await play.scheduler("one")
    assert await app.text("b") == words("b")
    assert isinstance(await app.outcome("bad"), Failure)


# --- workers die ------------------------------------------------------------------------------------------------------


async def test_a_worker_that_dies_in_mid_stream_is_followed_up_without_a_repeat_a_gap_or_a_change(play: Stage) -> None:
    await play.scheduler()
    first, second = GatedBackend(("a", 5)), GatedBackend()
    await play.worker("w1", first)
    app = await opened(play)
    audience = await Audience.of(app.bus, "s")
    await app.submit(call("a", tokens=10), call("b", "a"))
    await first.reached["a", 5].wait()
    await until(lambda: sum(len(c.tokens) for _, c in audience.chunks.get("a", [])) == 5, "five tokens")
    await play.worker("w2", second)
    await play.crash("w1")
    assert await app.text("b") == words("b")
    assert audience.check("a") == words("a", 10)
    (job,) = [j for j in second.jobs if j.call.id == "call-a"]
    assert job.resumed[VarId("a")].tokens == (0, 1, 2, 3, 4)


async def test_a_drained_worker_finishes_what_it_has_and_its_successor_does_the_rest(play: Stage) -> None:
    await play.scheduler()
    first, second = GatedBackend(("a", 1)), GatedBackend()
    await play.worker("w1", first)
    app = await opened(play)
    await app.submit(call("a"), call("b", "a"))
    await first.reached["a", 1].wait()
    play.workers["w1"].drain()
    await play.worker("w2", second)
    first.gates["a", 1].set()
    assert await app.text("b") == words("b")
    await play.ended("w1")
    assert (first.runs("a"), second.runs("a"), second.runs("b")) == (1, 0, 1)


# --- the server dies --------------------------------------------------------------------------------------------------


@pytest.mark.nats
async def test_an_application_ends_well_although_its_server_is_killed_and_started_again(
    real: Stage, nats: NatsNetwork
) -> None:
    await real.scheduler()
    backend = GatedBackend(("c2", 3), step=0.005)
    await real.worker("w", backend)
    app = await opened(real)
    await app.submit(call("c0", tokens=5), *(call(f"c{i}", f"c{i - 1}", tokens=5) for i in range(1, 8)))
    await backend.reached["c2", 3].wait()
    await nats.server.kill()
    backend.gates["c2", 3].set()
    await nats.server.restart()
    assert await app.text("c7", 60) == words("c7", 5)
    for i in range(8):
        assert await app.text(f"c{i}") == words(f"c{i}", 5)
    await app.submit(call("later", "c7"))
    assert await app.text("later") == words("later")


# --- sessions ---------------------------------------------------------------------------------------------------------


async def test_two_tenants_with_the_same_names_do_not_see_each_other(play: Stage) -> None:
    await play.scheduler()
    await play.worker()
    bus = await play.bus("app")
    apps = {t: Application(bus, "same", Tenant(t)) for t in ("one", "two")}
    audiences = {t: await Audience.of(bus, "same", t) for t in apps}
    for tenant, app in apps.items():
        await app.open()
        await app.log(Declare(variables=("x",)))
        await app.submit(call("a", "x"), call(f"only-{tenant}", "a"))
    await apps["one"].set("x", Value(text="of one"))
    assert await apps["one"].text("only-one") == words("only-one")
    assert set(audiences["one"].outcomes) == {"x", "a", "only-one"}
    assert audiences["two"].raw == []
    await apps["two"].set("x", Value(text="of two"))
    assert await apps["two"].text("only-two") == words("only-two")
    assert set(audiences["two"].outcomes) == {"x", "a", "only-two"}
    assert await apps["one"].text("x") == "of one"
    assert await apps["two"].text("x") == "of two"


async def nothing_left(bus: Bus, session: str) -> bool:
    """Whether the streams hold nothing of a session: a purge that removes nothing."""
    pattern = subjects.of_session(TENANT, SessionId(session))
    counts = [await bus.get(subjects.LOG, subjects.log(TENANT, SessionId(session)))]
    if any(counts):
        return False
    return [await bus.purge(s, pattern) for s in subjects.SESSION_STREAMS] == [0, 0, 0]


async def test_closing_a_session_cancels_what_runs_and_leaves_nothing_in_streams_or_workers(play: Stage) -> None:
    await play.scheduler()
    backend = GatedBackend(("slow", 1))
    await play.worker("w", backend)
    app = await opened(play)
    await app.log(Declare(variables=("by-hand",)))
    await app.submit(call("a"), call("slow", "a", tokens=5), call("after", "slow"))
    await backend.reached["slow", 1].wait()
    await app.log(Close(reason="enough"))
    for variable in ("slow", "after", "by-hand"):
        outcome = await app.outcome(variable)
        assert isinstance(outcome, Cancellation), outcome
    await until(lambda: play.workers["w"]._core.running == (), "the worker was told")
    await until(lambda: not play.schedulers["scheduler"]._core.sessions, "the scheduler forgets")
    await until(lambda: nothing_left(app.bus, "s"), "the purge")
    await app.submit(call("too-late"))
    late = await app.outcome("too-late")
    assert isinstance(late, Failure)
    assert late.code is ErrorCode.SESSION_CLOSED


async def test_an_idle_session_expires_with_a_reason_and_one_that_is_held_does_not(play: Stage) -> None:
    await play.scheduler()
    held = await opened(play, "held", ttl=0.8)
    idle = await opened(play, "idle", ttl=0.8)
    for app in (held, idle):
        await app.log(Declare(variables=("x",)))
    reading = asyncio.ensure_future(idle.outcome("x"))
    while not reading.done():
        await held.bus.publish(subjects.alive(TENANT, held.session), codec.encode(Alive()))
        await asyncio.wait({reading}, timeout=0.1)
    outcome = reading.result()
    assert isinstance(outcome, Cancellation)
    assert "expired" in outcome.reason
    status = await play.status()
    assert [s.session for s in status.sessions] == ["held"]


async def test_a_lazy_session_runs_only_what_is_wanted(play: Stage) -> None:
    await play.scheduler()
    backend = GatedBackend()
    await play.worker("w", backend)
    app = await opened(play, lazy=True)
    await app.submit(call("a"), call("b", "a"), call("unwanted", "a"), call("c"))
    await app.log(Want(variables=("b",)))
    assert await app.text("b") == words("b")
    assert {j.call.id for j in backend.jobs} == {"call-a", "call-b"}
    await app.log(Want(variables=("c",)))
    assert await app.text("c") == words("c")
    assert backend.runs("unwanted") == 0


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", StreamMode)
async def test_a_value_over_the_limit_is_a_typed_failure_that_states_the_limit(play: Stage, mode: StreamMode) -> None:
    await play.scheduler()
    backend = GatedBackend(text="x" * (3 * 1024 * 1024))
    await play.worker("w", backend)
    app = await opened(play)
    output = Output(variables=("big",), name="big", stream=mode, sampling=Sampling(max_tokens=3))
    spec = ModelCall(id="call-big", messages=(Message(segments=(output,)),), function="novel")
    await app.submit(spec, call("next", "big"), call("small", tokens=1))
    for variable in ("big", "next"):
        outcome = await app.outcome(variable)
        assert isinstance(outcome, Failure)
        assert outcome.code is ErrorCode.VALUE_TOO_LARGE
        assert str(codec.MAX_BODY) in outcome.message
        assert (outcome.call, outcome.function) == ("call-big", "novel")
    assert backend.runs("big") == 1, "trying again would not help"
    assert isinstance(await app.outcome("small"), Value)


async def test_a_graph_of_3000_calls_completes(play: Stage) -> None:
    await play.scheduler()
    for i in range(3):
        await play.worker(f"w{i}", NoopBackend(NoopModel(capacity=64)))
    app = await opened(play)
    size, layers = 500, 6
    calls = [call(f"l0-{i}", tokens=1) for i in range(size)]
    for layer in range(1, layers):
        calls += [
            call(f"l{layer}-{i}", f"l{layer - 1}-{i}", f"l{layer - 1}-{(i * 7) % size}", tokens=1) for i in range(size)
        ]
    everything = tuple(f"l{layers - 1}-{i}" for i in range(size))
    joined = (
        Input(variables=everything, joiner=","),
        Output(variables=("all",), name="all", sampling=Sampling(max_tokens=2)),
    )
    for i in range(0, len(calls), 500):
        await app.submit(*calls[i : i + 500])
    await app.submit(ModelCall(id="call-all", messages=(Message(segments=joined),)))
    assert await app.text("all", 60) == words("all")
    core = play.schedulers["scheduler"]._core
    core.check()
    assert core.sessions[TENANT, SessionId("s")].graph.unfinished == 0
    await until(lambda: all(worker._core.running == () for worker in play.workers.values()), "nothing runs any more")


# --- slow consumers ---------------------------------------------------------------------------------------------------


async def flood(bus: Bus, subject: str, data: bytes, task: asyncio.Task[None]) -> None:
    for _ in range(200):
        for _ in range(500):
            await bus.publish(subject, data)
        await asyncio.wait({task}, timeout=0.01)
        if task.done():
            return
    raise AssertionError("nothing overflowed")


@pytest.mark.nats
async def test_a_worker_that_can_not_keep_up_fails_aloud_and_its_calls_go_to_another(
    real: Stage, nats: NatsNetwork
) -> None:
    await real.scheduler()
    slow = GatedBackend(("a", 1))
    real._buses["slow"] = await nats.bus(limits=Limits(messages=3))
    await real.worker("slow", slow)
    app = await opened(real)
    await app.submit(call("a"))
    await slow.reached["a", 1].wait()
    await real.worker("w2")
    task = real._tasks["slow"]
    await flood(app.bus, subjects.to_worker(WorkerId("slow"), ToWorker.STOP), b"junk", task)
    with pytest.raises(WorkerFailed, match="is full"):
        await real.ended("slow")
    await real._buses.pop("slow").close()
    assert await app.text("a") == words("a")


@pytest.mark.nats
async def test_a_scheduler_that_can_not_keep_up_fails_aloud_and_loses_nothing(real: Stage, nats: NatsNetwork) -> None:
    real._buses["scheduler"] = await nats.bus(limits=Limits(messages=3))
    await real.scheduler()
    await real.worker()
    app = await opened(real)
    alive = subjects.alive(TENANT, app.session)
    await flood(app.bus, alive, codec.encode(Alive()), real._tasks["scheduler"])
    with pytest.raises(SchedulerFailed, match="is full"):
        await real.ended("scheduler")
    await real._buses.pop("scheduler").close()
    await app.submit(call("a"))
    await real.scheduler()
    assert await app.text("a") == words("a")
