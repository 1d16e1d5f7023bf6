"""A whole machine, from nothing to nothing: `up` for people, `embedded` for an application's own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from myna.actors import logs
from myna.actors.config import (
    Address,
    LogFormat,
    LogSettings,
    Settings,
    Tls,
    child_environment,
    connect_bus,
    with_address,
)
from myna.actors.machine import home
from myna.actors.machine.home import AlreadyRunning
from myna.actors.machine.programs import NatsProgram, children, programs
from myna.actors.machine.shell import Machine, Observer, nobody
from myna.actors.machine.supervisor import Policy
from myna.actors.messages import Tenant
from myna.actors.server import ServerConfig, ServerTls, find_server
from myna.actors.tenants.admin import tell_schedulers
from myna.actors.tenants.keyring import Keyring, address_of, tenant_file
from myna.actors.tenants.rights import Role
from myna.actors.tenants.trust import local_lines

__all__ = ["AlreadyRunning", "MachineFailed", "Plan", "embedded", "up"]

GATEWAY_PORT = 9000
"""Where a gateway listens, unless that is taken or another is wanted."""
BACKLOG = 2048
"""Connections that may wait for the gateway."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class MachineFailed(Exception):
    """A process of the machine can't be kept alive; the text says which, why, and what it said last."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run: how many engines of each of `models` (or of the one that is configured), whether they only pretend (no
    model: for trying things out, and tests), and whether there is a gateway. Endpoints run where they are configured."""

    engines: int = 1
    models: tuple[str, ...] = ()
    noop: bool = False
    gateway: bool = False
    policy: Policy = field(default_factory=Policy)


class _Assembly:
    """A machine put together in `folder`, not yet running."""

    def __init__(self, settings: Settings, plan: Plan, folder: Path, on_change: Observer, log: Any = None) -> None:
        self._settings = settings
        self._folder = folder
        self.logs = home.make_private(folder / "logs")
        store = home.make_private(folder / "nats")
        self._keyring = Keyring.at(folder)
        self._keyring.begin(Tenant(settings.tenant))
        trust = partial(local_lines, self._keyring.authority, store / "accounts")
        serving = settings.serving
        tls = None if serving is None else ServerTls(serving.certificate, serving.key)
        self._tls = None if serving is None else Tls(serving.ca)
        self._nats = NatsProgram(ServerConfig(store=store, trust=trust, tls=tls, binary=find_server()))
        engines = plan.engines * max(len(plan.models), 1)
        self._door = _listen(settings.gateway.host, settings.gateway.port) if plan.gateway else None
        parts = programs(
            self._nats,
            self._environment,
            self.logs,
            engines=engines,
            noop=plan.noop,
            models=plan.models,
            gateway=self._door,
        )
        self._gateway = "" if self._door is None else f"http://{_at(self._door)}"
        processes = children(engines, endpoints=settings.endpoints is not None, gateway=plan.gateway)
        self.machine = Machine(processes, parts, policy=plan.policy, on_change=on_change, log=log)

    def stop(self) -> None:
        """End it, if it runs: no new requests come in from now on. Idempotent."""
        if self._door is not None:
            self._door.close()
        self.machine.stop()

    @property
    def url(self) -> str:
        """Where it listens, once it is ready."""
        return self._nats.url

    @property
    def address(self) -> Address:
        """How its tenant reaches it, once it is ready."""
        return Address(self.url, credentials=tenant_file(self._folder, Tenant(self._settings.tenant)), tls=self._tls)

    @property
    def info(self) -> home.Info:
        """How others find it, once it is ready."""
        ca = None if self._tls is None else self._tls.ca
        return home.Info(os.getpid(), self.url, ca, self._gateway)

    async def tell_policies(self) -> None:
        """Tell the scheduler what each tenant may have: the table may have changed while nothing ran. Raises `BusError`."""
        bus = await connect_bus(self._as(Role.OPERATOR), "machine")
        try:
            for policy in self._keyring.authority.policies():
                await tell_schedulers(bus, policy)
        finally:
            await bus.close()

    def _as(self, role: Role) -> Settings:
        return with_address(self._settings, address_of(self._folder, self.url, role, self._tls))

    def _environment(self, role: Role) -> dict[str, str]:
        settings = self._as(role)
        log_format = LogFormat.JSON if settings.log.format is LogFormat.AUTO else settings.log.format
        return child_environment(replace(settings, log=LogSettings(settings.log.level, log_format)))


def _listen(host: str, wanted: int | None) -> socket.socket:
    """The gateway's socket, at the port that is wanted, else at the usual one, else at one that is free. The machine holds it, so
    that what comes while the gateway is started again waits, and nobody else takes the port. Raises `MachineFailed`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem = OSError()
    for port in (GATEWAY_PORT, 0) if wanted is None else (wanted,):
        try:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            problem = error
    what = "MYNA_GATEWAY_HOST to an address of this machine" if wanted is None else "MYNA_GATEWAY_PORT to another port"
    raise MachineFailed(f"the gateway can't listen on {host!r} ({problem.strerror}): set {what}") from problem


def _at(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def up(
    settings: Settings, plan: Plan, *, on_ready: Callable[[home.Info, Path], None], on_change: Observer = nobody
) -> None:
    """Run a machine in `settings.home` until a signal ends it; `on_ready` learns its address and where its logs are.

    Raises `AlreadyRunning`, `MachineFailed`, `ServerError` if no nats-server is installed. It leaves no process, however it ends.
    """
    with home.locked(settings.home):
        assembly = _Assembly(settings, plan, settings.home, on_change)
        with _stopped_by_signals(assembly):
            async with _running(assembly) as ending:
                if ending.done():  # it was stopped while it started
                    return
                await assembly.tell_policies()
                with home.published(settings.home, assembly.info):
                    on_ready(assembly.info, assembly.logs)
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
        async with _running(assembly):
            yield with_address(settings, assembly.address)


@contextlib.asynccontextmanager
async def _running(assembly: _Assembly) -> AsyncIterator[asyncio.Task[None]]:
    """Run the machine inside the block, which begins when all is ready or it has ended, and is cancelled if it fails."""
    async with _unwrapped(), asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(_run(assembly.machine), name="machine")
        ready = tasks.create_task(assembly.machine.ready.wait())
        try:
            await asyncio.wait((ending, ready), return_when=asyncio.FIRST_COMPLETED)
            yield ending
        finally:
            ready.cancel()
            assembly.stop()


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
def _stopped_by_signals(assembly: _Assembly) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, assembly.stop)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
