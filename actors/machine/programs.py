"""What the processes of one machine are: a NATS server, a scheduler, engines, endpoints, and the gateway."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from myna.actors.machine.process import ModuleProgram, Program, Running
from myna.actors.machine.supervisor import Child
from myna.actors.server import Server, ServerConfig
from myna.actors.tenants.rights import Role

SCHEDULER = "myna.actors.scheduler"
ENGINE_HOST = "myna.actors.engine_host"
ENDPOINTS = "myna.actors.endpoints"
GATEWAY = "myna.actors.gateway"

ENGINE_GRACE = 15.0
"""Seconds in which an engine may finish what runs, and a fault there may be noticed."""
GATEWAY_GRACE = 27.0
"""Seconds in which a gateway may finish its requests."""


class NatsProgram:
    """A NATS server that keeps its port, password and store when it is started again."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._server: Server | None = None

    async def launch(self) -> Running:
        """Start it. Raises `OSError`, `ServerError`."""
        if self._server is None:
            self._server = await Server.start(self._config)
        else:
            await self._server.restart()
        return NatsProcess(self._server)

    @property
    def url(self) -> str:
        """Where it listens. Raises `RuntimeError` before the first start."""
        if self._server is None:
            raise RuntimeError("the NATS server was not started yet")
        return self._server.url


class NatsProcess:
    """A started NATS server, as the supervisor sees a process."""

    def __init__(self, server: Server) -> None:
        if server.pid is None:
            raise RuntimeError("the NATS server ended at once")
        self._server = server
        self._pid = server.pid

    @property
    def pid(self) -> int:
        """Its id."""
        return self._pid

    async def ready(self) -> None:
        """It was awaited by `launch`."""

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        status = await self._server.wait()
        await self._server.stop()  # reads the rest of its log
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it is gone."""
        if self._server.pid == self._pid:
            os.kill(self._pid, number)

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of its log."""
        return tuple(self._server.log.splitlines()[-8:])


def children(engines: int, *, endpoints: bool = False, gateway: bool = False) -> list[Child]:
    """The processes of a machine, each after those that it needs. They stop the other way round."""
    others = [Child("endpoints", needs=("nats",), rank=2, grace=ENGINE_GRACE)] if endpoints else []
    door = [Child("gateway", needs=("nats",), rank=3, grace=GATEWAY_GRACE)] if gateway else []
    return [
        Child("nats", rank=0, grace=5.0),
        Child("scheduler", needs=("nats",), rank=1, grace=5.0),
        *(
            Child(f"engine-{n}", needs=("nats",), rank=2, grace=ENGINE_GRACE, start_timeout=None)
            for n in range(1, engines + 1)
        ),
        *others,
        *door,
    ]


def programs(
    nats: NatsProgram,
    environment: Callable[[Role], Mapping[str, str]],
    logs: Path,
    *,
    engines: int,
    noop: bool,
    models: Sequence[str] = (),
    gateway: socket.socket | None = None,
) -> dict[str, Program]:
    """How each of `children` is started, or would be. `environment` is that of a process in a role; `logs` the folder of their
    log files; `models` are given to the engines in turn, where there are any; `gateway` is the socket on
    which the gateway listens."""
    options = ("--noop",) if noop else ()
    hosts = {
        name: ModuleProgram(
            *(ENGINE_HOST, "--name", name, *options),
            environment=partial(_of_engine, environment, models[n % len(models)] if models else None),
            log=logs / f"{name}.log",
        )
        for n, name in enumerate(f"engine-{n}" for n in range(1, engines + 1))
    }
    others = ModuleProgram(
        *(ENDPOINTS, "--name", "endpoint"),
        environment=partial(environment, Role.ENGINE),
        log=logs / "endpoints.log",
    )
    scheduler = ModuleProgram(SCHEDULER, environment=partial(environment, Role.SCHEDULER), log=logs / "scheduler.log")
    doors: dict[str, Program] = {}
    if gateway is not None:
        doors["gateway"] = ModuleProgram(
            *(GATEWAY, "--socket", str(gateway.fileno())),
            environment=partial(environment, Role.GATEWAY),
            log=logs / "gateway.log",
            passed=(gateway.fileno(),),
        )
    return {"nats": nats, "scheduler": scheduler, **hosts, "endpoints": others, **doors}


def _of_engine(environment: Callable[[Role], Mapping[str, str]], model: str | None) -> Mapping[str, str]:
    given = environment(Role.ENGINE)
    return given if model is None else {**given, "MYNA_MODEL": model}
