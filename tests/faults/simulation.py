"""Processes on a virtual clock: each has an event loop of its own, and can be paused, moved in time, or killed like one.

Law: one schedule is a function of its seed. Nothing here knows a real clock, socket or thread; what happens next is the earliest
event, and events of one moment happen in the order in which they were made.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any

GRACE = 200
"""Turns of its loop that a killed process's remains may take to end."""


class Stuck(AssertionError):
    """What was to happen did not, within the time allowed."""


class _NoSelector:
    """In place of waiting for sockets: the simulation moves the clock."""

    def select(self, timeout: float | None) -> list[Any]:
        return []


class ProcessLoop(asyncio.BaseEventLoop):
    """The event loop of one simulated process. `skew` moves its clock away from the simulation's."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._selector = _NoSelector()
        self._clock_resolution = 1e-9
        self._simulation = simulation
        self.skew = 0.0

    def time(self) -> float:
        return self._simulation.now + self.skew

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def next_timer(self) -> float | None:
        """When the next timer is due, by the simulation's clock."""
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1
        return self._due(timers[0]._when) if timers else None

    def _due(self, when: float) -> float:
        """The first moment of the simulation at which this loop's clock, rounded, shows `when`."""
        at = when - self.skew
        while at + self.skew < when:
            at = math.nextafter(at, math.inf)
        return at

    def turn(self) -> None:
        """Run what is ready and due, once."""
        events._set_running_loop(self)
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            events._set_running_loop(None)


class Process:
    """A simulated process. `on_kill` undoes what others hold of it (its connections)."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self.loop = ProcessLoop(simulation)
        self.loop.set_exception_handler(self._failed)
        self.on_kill: list[Callable[[], None]] = []
        self.paused = False
        self.alive = True
        self.main: asyncio.Task[Any] | None = None
        self._simulation = simulation

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        """What the process does; when that ends it is gone."""
        self.main = self.loop.create_task(main)
        self.main._log_destroy_pending = False  # type: ignore[attr-defined]

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.alive:
            self._simulation.faults.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")

    @property
    def ended(self) -> bool:
        """Whether it has ended of itself."""
        return self.main is not None and self.main.done()

    def kill(self) -> None:
        """End it as kill -9 does: nothing that it still wants to do reaches anybody."""
        if not self.alive:
            return
        self.alive = False
        for undo in self.on_kill:
            undo()
        for _ in range(GRACE):  # what is left of its tasks ends in a world of its own
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.loop.turn()
        else:
            raise Stuck(f"{self.name} is dead and does not end: {asyncio.all_tasks(self.loop)}")
        if self.main is not None and self.main.done() and not self.main.cancelled():
            self.main.exception()  # seen
        self.loop.close()
        self._simulation.processes.remove(self)


class Simulation:
    """All processes, and the events of the network between them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.processes: list[Process] = []
        self.faults: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def process(self, name: str) -> Process:
        """A new process, which does nothing yet."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Do `action` in `delay` seconds; at once, before anything else happens, if that is 0."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, action))

    def run(self, done: Callable[[], bool], seconds: float) -> None:
        """Let things happen until `done`. Raises `Stuck` after `seconds`."""
        limit = self.now + seconds
        while True:
            while self._turn():
                pass
            if done():
                return
            if not self._advance(limit):
                raise Stuck(f"not done after {seconds:g} s")

    def _turn(self) -> bool:
        """Let every process that can run do so once; whether any could."""
        ran = False
        for process in self.processes:
            if process.loop._ready and process.alive and not process.paused:  # type: ignore[attr-defined]
                process.loop.turn()
                ran = True
        return ran

    def _advance(self, limit: float) -> bool:
        """Move the clock to whatever comes next; whether that is before `limit`."""
        at = self._events[0][0] if self._events else float("inf")
        for process in self.processes:
            if not process.paused:
                timer = process.loop.next_timer()
                if timer is not None and timer < at:
                    at = timer
        if at > limit:
            return False
        self.now = max(self.now, at)
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        for process in tuple(self.processes):
            if process.alive and not process.paused:
                timer = process.loop.next_timer()
                if timer is not None and timer <= self.now:
                    process.loop.turn()
        return True

    def end(self) -> None:
        """Kill all that is left."""
        for process in tuple(self.processes):
            process.kill()
