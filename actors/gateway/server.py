"""The gateway's process: one connection to the network, one socket for HTTP, and an end that leaves nobody without an answer.

Law: all its tasks belong to one owner. When it is told to end, it takes no new requests, finishes those that it has, for `DRAIN`
seconds at most, and closes its sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from myna.actors.bus import Bus
from myna.actors.config import ConfigError, GatewaySettings
from myna.actors.gateway.app import Gate, Rules, build
from myna.actors.gateway.keys import Keys
from myna.actors.gateway.tenancy import Tenancy
from myna.actors.messages import Tenant
from myna.actors.telemetry.request_traces import RequestTraces
from myna.actors.watch.watcher import Watcher
from myna.sdk.client import Client

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from myna.actors.telemetry.request_meters import RequestMeters
    from myna.actors.telemetry.traces import Writer

DRAIN = 20.0
"""Seconds for the requests that run when the gateway is told to end."""
SWEEP = 20.0
"""Seconds between two looks for what nobody uses any more."""
BACKLOG = 2048
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_log = structlog.get_logger(__name__)


class Gateway:
    """Serves HTTP on `bus`. `run` ends when `stop` was called and all is done; `ready` is set when it listens at `url`."""

    def __init__(
        self,
        bus: Bus,
        settings: GatewaySettings,
        tenant: str,
        meters: RequestMeters | None = None,
        writer: Writer | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        """`meters` and `writer` take figures and spans of requests; `listener` is a socket to listen on, in place of its own.
        Raises `ConfigError`: for a bad table of keys, or none where strangers could ask."""
        keys = Keys(settings.keys, tenant, settings.rate, time.monotonic)
        local = settings.host in LOOPBACK
        if not local and not keys.needed:
            raise ConfigError(
                f"gateway.host is {settings.host!r}: a gateway that others can reach needs a table of API keys (gateway.keys)"
            )
        self._bus = bus
        self._meters = meters
        self._writer = writer
        self._watcher = Watcher(bus)
        self._settings = settings
        self._listener = listener
        self._keys = keys
        self._tenancies: dict[Tenant, Tenancy] = {}
        self._tasks: asyncio.TaskGroup
        self._server: uvicorn.Server | None = None
        self._stopping = asyncio.Event()
        self._rules = Rules(keys, settings.max_body, settings.timeout, settings.origins, local)
        self.ready = asyncio.Event()
        self.url = ""

    async def run(self) -> None:
        """Serve until `stop`. Raises `OSError` where the port is taken."""
        with self._listener or _listen(self._settings.host, self._settings.port or 0) as listener:
            host, port = listener.getsockname()[:2]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            async with asyncio.TaskGroup() as self._tasks:
                sweeping = self._tasks.create_task(self._sweep())
                await self._watcher.start()
                try:
                    await self._serve(listener)
                finally:
                    sweeping.cancel()
                    await self._watcher.stop()
                    for tenancy in self._tenancies.values():
                        await tenancy.close()

    def stop(self) -> None:
        """Take no new requests, finish those that run, then end."""
        self._stopping.set()

    def reconnected(self) -> None:
        """The connection was lost and is back."""
        for tenancy in self._tenancies.values():
            tenancy.client.reconnected()

    @property
    def clients(self) -> list[Client]:
        """The SDK's clients, one for each tenant that has asked."""
        return [tenancy.client for tenancy in self._tenancies.values()]

    async def _serve(self, listener: socket.socket) -> None:
        gate = Gate(self._rules, self._tenancy, self._known)
        app: ASGIApp = RequestTraces(build(gate, self._is_ready), self._writer)
        config = uvicorn.Config(
            app if self._meters is None else self._meters.around(app),
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(DRAIN),
            server_header=False,
            date_header=False,
        )
        server = _Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        stopping = asyncio.ensure_future(self._stopping.wait())
        starting = asyncio.ensure_future(server.listening.wait())
        try:
            await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                _log.info("gateway listens", url=self.url)
                self.ready.set()
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
        finally:
            for task in (serving, stopping, starting):
                task.cancel()
            await asyncio.wait((serving, stopping, starting))

    def _is_ready(self) -> bool:
        return self._bus.connected and not self._stopping.is_set()

    def _tenancy(self, tenant: Tenant) -> Tenancy:
        tenancy = self._tenancies.get(tenant)
        if tenancy is None:
            tenancy = self._tenancies[tenant] = Tenancy(self._bus, tenant, self._spawn, self._watcher.history)
        return tenancy

    def _known(self) -> Iterator[Tenant]:
        yield from self._keys.tenants

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(_guarded(work))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            for tenancy in list(self._tenancies.values()):
                await _guarded(tenancy.forget_idle())


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """What nobody waits for may fail without ending the gateway."""
    try:
        await work
    except Exception:
        _log.exception("background_work_failed")


class _Server(uvicorn.Server):
    """Without handlers of signals, which belong to the process; and it says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.listening.set()


def _listen(host: str, port: int) -> socket.socket:
    """A socket at a port, which nobody need be told of before the server listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named for asyncio, which sets TCP_NODELAY only where it is: without, an answer waits for an ACK, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener
