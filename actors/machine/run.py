"""A whole machine, from nothing to nothing: `up` for people, `embedded` for an application's own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from myna.actors import logs
from myna.actors.config import Address, LogFormat, LogSettings, Settings, child_environment, with_address
from myna.actors.machine import home
from myna.actors.machine.home import AlreadyRunning
from myna.actors.machine.programs import NatsProgram, children, programs
from myna.actors.machine.shell import Machine, Observer, nobody
from myna.actors.machine.supervisor import Policy
from myna.actors.server import ServerConfig, find_server

__all__ = ["AlreadyRunning", "MachineFailed", "Plan", "embedded", "up"]

_USER = "myna"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class MachineFailed(Exception):
    """A process of the machine can't be kept alive; the text says which, why, and what it said last."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run: how many engines, and whether they only pretend (no model: for trying things out, and tests)."""

    engines: int = 1
    noop: bool = False
    policy: Policy = field(default_factory=Policy)


class _Assembly:
    """A machine put together in `folder`, not yet running."""

    def __init__(self, settings: Settings, plan: Plan, folder: Path, on_change: Observer, log: Any = None) -> None:
        self._password = secrets.token_urlsafe(24)
        self._settings = settings
        self.logs = home.make_private(folder / "logs")
        store = home.make_private(folder / "nats")
        self._nats = NatsProgram(ServerConfig(store=store, user=_USER, password=self._password, binary=find_server()))
        parts = programs(self._nats, self._environment, self.logs, engines=plan.engines, noop=plan.noop)
        self.machine = Machine(children(plan.engines), parts, policy=plan.policy, on_change=on_change, log=log)

    @property
    def address(self) -> Address:
        """How to reach it, once it is ready."""
        return Address(self._nats.url, _USER, self._password)

    def _environment(self) -> dict[str, str]:
        settings = with_address(self._settings, self.address)
        log_format = LogFormat.JSON if settings.log.format is LogFormat.AUTO else settings.log.format
        return child_environment(replace(settings, log=LogSettings(settings.log.level, log_format)))


async def up(
    settings: Settings, plan: Plan, *, on_ready: Callable[[home.Info, Path], None], on_change: Observer = nobody
) -> None:
    """Run a machine in `settings.home` until a signal ends it; `on_ready` learns its address and where its logs are.

    Raises `AlreadyRunning`, `MachineFailed`, `ServerError` if no nats-server is installed. It leaves no process, however it ends.
    """
    with home.locked(settings.home):
        assembly = _Assembly(settings, plan, settings.home, on_change)
        with _stopped_by_signals(assembly.machine):
            async with _running(assembly.machine) as ending:
                if ending.done():  # it was stopped while it started
                    return
                info = home.Info(os.getpid(), assembly.address.url, _USER, assembly.address.password or "")
                with home.published(settings.home, info):
                    on_ready(info, assembly.logs)
                    await asyncio.wait((ending,))


@contextlib.asynccontextmanager
async def embedded(
    settings: Settings, plan: Plan | None = None, *, on_change: Observer = nobody
) -> AsyncIterator[Settings]:
    """A machine that lives as long as the `async with` block, and dies with this process; its state is thrown away.

    Gives `settings` with the machine's address. Raises `MachineFailed`, `ServerError`. The thread that runs the event loop must
    outlive the block (see `child`). The logs go to files in a temporary folder; only a failure's reason is shown.
    """
    with (
        tempfile.TemporaryDirectory(prefix="myna-", ignore_cleanup_errors=True) as folder,
        (Path(folder) / "machine.log").open("w") as file,
    ):
        log = logs.to_file(file, settings.log, process="machine")
        assembly = _Assembly(settings, plan or Plan(), Path(folder), on_change, log)
        async with _running(assembly.machine):
            yield with_address(settings, assembly.address)


@contextlib.asynccontextmanager
async def _running(machine: Machine) -> AsyncIterator[asyncio.Task[None]]:
    """Run `machine` inside the block, which begins when all is ready or it has ended, and is cancelled if it fails."""
    async with _unwrapped(), asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(_run(machine), name="machine")
        ready = tasks.create_task(machine.ready.wait())
        try:
            await asyncio.wait((ending, ready), return_when=asyncio.FIRST_COMPLETED)
            yield ending
        finally:
            ready.cancel()
            machine.stop()


async def _run(machine: Machine) -> None:
    failure = await machine.run()
    if failure is not None:
        raise MachineFailed(failure)


@contextlib.asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """A failed machine, or a failure in the block, is that error, not a group that a `TaskGroup` wraps around it."""
    error: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        error = (group.subgroup(MachineFailed) or group).exceptions[0]
    if error is not None:  # outside of `except`, so that its own context stays
        raise error


@contextlib.contextmanager
def _stopped_by_signals(machine: Machine) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, machine.stop)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
