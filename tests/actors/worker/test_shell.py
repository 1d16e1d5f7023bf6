from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import AlreadyAssigned, Bus, Delivery, Receipt, Stored
from myna.actors.bus.memory import MemoryBroker, MemoryBus
from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Beat,
    Drain,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    FinishReason,
    Hello,
    Leave,
    Run,
    Value,
    VarId,
    WorkerId,
    WorkerKind,
)
from myna.actors.subjects import Stream, ToWorker
from myna.actors.worker.backend import BackendDied, Job, JobFailed, Offer, Offered, OutputEnded, Produced
from myna.actors.worker.events import Asked
from myna.actors.worker.noop import NoopBackend
from tests.actors.stage import TENANT, Application, GatedBackend, Stage, call, stage, words
from tests.network import Network


class Ear:
    """All that workers say, by kind, and awaitable."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Announce | Beat | Event | Leave] = asyncio.Queue()

    @classmethod
    async def on(cls, bus: Bus) -> Ear:
        ear = cls()
        await bus.subscribe(subjects.FROM_WORKERS, ear._take)
        return ear

    async def _take(self, delivery: Delivery) -> None:
        message: Any = codec.decode(delivery.data, Announce | Beat | Event | Leave)
        assert delivery.subject.split(".")[1] == message.worker
        await self.said.put(message)

    async def next(self, type_: type[Any], **fields: object) -> Any:
        async with asyncio.timeout(20):
            while True:
                message = await self.said.get()
                if isinstance(message, type_) and all(getattr(message, k) == v for k, v in fields.items()):
                    return message


@pytest.fixture
async def play(network: Network) -> AsyncIterator[Stage]:
    """A stage with streams but without a scheduler: the test plays it."""
    async with stage(network.bus) as it:
        await (await it.bus("test")).ensure(subjects.STREAMS)
        yield it


async def order(bus: Bus, message: Run | Drain) -> None:
    leaf = ToWorker.RUN if isinstance(message, Run) else ToWorker.DRAIN
    await bus.publish(subjects.to_worker(WorkerId("w"), leaf), codec.encode(message))


def run_of(name: str, *inputs: str, attempt: int = 1, lease: int = 1, resume: bool = False) -> Run:
    return Run(tenant=TENANT, session="s", call=call(name, *inputs), attempt=attempt, lease=lease, resume=resume)


async def test_a_worker_announces_itself_when_it_starts_and_whenever_a_scheduler_says_hello(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w")
    first = await ear.next(Announce)
    assert (first.worker, first.serves, first.protocol, first.running) == ("w", ("noop",), PROTOCOL, ())
    await bus.publish(subjects.HELLO, codec.encode(Hello(protocol=PROTOCOL, scheduler="x", lease=3)))
    again = await ear.next(Announce)
    assert again.incarnation == first.incarnation


async def test_a_worker_whose_offer_changes_announces_itself_anew(play: Stage) -> None:
    ear = await Ear.on(await play.bus("test"))
    backend = NoopBackend()
    await play.worker("w", backend)
    await ear.next(Announce)
    backend._report(Offered(Offer(WorkerKind.ENGINE, ("m",), 3, paused="its endpoint is away", named_only=True)))
    announce = await ear.next(Announce)
    assert (announce.serves, announce.capacity) == (("m",), 3)
    assert (announce.paused, announce.named_only) == ("its endpoint is away", True)


async def test_a_beat_tells_what_is_held_while_the_backend_is_busy(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    backend = GatedBackend(("a", 1))
    await play.worker("w", backend)
    await order(bus, run_of("a", attempt=7))
    await backend.reached["a", 1].wait()
    beat = await ear.next(Beat)
    assert [(r.session, r.call, r.attempt) for r in beat.running] == [("s", "call-a", 7)]


async def test_a_run_publishes_chunks_and_value_then_says_finished(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w")
    app = Application(bus, "s")
    await app.set("x", Value(text="in"))
    await order(bus, run_of("a", "x"))
    assert (await ear.next(Event)).kind is EventKind.STARTED
    finished = await ear.next(Event)
    assert (finished.kind, finished.attempt, finished.usage.output_tokens) == (EventKind.FINISHED, 1, 2)
    assert await app.text("a") == words("a")
    chunk = await bus.get(subjects.CHUNKS, subjects.write_chunk(TENANT, app.session, VarId("a"), 0))
    assert chunk is not None


async def test_a_drain_order_ends_an_idle_worker_with_a_goodbye_unless_it_is_out_of_date(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w")
    await bus.publish(subjects.HELLO, codec.encode(Hello(protocol=PROTOCOL, scheduler="x", lease=3)))
    await order(bus, Drain(lease=2))
    await order(bus, run_of("a", lease=3))
    assert (await ear.next(Event, kind=EventKind.FINISHED)).call == "call-a"
    await order(bus, Drain(lease=3))
    assert (await ear.next(Announce, draining=True)).worker == "w"
    assert (await ear.next(Leave)).worker == "w"
    await play.ended("w")


class Loud(NoopBackend):
    """A backend whose failures have a lot to say."""

    def run(self, job: Job) -> None:
        failure = Failure(code=ErrorCode.NATIVE_ERROR, message="no! " * 5_000_000)
        self._report(JobFailed(job.key, failure))


async def test_a_failure_of_twenty_megabytes_is_told_in_short_and_the_worker_goes_on(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w", Loud())
    for attempt in (1, 2):
        await order(bus, run_of("a", attempt=attempt))
        event = await ear.next(Event, kind=EventKind.FAILED)
        assert event.attempt == attempt
        assert event.failure.message.startswith("no! no!")
        assert len(event.failure.message) < 3000


class Odd(NoopBackend):
    """A backend whose result is no plain data."""

    def run(self, job: Job) -> None:
        self._report(Produced(job.key, VarId("a"), "text"))
        self._report(OutputEnded(job.key, VarId("a"), FinishReason.STOP, json={"n": 2**70}))


async def test_a_result_that_is_no_plain_data_fails_and_is_not_tried_again(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w", Odd())
    await order(bus, run_of("a"))
    failure = (await ear.next(Event, kind=EventKind.FAILED)).failure
    assert failure.code is ErrorCode.ENGINE_ERROR
    assert not failure.retryable
    assert "'a'" in failure.message


class Wrong(NoopBackend):
    """A backend that speaks of an output that the call doesn't have."""

    def run(self, job: Job) -> None:
        self._report(Produced(job.key, VarId("nonsense"), "text"))


async def test_an_attempt_on_which_the_core_itself_fails_is_given_up_and_not_held_for_ever(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    worker = await play.worker("w", Wrong())
    await order(bus, run_of("a"))
    failure = (await ear.next(Event, kind=EventKind.FAILED)).failure
    assert failure.code is ErrorCode.ENGINE_ERROR
    assert worker._core.running == ()


class Mortal(NoopBackend):
    """A backend that dies when it is given work."""

    def run(self, job: Job) -> None:
        self._closed.set()


async def test_a_worker_whose_backend_dies_ends_with_the_reason_and_says_so_at_once(play: Stage) -> None:
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w", Mortal())
    await order(bus, run_of("a"))
    with pytest.raises(BackendDied, match="'w'"):
        await play.ended("w")
    leave = await ear.next(Leave)
    assert "has ended" in leave.reason


async def test_an_order_that_reaches_a_worker_as_it_ends_leaves_nothing_unawaited(play: Stage) -> None:
    worker = await play.worker("w")
    await play.crash("w")
    worker._feed(Asked(run_of("a"), asyncio.get_running_loop().time()))
    del worker
    gc.collect()  # what was never awaited would say so now, and a warning is an error here


# --- a network with moods ---------------------------------------------------------------------------------------------


class Moody(MemoryBus):
    """A bus whose replicas lag and whose acknowledgements get lost."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.lag = 0
        self.lose_acknowledgements = False
        self.read: list[str] = []

    async def get(self, stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        self.read.append(subject)
        if self.lag and not fresh:
            self.lag -= 1
            return None
        return await super().get(stream, subject, timeout=timeout, fresh=fresh)

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        receipt = await super().append(subject, data, message_id=message_id, headers=headers, timeout=timeout)
        if self.lose_acknowledgements:
            raise AlreadyAssigned(subject)  # what the second try hears after the window of duplicates
        return receipt


@pytest.fixture
async def moody() -> AsyncIterator[tuple[Stage, Moody]]:
    """A stage in memory, and the bus of worker w."""
    broker = MemoryBroker()
    bus = Moody(broker)

    async def make() -> Bus:
        return MemoryBus(broker)

    async with stage(make) as it:
        it._buses["w"] = bus
        await (await it.bus("test")).ensure(subjects.STREAMS)
        yield it, bus


async def test_an_input_that_a_replica_does_not_have_yet_is_asked_for_again(moody: tuple[Stage, Moody]) -> None:
    play, lagging = moody
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w")
    await Application(bus, "s").set("x", Value(text="in"))
    lagging.lag = 3
    await order(bus, run_of("a", "x"))
    await ear.next(Event, kind=EventKind.FINISHED)
    assert len(lagging.read) == 4


async def test_its_own_write_whose_acknowledgement_was_lost_counts_as_stored(moody: tuple[Stage, Moody]) -> None:
    play, forgetful = moody
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    backend = GatedBackend()
    await play.worker("w", backend)
    forgetful.lose_acknowledgements = True
    await order(bus, run_of("a"))
    await ear.next(Event, kind=EventKind.FINISHED)
    assert await Application(bus, "s").text("a") == words("a")


async def test_a_value_made_here_is_not_read_over_the_network_by_the_next_call(moody: tuple[Stage, Moody]) -> None:
    play, counting = moody
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    backend = GatedBackend()
    await play.worker("w", backend)
    await order(bus, run_of("a"))
    await ear.next(Event, kind=EventKind.FINISHED)
    await order(bus, run_of("b", "a"))
    await ear.next(Event, kind=EventKind.FINISHED)
    assert counting.read == []
    assert backend.jobs[1].inputs[VarId("a")].text == words("a")


async def test_message_ids_can_not_be_guessed_from_subject_and_attempt(moody: tuple[Stage, Moody]) -> None:
    """Else a stranger could store something under our id, and the stream would take our value for a repetition of it."""
    play, _ = moody
    bus = await play.bus("test")
    ear = await Ear.on(bus)
    await play.worker("w")
    target = subjects.write(TENANT, Application(bus, "s").session, VarId("a"))
    elsewhere = subjects.write(TENANT, Application(bus, "stranger").session, VarId("a"))
    await bus.append(elsewhere, b"", message_id=f"{target}:1")
    await order(bus, run_of("a"))
    await ear.next(Event, kind=EventKind.FINISHED)
    assert await bus.get(subjects.VALUES, target) is not None
