from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Annotated, Any

import pytest
from structlog.testing import capture_logs

import myna
from myna import Input, Output
from myna.actors import codec, outcomes, subjects
from myna.actors.bus import Bus, Delivery, Unavailable
from myna.actors.bus.mailbox import Limits
from myna.actors.messages import Chunk, Close, ErrorCode, Failure, LogEntry, Objective, Open, Submit, Value, VarId, Want
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.sdk.client import Client, connect
from myna.sdk.errors import Cancelled, TimedOut
from myna.sdk.session import Session
from tests.actors.stage import TENANT, Stage, stage, until
from tests.network import Collected, MemoryNetwork, NatsNetwork, Network


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=3)]) -> None:
    """Q: {{question}}
    A: {{answer}}"""


@myna.function
def slow(question: Input, answer: Annotated[str, Output(max_tokens=100_000)]) -> None:
    """{{question}}{{answer}}"""


@myna.function
def pair(
    x: Input, first: Annotated[str, Output(max_tokens=1)], rest: Annotated[str, Output(max_tokens=1, n=2)]
) -> None:
    """{{x}} {{first}} {{rest}}"""


ANSWER = "answer0 answer1 answer2"


async def log_of(bus: Bus, session: Session) -> list[Any]:
    """The session's entries, once it is closed."""
    collected: Collected[Any] = Collected()
    follow = await bus.follow(
        subjects.LOG,
        collected,
        subject=subjects.log(TENANT, session.id),
        caught_up=collected.caught_up,
    )
    await collected.until(caught_up=1)
    await follow.close()
    return [codec.decode(stored.data, LogEntry) for stored in collected.items]


async def test_a_call_returns_at_once_and_its_variable_is_awaited(client: Client) -> None:
    async with client.session():
        variable = ask("why?")
        assert not variable.done
        assert await variable == ANSWER
        assert variable.done
        value = await variable.value()
        assert value.usage.output_tokens == 3
        assert await variable.get(timeout=0.001) == ANSWER, "what is known needs no time"


async def test_variables_feed_calls_in_diamonds_and_lists(client: Client) -> None:
    async with client.session() as session:
        top = ask("top")
        left, right = ask(top), ask(["a text", top])
        bottom = ask([left, right])
        assert await session.gather(bottom, left, right, top) == [ANSWER] * 4


async def test_several_outputs_come_by_name_and_by_position(client: Client) -> None:
    async with client.session():
        outputs = pair("x")
        first, rest = outputs
        assert outputs.first is first
        assert await myna.gather(first, *rest) == ["first0", "rest0", "rest0"]
        with pytest.raises(AttributeError, match="first, rest"):
            _ = outputs.second


async def test_a_variable_is_set_by_hand_before_or_after_it_is_used(client: Client) -> None:
    async with client.session() as session:
        before, after = session.variable("before"), session.variable("after")
        await before.set("text")
        used = ask([before, after])
        await after.set({"as": ["json", 1]})
        assert await used == ANSWER
        assert await after == '{"as": ["json", 1]}'
        assert await after.json() == {"as": ["json", 1]}


async def test_a_variable_is_set_once(client: Client) -> None:
    async with client.session() as session:
        variable = session.variable()
        await variable.set("one")
        await variable.set("one")
        with pytest.raises(myna.AlreadySet, match="'one'"):
            await variable.set("two")
        assert await variable == "one"
        with pytest.raises(myna.FunctionError, match="text or JSON data"):
            await session.variable().set(object())


async def test_two_processes_that_set_one_variable_differently_hear_of_it(client: Client, network: Network) -> None:
    async with client.session() as session, Client(bus=await network.bus()).attach(session.id) as other:
        variable = session.variable()
        await session.flush()
        theirs = other.lookup(variable.id)
        await theirs.set("theirs")
        with pytest.raises(myna.AlreadySet, match="'theirs'"):
            await variable.set("mine")
        assert await variable == "theirs"


async def test_an_output_can_be_bound_to_a_declared_variable(client: Client) -> None:
    async with client.session() as session:
        promised = session.variable("promised")
        consumer = ask(promised)
        assert ask("x", answer=promised) is promised
        assert await consumer == ANSWER
        assert await promised == "answer0 answer1 answer2"


async def test_an_attached_process_reads_values_streams_and_submits(client: Client, network: Network) -> None:
    async with client.session() as session, myna.connect(bus=await network.bus()) as elsewhere:
        variable = ask("x")
        await variable
        async with elsewhere.attach(session.id) as other:
            assert myna.current_session() is other
            assert await other.lookup(variable.id) == ANSWER
            assert [piece async for piece in other.lookup(variable.id, "same").stream()] != []
            more = [ask(other.lookup(variable.id)) for _ in range(40)]
            assert await other.gather(*more) == [ANSWER] * 40
        assert myna.current_session() is session
        assert await ask("still open") == ANSWER


async def test_streaming_gives_the_text_in_pieces_to_early_and_late_readers(client: Client) -> None:
    async with client.session():
        variable = ask("x")
        early = [piece async for piece in variable.stream()]
        late = [piece async for piece in variable.stream()]
        assert "".join(early) == "".join(late) == ANSWER


async def test_a_buffered_output_streams_in_one_piece(client: Client) -> None:
    @myna.function
    def f(x: Input, y: Annotated[str, Output(max_tokens=2, transforms=[myna.transforms.regex(r"y(\d)$")])]) -> None:
        """{{x}}{{y}}"""

    async with client.session():
        assert [piece async for piece in f("x").stream()] == ["1"]


async def test_a_failure_flows_down_naming_the_call_that_failed_first(client: Client) -> None:
    @myna.function
    def picky(
        x: Input, y: Annotated[str, Output(max_tokens=1, transforms=[myna.transforms.json_field("a.b")])]
    ) -> None:
        """{{x}}{{y}}"""

    async with client.session():
        last = ask(ask(picky("x")))
        with pytest.raises(myna.CallFailed) as caught:
            await last
        error = caught.value
        assert (error.code, error.function, error.variable) == (ErrorCode.TRANSFORM_FAILED, "picky", "answer")
        assert "'picky'" in str(error)
        with pytest.raises(myna.CallFailed):
            _ = [piece async for piece in last.stream()]
        with pytest.raises(myna.CallFailed):
            await myna.gather(ask("fine"), last)


async def test_cancelling_ends_a_call_and_what_needs_it(client: Client) -> None:
    async with client.session() as session:
        stuck = session.variable("never")
        first, other = ask(stuck), ask("x")
        second = ask(first)
        await session.cancel(first, reason="enough")
        with pytest.raises(myna.Cancelled, match="enough"):
            await first
        with pytest.raises(myna.Cancelled):
            await second
        assert await other == ANSWER
        with pytest.raises(myna.FunctionError, match="nothing to cancel"):
            await session.cancel(stuck)


async def test_a_time_out_is_typed_names_the_variable_and_changes_nothing(client: Client) -> None:
    async with client.session() as session:
        variable = session.variable("patience")
        with pytest.raises(myna.TimedOut, match="'patience'"):
            await variable.get(timeout=0.01)
        with pytest.raises(myna.TimedOut, match="1 of 1"):
            await session.gather(variable, timeout=0.01)
        await variable.set("here")
        assert await variable == "here"


async def test_closing_a_session_ends_whoever_waits_in_it(client: Client) -> None:
    async with client.session() as session:
        variable = session.variable("never")
        waiting = asyncio.create_task(variable.get())
        streaming = asyncio.create_task(anext(variable.stream()))
        await session.flush()
    for task in (waiting, streaming):
        with pytest.raises((myna.SessionClosed, myna.Cancelled)):
            await task
    with pytest.raises(myna.SessionClosed):
        ask("x", session=session)
    with pytest.raises(myna.SessionClosed):
        await session.open()


async def test_variables_of_another_session_are_refused_by_name(client: Client) -> None:
    async with client.session("one") as one, client.session("two") as two:
        variable = one.variable("theirs")
        with pytest.raises(myna.FunctionError, match=r"theirs-\w+ belongs to session one-\w+, not to two-\w+"):
            ask(variable, session=two)


async def test_a_variable_that_nobody_makes_ends_with_its_session(client: Client) -> None:
    async with client.session() as session:
        other = client.attach(session.id)
        await other.open()
        waiting = asyncio.create_task(other.lookup("nobody-makes-it").get())
        await asyncio.sleep(0)
        await other.flush()
    with pytest.raises(myna.Cancelled, match="closed"):
        await waiting
    await other.close()


async def test_a_session_that_was_never_opened_ends_its_readers(client: Client) -> None:
    async with client.attach("never-opened") as session:
        with pytest.raises(myna.SessionClosed):
            await session.lookup("anything")


async def test_thousands_of_variables_are_awaited_at_once_with_a_few_entries(client: Client, network: Network) -> None:
    count = 1500
    async with client.session() as session:
        root = ask("root")
        leaves = [ask(root) for _ in range(count)]
        assert await session.gather(*leaves) == [ANSWER] * count
    entries = await log_of(await network.bus(), session)
    submits = [e for e in entries if isinstance(e, Submit)]
    assert sum(len(e.calls) for e in submits) == count + 1
    assert len(submits) <= 3


async def test_a_lazy_session_starts_only_what_is_wanted(client: Client, network: Network) -> None:
    async with client.session(lazy=True, name="idle") as session:
        wanted, unwanted = ask(ask("x")), ask("y")
        assert await wanted.get(objective="latency") == ANSWER
        assert await wanted == ANSWER
        assert not unwanted.done
    entries = await log_of(await network.bus(), session)
    assert isinstance(entries[0], Open)
    assert entries[0].lazy
    (want,) = [e for e in entries if isinstance(e, Want)]
    assert want.variables == (wanted.id,)
    assert want.objective == Objective(kind=myna.ObjectiveKind.LATENCY)
    assert isinstance(entries[-1], Close)


def running(cast: Stage) -> int:
    return sum(len(worker.held) for worker in cast.schedulers["scheduler"]._core.fleet.workers.values())


async def test_in_a_lazy_session_a_call_runs_while_somebody_awaits_it_and_goes_on_when_somebody_does_again(
    client: Client, cast: Stage
) -> None:
    await cast.worker("tortoise", NoopBackend(NoopModel("tortoise", step=0.01)))
    async with client.session(lazy=True):
        variable = slow.with_options(model="tortoise")("x")
        pieces = variable.stream()
        first = await anext(pieces)
        with pytest.raises(TimedOut):
            await variable.get(timeout=0.01)
        assert running(cast) == 1, "the stream is still read"
        await pieces.aclose()
        await until(lambda: running(cast) == 0, "nobody awaits it, and it stops")
        again = variable.stream()
        assert (await anext(again)).startswith(first)
        await again.aclose()


async def test_what_a_get_asks_for_is_in_the_log_before_its_call(client: Client, network: Network) -> None:
    async with client.session(objective="throughput", memoise=True) as session:
        await ask("x").get(objective="latency")
    entries = await log_of(await network.bus(), session)
    assert [type(e) for e in entries] == [Open, Want, Submit, Close]
    assert entries[0].objective == Objective(kind=myna.ObjectiveKind.THROUGHPUT)
    assert entries[2].calls[0].memoise


async def test_a_function_decides_for_itself_whether_its_calls_are_memoised(client: Client, network: Network) -> None:
    async with client.session(memoise=True) as session:
        await ask.with_options(memoise=False)("x")
    async with client.session() as other:
        await ask.with_options(memoise=True)("x")
    bus = await network.bus()
    assert [e.calls[0].memoise for s in (session, other) for e in await log_of(bus, s) if isinstance(e, Submit)] == [
        False,
        True,
    ]


async def test_upstream_a_cancellation_spares_what_is_awaited(client: Client, cast: Stage) -> None:
    await cast.worker("tortoise", NoopBackend(NoopModel("tortoise", step=0.01)))
    async with client.session() as session:
        mine, shared = slow.with_options(model="tortoise")("mine"), ask.with_options(model="tortoise")("shared")
        last = ask([mine, shared])
        waiting = asyncio.create_task(shared.get())
        await asyncio.sleep(0)
        await session.cancel(last, upstream=True)
        for variable in (last, mine):
            with pytest.raises(Cancelled):
                await variable
        assert await waiting == ANSWER


async def test_what_nobody_holds_is_neither_kept_nor_decoded(client: Client) -> None:
    async with client.session() as session:
        middle = ask("x")
        last = ask(middle)
        del middle
        gc.collect()
        await last
        assert [v.id for v in session._variables.values()] == [last.id]


async def test_no_task_is_left_when_a_session_is_closed(client: Client) -> None:
    before = asyncio.all_tasks()
    async with client.session() as session, client.attach(session.id) as other:
        await asyncio.gather(*(other.lookup(ask("x").id).get() for _ in range(30)))
        async for _ in ask("y").stream():
            break
        assert len(asyncio.all_tasks()) > len(before)
    left = {t for t in asyncio.all_tasks() - before if t.get_coro().__qualname__.startswith(("Running", "Reading"))}  # type: ignore[union-attr]
    assert not left


async def test_a_failed_application_still_closes_its_session(client: Client, network: Network) -> None:
    session = client.session()

    async def application() -> None:
        async with session:
            ask("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await application()
    entries = await log_of(await network.bus(), session)
    assert entries[-1] == Close(reason="the application failed")


# --- Written by hand: what a worker and a scheduler would publish ----------------------------------------------------


async def put(bus: Bus, session: Session, variable: VarId, n: int, text: str, last: bool = False) -> None:
    subject = subjects.write_chunk(TENANT, session.id, variable, n)
    await bus.append(subject, codec.encode(Chunk(attempt=1, text=text, last=last)))


async def finish(bus: Bus, session: Session, variable: VarId, outcome: Value | Failure) -> None:
    body, headers = outcomes.pack(outcome)
    await bus.append(subjects.write(TENANT, session.id, variable), body, headers=headers)


async def test_a_reader_in_the_middle_of_a_stream_gets_all_of_it_once(network: Network) -> None:
    bus, writer = await network.bus(), await network.bus()
    await bus.ensure(subjects.STREAMS)
    async with Client(bus=bus).session() as session:
        variable = session.variable("v")
        await put(writer, session, variable.id, 0, "a")
        await put(writer, session, variable.id, 1, "b")
        stream = variable.stream()
        assert [await anext(stream), await anext(stream)] == ["a", "b"]
        await put(writer, session, variable.id, 2, "c")
        assert await anext(stream) == "c"
        late = variable.stream()
        assert [await anext(late) for _ in range(3)] == ["a", "b", "c"]
        await put(writer, session, variable.id, 3, "d", last=True)
        assert await anext(stream) == "d"
        await finish(writer, session, variable.id, Value(text="abcd"))
        assert [piece async for piece in stream] == []
        assert "".join([piece async for piece in late]) == "d"
        assert await variable == "abcd"


async def test_a_stream_that_proves_to_be_another_text_than_the_value_says_so(network: Network) -> None:
    """As when servers have lost all chunks before the value was written: the next attempt made another text."""
    bus, writer = await network.bus(), await network.bus()
    await bus.ensure(subjects.STREAMS)
    async with Client(bus=bus).session() as session:
        variable = session.variable("v")
        await put(writer, session, variable.id, 0, "one text", last=True)
        stream = variable.stream()
        assert await anext(stream) == "one text"
        await finish(writer, session, variable.id, Value(text="another"))
        with pytest.raises(myna.StreamBroken, match="await the value"):
            await anext(stream)
        assert await variable == "another"


async def test_a_slow_reader_of_a_stream_gets_all_of_it_though_little_waits_for_him(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("myna.sdk.reading.MOST_UNREAD", 4)
    bus, writer = await network.bus(), await network.bus()
    await bus.ensure(subjects.STREAMS)
    heard = Collected[Delivery]()
    async with Client(bus=bus).session() as session:
        variable = session.variable("v")
        await put(writer, session, variable.id, 0, "0 ")
        stream = variable.stream()
        assert await anext(stream) == "0 "
        await bus.subscribe(subjects.read_chunks(TENANT, session.id, variable.id), heard)
        for n in range(1, 40):
            await put(writer, session, variable.id, n, f"{n} ")
        await heard.until(39)
        await put(writer, session, variable.id, 40, "40", last=True)
        rest = [await anext(stream) for _ in range(40)]
        await finish(writer, session, variable.id, Value(text=" ".join(map(str, range(41)))))
        assert "".join([*rest, *[piece async for piece in stream]]) == " ".join(map(str, range(1, 41)))


async def test_an_unreadable_value_is_a_failure_not_a_wait(network: Network) -> None:
    bus, writer = await network.bus(), await network.bus()
    await bus.ensure(subjects.STREAMS)
    async with Client(bus=bus).session() as session:
        variable = session.variable("v")
        await writer.append(subjects.write(TENANT, session.id, variable.id), b"\xc1 no message")
        with pytest.raises(myna.CallFailed, match="can't be read"):
            await variable


async def test_a_value_whose_message_was_lost_is_found(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    bus, writer = await network.bus(), await network.bus()
    await bus.ensure(subjects.STREAMS)
    monkeypatch.setattr("myna.sdk.readers.values.FIRST_GET", 0.01)

    async def drop(_: Any) -> None:
        pass

    subscribe = bus.subscribe
    monkeypatch.setattr(bus, "subscribe", lambda subject, _, **options: subscribe(subject, drop, **options))
    async with Client(bus=bus).session() as session:
        variable = session.variable("v")
        await finish(writer, session, variable.id, Value(text="found"))
        assert await variable.get(timeout=10) == "found"


async def test_a_submission_that_cant_be_stored_fails_its_variables(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await network.bus()
    await bus.ensure(subjects.STREAMS)
    append = bus.append

    async def refuse(subject: str, data: bytes, **options: Any) -> Any:
        if isinstance(codec.decode(data, LogEntry), Submit):
            raise Unavailable("no leader")
        return await append(subject, data, **options)

    monkeypatch.setattr(bus, "append", refuse)
    async with Client(bus=bus).session():
        variables = [ask("x"), ask("y")]
        for variable in variables:
            with pytest.raises(myna.SubmitFailed, match="no leader"):
                await variable.get(timeout=10)


async def test_a_call_that_is_too_large_fails_alone_and_states_the_limit(client: Client) -> None:
    async with client.session():
        small, large = ask("x"), ask("x" * codec.MAX_PAYLOAD)
        with pytest.raises(myna.SubmitFailed, match="limit of one message is"):
            await large
        assert await small == ANSWER


async def test_a_session_belongs_to_its_event_loop(client: Client, cast: Stage) -> None:
    async with client.session() as session:

        def elsewhere() -> None:
            ask("x", session=session)

        with pytest.raises(myna.WrongLoop, match=r"myna\.sync"):
            await asyncio.to_thread(elsewhere)


async def test_values_that_come_by_themselves_cost_one_subscription_and_no_get(
    network: Network, cast: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await network.bus()
    calls: list[str] = []
    for name in ("get", "subscribe", "follow"):
        original = getattr(bus, name)

        def counted(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            calls.append(name)
            return original(*args, **options)

        monkeypatch.setattr(bus, name, counted)
    monkeypatch.setattr("myna.sdk.readers.values.FIRST_GET", 60.0)
    async with Client(bus=bus).session() as session:
        assert await session.gather(*(ask(f"{i}") for i in range(200))) == [ANSWER] * 200
    assert calls == ["subscribe"]


async def test_a_mailbox_that_overflows_loses_no_value() -> None:
    network = MemoryNetwork()
    bus, writer = await network.bus(limits=Limits(messages=5)), await network.bus()
    await bus.ensure(subjects.STREAMS)
    async with Client(bus=bus).session() as session:
        variables = [session.variable() for _ in range(50)]
        waiting = asyncio.create_task(session.gather(*variables, timeout=30))
        await session.flush()
        body, headers = outcomes.pack(Value(text="x"))
        writes = (writer.append(subjects.write(TENANT, session.id, v.id), body, headers=headers) for v in variables)
        with capture_logs() as logs:
            await asyncio.gather(*writes)
            assert await waiting == ["x"] * 50
        assert "values_lost" in [entry["event"] for entry in logs]
    await bus.close()
    await writer.close()


async def test_whoever_stops_waiting_is_forgotten(client: Client) -> None:
    async with client.session() as session:
        variable = session.variable()
        waiting = asyncio.create_task(variable.get())
        reading = session._state.reading._core  # type: ignore[union-attr]
        await session.flush()
        assert reading.waiting == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert reading.waiting == 0
        with pytest.raises(myna.TimedOut):
            await variable.get(timeout=0.001)
        assert reading.waiting == 0


async def test_a_value_over_the_limit_is_refused_stating_the_limit(client: Client) -> None:
    async with client.session() as session:
        variable = session.variable()
        with pytest.raises(myna.TooLarge, match="limit of one message is"):
            await variable.set("x" * codec.MAX_PAYLOAD)
        await variable.set("less")
        assert await variable == "less"


async def test_a_fault_inside_ends_the_session_and_its_waiters(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client.session() as session:
        variable = session.variable()
        await session.flush()
        waiting = asyncio.create_task(variable.get())
        await asyncio.sleep(0)
        monkeypatch.setattr("myna.sdk.outbox.pack", lambda _: 1 / 0)
        session.variable()
        with pytest.raises(myna.SessionClosed, match="failed inside"):
            await waiting
        with pytest.raises(myna.SessionClosed, match="failed inside"):
            ask("x")


async def test_an_open_session_takes_no_block_of_the_heap_that_scatters(nats: NatsNetwork) -> None:
    """Python serves up to 512 bytes from pools of its own. Larger blocks lie in the C heap, where those of long-lived sessions
    leave holes between them."""
    many = 20
    async with stage(nats.bus) as play, connect(bus=await nats.bus()) as client:
        await play.scheduler()
        await play.worker()
        async with client.session() as warm:
            await ask("?", session=warm)
        sessions = [client.session() for _ in range(many)]
        tracemalloc.start()
        try:
            for session in sessions:
                await session.open()
                await ask("?", session=session)
            gc.collect()
            large = [trace for trace in tracemalloc.take_snapshot().traces if trace.size > 512]
        finally:
            tracemalloc.stop()
        assert len(large) < many, "\n".join(map(str, large))
