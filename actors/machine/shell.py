"""The supervisor's shell: runs the core's commands on real processes and feeds back what happens to them as events."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import structlog

from myna.actors.machine import supervisor as core
from myna.actors.machine.process import Program, Running

States = Mapping[str, tuple[core.State, int | None]]
"""State and process id of every child."""

Observer = Callable[[States], None]
"""Called in the event loop's thread after every event."""


def nobody(_states: States) -> None:
    """The observer that looks away."""


class Machine:
    """Supervised processes. `run` ends when none is left; `stop` makes it end; `ready` is set when all are up."""

    def __init__(
        self,
        children: Sequence[core.Child],
        programs: Mapping[str, Program],
        *,
        policy: core.Policy | None = None,
        on_change: Observer = nobody,
        log: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core.Supervisor(children, policy or core.Policy())
        self._programs = programs
        self._on_change = on_change
        self._log = log or structlog.get_logger(__name__)
        self._clock = clock
        self._events: asyncio.Queue[core.Event] = asyncio.Queue()
        self._running: dict[str, Running] = {}
        self._wake: float | None = None
        self._cancelled = False
        self.ready = asyncio.Event()

    async def run(self) -> str | None:
        """Run until every process is gone. Returns why it gave up, or None. If it is cancelled, it stops them first."""
        async with asyncio.TaskGroup() as tasks:
            event: core.Event = core.Begin(self._clock())
            while True:
                done = self._execute(self._core.handle(event), tasks)
                self._on_change(self.states())
                if done is not None:
                    break
                event = await self._next()
        if self._cancelled:
            raise asyncio.CancelledError
        return done.failure

    def stop(self) -> None:
        """Ask for the end, from the event loop's thread. Returns at once."""
        self._events.put_nowait(core.Stop(self._clock()))

    def states(self) -> States:
        """State and process id of every child."""
        return self._core.states()

    async def _next(self) -> core.Event:
        delay = None if self._wake is None else max(0.0, self._wake - self._clock())
        try:
            async with asyncio.timeout(delay):
                return await self._events.get()
        except TimeoutError:
            return core.Tick(self._clock())
        except asyncio.CancelledError:
            self._cancelled = True
            return core.Stop(self._clock())

    def _execute(self, commands: Sequence[core.Command], tasks: asyncio.TaskGroup) -> core.Done | None:
        self._wake = None
        for command in commands:
            match command:
                case core.Start(name, incarnation):
                    tasks.create_task(self._live(name, incarnation), name=f"supervise {name}")
                case core.Terminate(name):
                    self._signal(name, signal.SIGTERM)
                case core.Kill(name):
                    self._signal(name, signal.SIGKILL)
                case core.Wake(at):
                    self._wake = at
                case core.AllReady():
                    self.ready.set()
                case core.Restarting(name, status, delay):
                    self._log.warning("a process died", name=name, status=status, again_in_seconds=delay)
                case core.Done():
                    return command
                case _:
                    assert_never(command)
        return None

    def _signal(self, name: str, number: signal.Signals) -> None:
        running = self._running.get(name)
        if running is not None:
            self._log.debug("signal", name=name, signal=number.name)
            running.signal(number)

    async def _live(self, name: str, incarnation: int) -> None:
        """One incarnation of a child, from its start to its end."""
        try:
            running = await self._programs[name].launch()
        except (OSError, RuntimeError) as error:
            lines = tuple(str(error).splitlines())
            self._events.put_nowait(core.Exited(self._clock(), name, incarnation, None, lines))
            return
        self._running[name] = running
        self._events.put_nowait(core.Launched(self._clock(), name, incarnation, running.pid))
        async with asyncio.TaskGroup() as tasks:
            hear = tasks.create_task(self._hear(name, incarnation, running))
            status = await running.wait()
            hear.cancel()
        del self._running[name]
        lines = running.last_lines()
        self._events.put_nowait(core.Exited(self._clock(), name, incarnation, status, lines))

    async def _hear(self, name: str, incarnation: int, running: Running) -> None:
        await running.ready()
        self._log.info("ready", name=name, pid=running.pid)
        self._events.put_nowait(core.Ready(self._clock(), name, incarnation))
