"""What a client can do to a scheduler: nothing that stops it, and nothing that leaves a variable without an end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgpack
import pytest

from myna.actors import codec, subjects
from myna.actors.bus import Stored, Unavailable
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import (
    PROTOCOL,
    Alive,
    Declare,
    ErrorCode,
    Failure,
    Open,
    SessionId,
    Status,
    StatusRequest,
    Submit,
    Value,
    VarId,
)
from myna.actors.scheduler import shell
from myna.actors.subjects import Stream
from tests.actors.stage import TENANT, Application, Stage, call, stage, until, words
from tests.network import NatsNetwork, Network


@pytest.fixture
async def play(network: Network) -> AsyncIterator[Stage]:
    """A stage on each kind of network, with a scheduler and a worker."""
    async with stage(network.bus) as it:
        await it.scheduler()
        await it.worker()
        yield it


@pytest.fixture
async def real(nats: NatsNetwork) -> AsyncIterator[Stage]:
    """The same on a real server."""
    async with stage(nats.bus) as it:
        await it.scheduler()
        await it.worker()
        yield it


async def well(play: Stage, session: str = "well") -> None:
    """The scheduler still serves."""
    app = Application(await play.bus("well"), session)
    await app.open()
    await app.submit(call("a"), call("b", "a"))
    assert await app.text("b") == words("b")


async def failure(app: Application, variable: str) -> Failure:
    outcome = await app.outcome(variable)
    assert isinstance(outcome, Failure), outcome
    return outcome


async def test_an_application_runs_and_the_status_tells_of_it(play: Stage) -> None:
    await well(play)
    status = await play.status()
    assert [(s.session, s.calls, s.done) for s in status.sessions] == [("well", 2, 2)]
    assert [w.worker for w in status.workers] == ["worker"]
    assert (status.rejected, status.queued) == (0, 0)


async def test_a_call_as_large_as_a_message_may_be_fails_if_its_dispatch_is_too_large(play: Stage) -> None:
    app = Application(await play.bus("app"), "s")
    await app.open()
    room = codec.MAX_BODY - len(codec.encode(Submit(calls=(call("big"),))))
    spec = call("big")
    body = spec.messages[0].segments
    text = type(body[0])(text="y" * room)  # type: ignore[call-arg]
    big = type(spec)(id=spec.id, messages=(type(spec.messages[0])(segments=(text, *body[1:])),))
    assert len(codec.encode(Submit(calls=(big,)))) <= codec.MAX_BODY
    await app.submit(big)
    told = await failure(app, "big")
    assert told.code is ErrorCode.INVALID_CALL
    assert str(codec.MAX_BODY) in told.message
    await well(play)


async def test_a_failure_that_would_quote_megabytes_is_cut_and_still_ends_its_variable(play: Stage) -> None:
    app = Application(await play.bus("app"), "s")
    await app.open()
    spec = call("bad", "ghost")
    await app.submit(type(spec)(id=spec.id, messages=spec.messages, function="f" * 6_000_000))
    told = await failure(app, "bad")
    assert told.code is ErrorCode.UNKNOWN_VARIABLE
    assert len(told.message) + len(told.function) < 10_000
    await well(play)


async def test_status_is_answered_even_if_sessions_have_endless_names(play: Stage) -> None:
    bus = await play.bus("app")
    for i in range(3):
        entry = Open(protocol=PROTOCOL, name="n" * 5_000_000)
        await bus.append(subjects.log(TENANT, SessionId(f"s{i}")), codec.encode(entry))
    await well(play)
    status = await play.status()
    assert len(status.sessions) == 4
    assert all(len(s.name) <= 200 for s in status.sessions)


async def test_nobody_makes_the_scheduler_write_where_it_may_not_by_asking_for_an_answer_there(play: Stage) -> None:
    app = Application(await play.bus("app"), "victim")
    await app.open()
    await app.log(Declare(variables=("x",)))
    target = subjects.write(TENANT, app.session, VarId("x"))
    ask = codec.encode(StatusRequest())
    for reply in (target, "myna-worker.worker.drain", "$JS.API.STREAM.DELETE.MYNA_LOG"):
        await app.bus.publish(subjects.STATUS, ask, reply=reply)
    await until(lambda: play.schedulers["scheduler"].rejected == 3, "three refusals")
    assert await app.bus.get(subjects.VALUES, target) is None
    await well(play)


async def test_an_id_with_a_line_break_is_refused_at_the_border(play: Stage) -> None:
    bus = await play.bus("app")
    log = subjects.log(TENANT, SessionId("s"))
    await bus.append(log, codec.encode(Open(protocol=PROTOCOL)))
    for name in ("x\n", "x\r", "", "a.b", "*", ">", " ", "é", "x" * 81):
        await bus.append(log, msgpack.packb({"t": "declare", "variables": [name]}))
    await bus.append(log, msgpack.packb({"t": "close"}))
    await until(lambda: play.schedulers["scheduler"].rejected == 9, "nine refusals")
    await well(play)


async def test_calls_for_a_session_that_never_was_are_answered(play: Stage) -> None:
    app = Application(await play.bus("app"), "never-opened")
    await app.submit(call("a"))
    assert (await failure(app, "a")).code is ErrorCode.SESSION_CLOSED


@pytest.mark.nats
async def test_an_answer_to_no_subject_at_all_stops_nobody(real: Stage) -> None:
    bus = await real.bus("app")
    assert isinstance(bus, NatsBus)
    for reply in (b"a..b", b".a", b"b.", b"*", b">"):
        bus._link._queue(b"PUB myna-scheduler.status " + reply + b" 0\r\n\r\n")
    await well(real)


@pytest.mark.nats
@pytest.mark.parametrize(
    "head",
    [
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 999999\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\nStatus: 404\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Size: a lot\r\n\r\n",
        b"NATS/1.0\r\nMyna-Status: nonsense\r\nMyna-Attempt: -5\r\nMyna-Size: x\r\n\r\n",
        b"NATS/1.0\r\nMyna-Status: failure\r\n\r\n",
        b"NATS/1.0\r\nNats-Subject: myna.other.session.log\r\nNats-Sequence: 1\r\n\r\n",
        b"NATS/1.0\r\n\xff\xfe: \xff\r\n\r\n",
    ],
)
async def test_forged_headers_stop_neither_log_nor_values(real: Stage, head: bytes) -> None:
    bus = await real.bus("app")
    assert isinstance(bus, NatsBus)
    app = Application(bus, "s")
    await app.open()
    log = subjects.log(TENANT, app.session)
    await bus._link.send(log, codec.encode(Declare(variables=("x",))), head=head)
    await app.submit(call("a", "x"), call("c"))
    value = codec.encode(Value(text="x"))
    await bus._link.send(subjects.write(TENANT, app.session, VarId("x")), value, head=head)
    assert await app.text("c") == words("c")
    outcome = await app.outcome("a")
    assert isinstance(outcome, Failure if b"failure" in head else Value), outcome
    await bus._link.send(subjects.alive(TENANT, app.session), codec.encode(Alive()), head=head)
    await bus._link.send(subjects.STATUS, codec.encode(StatusRequest()), head=head)
    assert isinstance(await real.status(), Status)
    await well(real)


@pytest.mark.nats
async def test_garbage_as_a_value_ends_its_consumers_with_a_failure(real: Stage) -> None:
    app = Application(await real.bus("app"), "s")
    await app.open()
    await app.log(Declare(variables=("x",)))
    await app.submit(call("a", "x"))
    await app.bus.append(subjects.write(TENANT, app.session, VarId("x")), b"\xc1 this is no value")
    told = await failure(app, "a")
    assert "call-a" in told.message
    await well(real)


async def test_an_event_on_which_the_core_itself_fails_is_skipped_and_the_rest_goes_on(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = play.schedulers["scheduler"]._core
    failed = []

    def touch(key: object, now: float) -> None:
        failed.append(key)
        raise RuntimeError("a bug")

    monkeypatch.setattr(core._ledger, "touch", touch)
    bus = await play.bus("app")
    await bus.publish(subjects.alive(TENANT, SessionId("s")), codec.encode(Alive()))
    await until(lambda: bool(failed), "the failure")
    await well(play)


async def test_the_reason_of_a_failure_goes_down_the_graph_even_if_the_servers_are_gone_when_it_is_to_be_read(
    play: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await play.bus("scheduler")
    asked = 0

    async def get(stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        nonlocal asked
        asked += stream is subjects.VALUES
        if stream is subjects.VALUES and asked < 4:
            raise Unavailable("gone for a while")
        return await type(bus).get(bus, stream, subject, timeout=timeout, fresh=fresh)

    monkeypatch.setattr(bus, "get", get)
    monkeypatch.setattr(shell, "RETRY", 0.01)
    app = Application(await play.bus("app"), "s")
    await app.open()
    await app.log(Declare(variables=("a",)), Submit(calls=(call("b", "a"),)))
    await app.set("a", Failure(code=ErrorCode.ENGINE_ERROR, message="the true reason"))
    assert "the true reason" in (await failure(app, "b")).message
    assert asked >= 4
