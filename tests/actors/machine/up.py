"""A real `myna up`, as a person starts it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from myna.actors import config
from myna.actors.config import Settings
from myna.actors.machine import home
from myna.actors.tenants.rights import Role
from tests.actors.machine.processes import descendants


class Up:
    """A real `myna up` in a home of its own; its engines only pretend, unless its settings name a model."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.home = folder

    @classmethod
    async def start(cls, folder: Path, **settings: str) -> Up:
        noop = () if "MYNA_MODEL" in settings else ("--noop",)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "myna", "up", *noop),
            env={**os.environ, "MYNA_HOME": str(folder), "MYNA_LOG_FORMAT": "json", **settings},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(process, folder)

    async def lines_until(self, text: str, *, seconds: float = 40) -> list[str]:
        """What it says, up to the line that has `text`."""
        assert self.process.stderr is not None
        said: list[str] = []
        async with asyncio.timeout(seconds):
            async for raw in self.process.stderr:
                said.append(raw.decode())
                if text in said[-1]:
                    return said
        raise AssertionError(f"ended without {text!r}:\n{''.join(said)}")

    def part(self, text: str) -> int:
        (pid,) = [pid for pid, line in descendants(self.process.pid).items() if text in line]
        return pid

    @property
    def settings(self) -> Settings:
        return home.located(config.read({"MYNA_HOME": str(self.home)}), Role.OPERATOR)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Up]:
    """A machine that is ready; it is killed at the end if the test left it."""
    machine = await Up.start(folder)
    try:
        await machine.lines_until("ready at")
        yield machine
    finally:
        if machine.process.returncode is None:
            machine.process.kill()
        await machine.process.communicate()
