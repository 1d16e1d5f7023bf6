"""One child process, seen from its parent: started, heard to be ready, asked to end. Nothing is decided here.

Its output goes to a file, not a pipe, so that a parent with a busy event loop never blocks its child. It has a process
group of its own: a Ctrl-C at the terminal reaches only the parent, which ends its children in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from myna.actors.machine.child import READY_VARIABLE

_TAIL_BYTES = 16 * 1024


class Running(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    async def ready(self) -> None:
        """Return when it does its work; never, if it ends before."""
        ...

    async def wait(self) -> int:
        """Return when it is gone: its exit status, or minus the signal that ended it."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it is gone."""
        ...

    def last_lines(self) -> tuple[str, ...]:
        """What it said last, for a person."""
        ...


class Program(Protocol):
    """Something that can be started, again and again."""

    async def launch(self) -> Running:
        """Start it. Raises `OSError` or `RuntimeError`, whose text is the reason."""
        ...


class ModuleProgram:
    """A Python module run by this interpreter, tied to this process's life, which calls `child.ready`.

    `environment` is asked at each start: it names the port of a server that may just have been started. `passed` are file
    descriptors that it gets too, under the same numbers.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Callable[[], Mapping[str, str]],
        log: Path,
        passed: tuple[int, ...] = (),
    ) -> None:
        self._module = module
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._passed = passed

    async def launch(self) -> Running:
        """Start it. Raises `OSError`."""
        # -P: a file in the working directory must not stand in for a module of ours.
        launcher = [sys.executable, "-P", "-m", "myna.actors.machine", str(os.getpid())]
        arguments = [*launcher, self._module, *self._arguments]
        return await Process.start(arguments, environment=self._environment(), log=self._log, passed=self._passed)


class Process:
    """A process of this machine that says on a file descriptor of its own when it is ready."""

    def __init__(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None], log: Path) -> None:
        self._process = process
        self._ready = ready
        self._log = log

    @classmethod
    async def start(
        cls, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path, passed: tuple[int, ...] = ()
    ) -> Process:
        """Start it; `environment` and the file descriptors `passed` are all that it gets. Its log is begun anew. Raises
        `OSError`."""
        listen, speak = os.pipe()
        try:
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**environment, READY_VARIABLE: str(speak)},
                    pass_fds=(speak, *passed),
                    start_new_session=True,
                )
        except BaseException:
            os.close(listen)
            raise
        finally:
            os.close(speak)
        return cls(process, _heard(listen), log)

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    async def ready(self) -> None:
        """Return when it says that it is ready; never, if it ends before."""
        await asyncio.shield(self._ready)

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        status = await self._process.wait()
        self._ready.cancel()
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it is gone."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of its log."""
        return last_lines(self._log)


def _heard(descriptor: int) -> asyncio.Future[None]:
    """Done when a line can be read from `descriptor`. That is closed then, or when the future is cancelled."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        loop.remove_reader(descriptor)
        if os.read(descriptor, 64) and not heard.done():
            heard.set_result(None)

    def close(_heard: asyncio.Future[None]) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    loop.add_reader(descriptor, read)
    heard.add_done_callback(close)
    return heard


def last_lines(log: Path, count: int = 8) -> tuple[str, ...]:
    """The last lines of a log file, those in JSON made readable; none if there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(_readable(line) for line in text.splitlines()[-count:])


def _readable(line: str) -> str:
    """`event key=value ...` of a JSON log line; any other line as it is."""
    try:
        event = json.loads(line)
    except ValueError:
        return line
    if not isinstance(event, dict) or "event" not in event:
        return line
    hidden = ("event", "timestamp", "level", "process", "exception")
    rest = [f"{key}={value}" for key, value in event.items() if key not in hidden]
    raised = [f"{e.get('exc_type')}: {e.get('exc_value')}" for e in event.get("exception") or () if isinstance(e, dict)]
    return " ".join([str(event["event"]), *rest, *raised])
