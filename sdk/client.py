"""Connections: where sessions come from.

    async with myna.session() as s: …                     what is configured, a running `myna up`, or a machine of our own
    async with myna.connect("nats://host:4222") as c: …   one connection for many sessions, and the default inside the block

The default connection of an event loop opens with its first session and closes with its last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, Unpack
from weakref import WeakKeyDictionary

from myna.actors import codec, config, logs, subjects
from myna.actors.bus import Bus
from myna.actors.messages import CallReasons, Explanation, SessionId, Status, StatusRequest, Tenant, Why, WorkerKind
from myna.actors.subjects import Question
from myna.sdk.errors import FunctionError
from myna.sdk.graphs.display import asked
from myna.sdk.graphs.model import Graph
from myna.sdk.session import ClientSource, Session, SessionOptions
from myna.sdk.shared import SharedSession, opened
from myna.sdk.variable import Placeholder


class Connected(Protocol):
    """Who wants to know of a connection that was lost and is back."""

    def lost(self) -> None:
        """Messages may have been lost."""

    async def close(self) -> None:
        """The connection is about to be closed."""


@dataclass(frozen=True, slots=True)
class Credential:
    """As whom to connect: by user and password, or by a credentials file."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    file: Path | None = None


class Client:
    """A connection, made by `connect`: `async with connect() as client`, or `await connect()` and `await client.close()`.

    With a `bus` it is used as it is, and left open.
    """

    def __init__(
        self,
        address: str | None = None,
        credential: Credential | None = None,
        *,
        tenant: str | None = None,
        name: str = "myna-sdk",
        bus: Bus | None = None,
    ) -> None:
        self._address = address
        self._credential = credential
        self._name = name
        self._given = bus
        self._bus: Bus | None = bus
        self._tenant = tenant
        self._connected_by: config.Settings | None = None
        self._opening = asyncio.Lock()
        self._readers: set[Connected] = set()
        self._token: Token[Client | None] | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self.open().__await__()

    async def open(self) -> Client:
        """Connect, if that is not done. Raises `bus.Unavailable`, `bus.NotAllowed`, `ConfigError`, `NotReady`."""
        async with self._opening:
            if self._bus is None:
                logs.calm()
                settings = await self._settings()
                self._tenant = self._tenant or settings.tenant
                self._bus = await config.connect_bus(settings, self._name, on_reconnect=self.reconnected)
                self._connected_by = settings
        return self

    async def _settings(self) -> config.Settings:
        settings = config.with_tenant(config.read(), self._tenant)
        if self._address is not None:
            who = self._credential or Credential()
            tls = None if settings.address is None else settings.address.tls
            address = config.Address(self._address, who.user, who.password, who.file, tls)
            return config.with_address(settings, address)
        from myna.actors.machine import home

        located = home.located(settings)
        if located.address is not None:
            return located
        from myna.sdk.embedded import embedded_settings

        return await embedded_settings(settings)

    async def close(self) -> None:
        """Close the sessions that are still open, then the connection. Idempotent."""
        for reader in list(self._readers):
            await reader.close()
        bus, self._bus = self._bus, None
        if bus is not None and bus is not self._given:
            await bus.close()

    async def __aenter__(self) -> Self:
        await self.open()
        self._token = _CURRENT.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
        await self.close()

    def session(self, name: str = "session", **options: Unpack[SessionOptions]) -> Session:
        """A new session, to be opened with `async with`; see `Session`."""
        return Session(self._use, name, **options)

    def attach(self, session_id: str) -> Session:
        """A session that another process has opened, to read, set and submit in it. Leaving it does not close it."""
        return Session(self._use, session_id, attach_to=session_id)

    def shared(self, owner: str, session_id: str) -> AbstractAsyncContextManager[SharedSession]:
        """Another tenant's session, for `async with`, to read what the operator lets this tenant read of it; see `sdk.shared`."""
        return opened(self, owner, session_id)

    async def models(self, *, timeout: float = 5.0) -> tuple[str, ...]:
        """The names of models that engines serve now. Raises `bus.Unavailable`."""
        subject = subjects.ask(self.tenant, Question.STATUS)
        answer = await self.bus.request(subject, codec.encode(StatusRequest()), timeout=timeout)
        seen: Status = codec.decode(answer.data, Status)
        return tuple(dict.fromkeys(name for w in seen.workers if w.kind is WorkerKind.ENGINE for name in w.serves))

    async def why(
        self, call: Placeholder | str, *, session: str | None = None, timeout: float = 5.0
    ) -> tuple[CallReasons, ...]:
        """Why a call, named by its id or by a variable that it makes, runs where and when it does, or what it waits for: what the
        leading scheduler knows, for each session with a call of that id. Nothing for a call that it does not know. Raises
        `FunctionError` for a variable that no call of this process makes, `bus.Unavailable`."""
        name = call if isinstance(call, str) else getattr(call, "call", "")
        if not name:
            raise FunctionError(f"{call!r} is made by no call of this process: give the call's id")
        if isinstance(call, Placeholder):
            session = call.session_id
        question = codec.encode(Why(call=subjects.token(name, "call"), session=session))
        answer = await self.bus.request(subjects.ask(self.tenant, Question.WHY), question, timeout=timeout)
        return codec.decode(answer.data, Explanation).calls

    # --- for sessions ---

    @property
    def bus(self) -> Bus:
        """The open connection."""
        if self._bus is None:
            raise RuntimeError("this client is not connected: use `async with myna.connect()`")
        return self._bus

    @property
    def tenant(self) -> Tenant:
        """Whose sessions these are."""
        return Tenant(self._tenant or "default")

    async def ask_graph(self, session: SessionId) -> Graph:
        """The graph of a session, asked for on a connection of its own, in whatever event loop runs this. Raises `FunctionError`
        where the connection was given."""
        if self._connected_by is None:
            raise FunctionError("this client was given its connection, and can't make another")
        return await asked(self._connected_by, self.tenant, session)

    async def _use(self) -> Client:
        return await self.open()

    async def leave(self) -> None:
        """A session that used this client has ended."""

    def remember(self, reader: Connected) -> None:
        """Tell `reader` of lost messages."""
        self._readers.add(reader)

    def forget(self, reader: Connected) -> None:
        """Tell `reader` no more."""
        self._readers.discard(reader)

    def reconnected(self) -> None:
        """The connection was lost and is back. Whoever gives the client a `bus` tells it so."""
        for reader in list(self._readers):
            reader.lost()


_CURRENT: ContextVar[Client | None] = ContextVar("myna_client", default=None)


class _DefaultClient(Client):
    """The client that the sessions of one event loop share: open while there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()
        self._users = 0

    async def _use(self) -> Client:
        async with self._lock:
            await self.open()
            self._users += 1
        return self

    async def leave(self) -> None:
        """Close after the last one."""
        async with self._lock:
            self._users -= 1
            if self._users == 0:
                await self.close()


_DEFAULTS: WeakKeyDictionary[asyncio.AbstractEventLoop, _DefaultClient] = WeakKeyDictionary()


async def _current_or_default() -> Client:
    current = _CURRENT.get()
    if current is not None:
        return await current.open()
    return await default_client()


async def default_client() -> Client:
    """The default connection of the running event loop, opened if it is not; whoever gets it leaves it again."""
    loop = asyncio.get_running_loop()
    client = _DEFAULTS.get(loop)
    if client is None:
        client = _DEFAULTS[loop] = _DefaultClient()
    return await client._use()


def connect(
    address: str | None = None,
    *,
    user: str | None = None,
    password: str | None = None,
    credentials: str | Path | None = None,
    tenant: str | None = None,
    name: str = "myna-sdk",
    bus: Bus | None = None,
) -> Client:
    """A connection to `address` (`nats://host:port`, several separated by commas), else to what MYNA_URL says, else to the
    running `myna up`, else to a machine of this process's own. `credentials` is a credentials file, in place of `user` and
    `password`. To be opened with `async with` or `await`; see `Client`."""
    file = None if credentials is None else Path(credentials)
    credential = Credential(user, password, file) if user is not None or file is not None else None
    return Client(address, credential, tenant=tenant, name=name, bus=bus)


_SOURCE: ClientSource = _current_or_default


def session(name: str = "session", **options: Unpack[SessionOptions]) -> Session:
    """A new session on the current connection, or on the default one: `async with myna.session() as s`. See `Session`."""
    return Session(_SOURCE, name, **options)


def attach(session_id: str) -> Session:
    """The session of this id on the current or default connection; see `Client.attach`."""
    return Session(_SOURCE, session_id, attach_to=session_id)
