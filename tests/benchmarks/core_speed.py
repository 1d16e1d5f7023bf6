"""How quick the scheduler core is by itself: no bus, one process, time measured around `handle` alone."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections import deque

from myna.actors import codec
from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Close,
    Event,
    EventKind,
    Input,
    LogEntry,
    Message,
    ModelCall,
    Open,
    Output,
    Run,
    Sampling,
    SessionId,
    Submit,
    Tenant,
    Text,
    Usage,
    VarId,
    WorkerKind,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.program import outputs_of
from myna.actors.scheduler.commands import Dispatch
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Heard, Led, Logged, SchedulerEvent

WIDTH = 16
_USAGE = Usage(prompt_tokens=120, cached_tokens=58, output_tokens=40)


def application(n: int) -> bytes:
    """Sixteen calls under one prompt, and one that joins their results, as they come over the wire."""
    calls = []
    for i in range(WIDTH):
        segments = (
            Text(text="Summarize the following part of a report in one sentence. " * 4),
            Text(text=f"Part {i} of report {n}: " + "lorem ipsum dolor sit amet " * 8),
            Output(variables=(f"m{i}",), sampling=Sampling(max_tokens=64)),
        )
        calls.append(ModelCall(id=f"m{i}", function="map", messages=(Message(segments=segments),)))
    joined = (
        Text(text="Join these sentences."),
        Input(variables=tuple(f"m{i}" for i in range(WIDTH))),
        Output(variables=("r",), sampling=Sampling(max_tokens=64)),
    )
    calls.append(ModelCall(id="r", function="reduce", messages=(Message(segments=joined),)))
    return codec.encode(Submit(calls=tuple(calls)))


class Driver:
    """Keeps a number of calls in flight on no-op engines, oldest finished first."""

    def __init__(self, engines: int, in_flight: int) -> None:
        self.core = SchedulerCore()
        self.running: deque[Run] = deque()
        self.seconds = 0.0
        self.dispatches = 0
        self._in_flight = in_flight
        self._apps = 0
        self._open: dict[str, int] = {}
        self._workers: dict[int, str] = {}
        self._time = 1.0
        self.feed(Led("s", 1, self._time))
        capacity = -(-in_flight // engines) + 1
        for e in range(engines):
            offer = Announce(
                protocol=PROTOCOL,
                worker=f"e{e}",
                kind=WorkerKind.ENGINE,
                incarnation="i",
                serves=("m",),
                capacity=capacity,
                tokens=10**9,
            )
            self.feed(Heard(offer, self._time))

    def feed(self, event: SchedulerEvent) -> None:
        """One event, timed. `cost` turns garbage collection off; in the scheduler's process it adds about a tenth to this."""
        began = time.perf_counter()
        commands = self.core.handle(event)
        self.seconds += time.perf_counter() - began
        for command in commands:
            if isinstance(command, Dispatch):
                self.dispatches += 1
                self.running.append(command.run)
                self._workers[command.run.attempt] = command.worker

    def open(self) -> None:
        """One more application."""
        session = f"s{self._apps}"
        entry: LogEntry = codec.decode(application(self._apps), LogEntry)
        self._apps += 1
        self._open[session] = WIDTH + 1
        key = (Tenant(f"t{self._apps % 4}"), SessionId(session))
        self.feed(Logged(*key, Open(protocol=PROTOCOL), self._time))
        self.feed(Logged(*key, entry, self._time))

    def finish(self) -> None:
        """The oldest running call ends."""
        run = self.running.popleft()
        self._time += 1e-5
        key = (Tenant(run.tenant), SessionId(run.session))
        worker = self._workers.pop(run.attempt)
        for variable in outputs_of(run.call):
            ended = Ended(*key, VarId(variable), OutcomeStatus.VALUE, run.attempt, self._time, None, _USAGE, 160, "")
            self.feed(ended)
        event = Event(
            worker=worker,
            kind=EventKind.FINISHED,
            tenant=run.tenant,
            session=run.session,
            call=run.call.id,
            attempt=run.attempt,
            usage=_USAGE,
        )
        self.feed(Heard(event, self._time))
        self._open[run.session] -= 1
        if not self._open[run.session]:
            del self._open[run.session]
            self.feed(Logged(*key, Close(), self._time))

    def fill(self) -> None:
        """As many calls in flight as asked for."""
        while len(self.running) < self._in_flight:
            self.open()

    def go_on(self, calls: int) -> float:
        """Microseconds a call, everything from its submission to its end included."""
        self.seconds, self.dispatches = 0.0, 0
        while self.dispatches < calls:
            self.fill()
            self.finish()
        return self.seconds / self.dispatches * 1e6


def cost(engines: int, in_flight: int, calls: int) -> float:
    """Microseconds a call in the steady state."""
    driver = Driver(engines, in_flight)
    driver.fill()
    gc.collect()
    gc.disable()
    try:
        return driver.go_on(calls)
    finally:
        gc.enable()


def memory(in_flight: int) -> float:
    """KiB a call in flight, its own text and what the scheduler keeps of it included."""
    gc.collect()
    tracemalloc.start()
    driver = Driver(100, in_flight)
    base = tracemalloc.get_traced_memory()[0]
    driver.fill()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    return taken / len(driver.running) / 1024
