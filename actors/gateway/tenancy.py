"""One tenant's sessions, as this process holds them: one that single calls share, and those that clients work in.

Laws:
- Nothing here is more than a cache: a session that is not held is attached anew, by any gateway.
- A single call runs in a session that it shares with others, because a session of its own would cost more than the call. Such a
  session takes so many calls, or lives so long, then another follows; it is closed when its last call has ended. Calls that are
  not joined by a result are strangers to the scheduler, whatever session they are in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from myna.actors import codec, logs, subjects
from myna.actors.bus import Bus, BusError
from myna.actors.messages import (
    PROTOCOL,
    Close,
    Explanation,
    GraphRequest,
    GraphView,
    LogEntry,
    Open,
    Outcome,
    SessionId,
    Status,
    StatusRequest,
    Tenant,
    VarId,
    Why,
    WorkerKind,
)
from myna.actors.subjects import Question
from myna.actors.telemetry import context
from myna.actors.watch.history import History
from myna.sdk import ids
from myna.sdk.client import Client
from myna.sdk.errors import MynaError, SessionClosed
from myna.sdk.session import Session
from myna.sdk.variable import Variable

SHARED_CALLS = 1024
"""Single calls of one shared session."""
SHARED_SECONDS = 120.0
"""Age at which a shared session takes no more calls."""
SHARED_TTL = 120.0
"""Seconds after which a shared session ends whose gateway is gone."""
IDLE = 60.0
"""Seconds for which an attached session that nobody uses is kept."""
MODELS_FOR = 5.0
"""Seconds for which it is believed which models are served."""
QUESTION_TIMEOUT = 5.0
"""Seconds for an answer of the scheduler."""

_REPLICA_PAUSES = (0.0, 0.05, 0.2)
"""A replica may not have yet what was just stored."""

_log = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs something for which nobody waits, to its end."""


@dataclass(slots=True, eq=False)
class _Held:
    """A session and how many requests use it."""

    session: Session
    since: float
    users: int = 0
    calls: int = 0
    retired: bool = False


class Tenancy:
    """See the module. `spawn` runs what outlives a request; `history` is what engines have shown lately."""

    def __init__(self, bus: Bus, tenant: Tenant, spawn: Spawn, history: History) -> None:
        self.tenant = tenant
        self.history = history
        self.client = Client(bus=bus, tenant=tenant)
        self._bus = bus
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._shared: _Held | None = None
        self._opening = asyncio.Lock()
        self._renewing = False
        self._attached: dict[SessionId, _Held] = {}
        self._attaching: dict[SessionId, asyncio.Lock] = {}
        self._models: tuple[float, tuple[str, ...]] | None = None

    # --- single calls ---

    @asynccontextmanager
    async def single(self) -> AsyncIterator[Session]:
        """A session for the calls of one request that belong to no application. A request that is traced has one of its own: a
        session has one trace. Raises `BusError`."""
        here = context.CURRENT.get()
        held = await (self._shared_session() if here is None or not here.recorded else self._open_own())
        logs.ABOUT.set((self.tenant, held.session.id))  # for what is left of the request, which has a task of its own
        held.users += 1
        held.calls += 1
        try:
            yield held.session
        finally:
            held.users -= 1
            if held.retired and not held.users:
                self._spawn(held.session.close())

    async def _shared_session(self) -> _Held:
        held = self._shared
        if held is None or held.session.closed:
            async with self._opening:
                held = self._shared
                if held is None or held.session.closed:
                    held = self._shared = await self._open_shared()
            return held
        old = held.calls >= SHARED_CALLS or self._loop.time() - held.since >= SHARED_SECONDS
        if old and not self._renewing:
            self._renewing = True
            self._spawn(self._renew(held))
        return held

    def retire(self, session: Session) -> None:
        """A shared session has ended elsewhere: the next call gets another. The last of its users, of whom the caller is one,
        leaves it."""
        held = self._shared
        if held is not None and held.session is session:
            self._shared, held.retired = None, True

    async def has_ended(self, session: Session) -> bool:
        """Whether the scheduler knows a session no more; it is believed to live while nobody can say."""
        try:
            await self.graph(session.id)
        except SessionClosed:
            return True
        except BusError:
            pass
        return False

    async def _renew(self, old: _Held) -> None:
        """Put a new shared session in the place of `old`, which ends with its last user."""
        try:
            fresh = await self._open_shared()
        except (BusError, MynaError) as error:
            _log.warning("session_not_renewed", tenant=self.tenant, reason=str(error))
            return
        finally:
            self._renewing = False
        replaced = self._shared or old  # `old` may have ended meanwhile, and another have taken its place
        self._shared = fresh
        replaced.retired = True
        if not replaced.users:
            await replaced.session.close()

    async def _open_shared(self) -> _Held:
        token = context.CURRENT.set(None)  # it is part of no caller's trace
        try:
            return _Held(await self._opened(), self._loop.time())
        finally:
            context.CURRENT.reset(token)

    async def _open_own(self) -> _Held:
        """One that ends with its only user."""
        return _Held(await self._opened(), self._loop.time(), retired=True)

    async def _opened(self) -> Session:
        session = self.client.session("http", ttl=SHARED_TTL)
        await session.open()
        return session

    # --- sessions of clients ---

    async def open(
        self, name: str, *, id: str | None = None, lazy: bool = False, ttl: float = 3600.0, priority: int = 0
    ) -> SessionId:
        """Begin a session that lives until it is closed, or idle for `ttl` seconds. Opening one again changes nothing.
        Raises `BusError`."""
        session = SessionId(subjects.token(id, "session") if id is not None else ids.new(name))
        entry = Open(protocol=PROTOCOL, lazy=lazy, ttl=ttl, priority=priority, name=name)
        subject = subjects.log(self.tenant, session)
        await self._bus.append(subject, codec.encode(entry), message_id=f"{subject}:open", headers=context.outgoing())
        return session

    async def end(self, id_: str, reason: str) -> None:
        """Close a session: what is unfinished is cancelled, and all is forgotten. Raises `InvalidName`, `BusError`."""
        await self.say(id_, Close(reason=reason))
        held = self._attached.pop(SessionId(id_), None)
        if held is not None:
            await held.session.close()

    async def say(self, id_: str, entry: LogEntry) -> None:
        """Append an entry to a session's log. Raises `InvalidName`, `BusError`, `TooLarge`."""
        subject = subjects.log(self.tenant, SessionId(id_))
        await self._bus.append(subject, codec.encode(entry), message_id=ids.new("say"))

    async def ensure(self, id_: str, *, lazy: bool = False) -> None:
        """Open the session that a client has named, unless it is held here, and so is open. Raises `BusError`."""
        if SessionId(id_) not in self._attached:
            await self.open(id_, id=id_, lazy=lazy)

    @asynccontextmanager
    async def session(self, id_: str) -> AsyncIterator[Session]:
        """The session of this id, made by anybody. Raises `InvalidName`, `SessionClosed` where there is none, `BusError`."""
        held = await self._attach(SessionId(subjects.token(id_, "session")))
        logs.ABOUT.set((self.tenant, held.session.id))
        held.users += 1
        try:
            yield held.session
        finally:
            held.users -= 1
            held.since = self._loop.time()

    async def _attach(self, id_: SessionId) -> _Held:
        held = self._attached.get(id_)
        if held is not None and not held.session.closed:
            return held
        lock = self._attaching.setdefault(id_, asyncio.Lock())
        try:
            async with lock:
                held = self._attached.get(id_)
                if held is None or held.session.closed:
                    await self._check(id_)
                    session = self.client.attach(id_)
                    await session.open()
                    held = self._attached[id_] = _Held(session, self._loop.time())
        finally:
            if not lock.locked():
                self._attaching.pop(id_, None)
        return held

    async def _check(self, id_: SessionId) -> None:
        subject = subjects.log(self.tenant, id_)
        for pause in _REPLICA_PAUSES:
            await asyncio.sleep(pause)
            stored = await self._bus.get(subjects.LOG, subject)
            if stored is not None:
                break
        else:
            raise SessionClosed(f"there is no session {id_!r}: it was never opened, or ended some time ago")
        if isinstance(codec.decode(stored.data, LogEntry), Close):
            raise SessionClosed(f"session {id_!r} has ended")

    async def forget_idle(self) -> None:
        """Leave the attached sessions that nobody has used for a while."""
        now = self._loop.time()
        for id_, held in list(self._attached.items()):
            if not held.users and now - held.since >= IDLE:
                del self._attached[id_]
                await held.session.close()

    def abandon(self, session: Session, *variables: Variable) -> None:
        """Their reader has left: cancel the calls that make these variables, unless they have ended."""
        left = [v for v in variables if not v.done]
        if left and not session.closed:
            self._spawn(_cancel(session, left))

    # --- what the scheduler knows ---

    async def status(self) -> Status:
        """What the scheduler sees of this tenant. Raises `BusError`."""
        return codec.decode(await self._ask(Question.STATUS, StatusRequest()), Status)

    async def overview(self) -> Status:
        """What the scheduler sees of everybody: for the operator. Raises `BusError`."""
        answer = await self._bus.request(subjects.STATUS, codec.encode(StatusRequest()), timeout=QUESTION_TIMEOUT)
        return codec.decode(answer.data, Status)

    async def graph(self, id_: str) -> GraphView:
        """A session's graph as it stands. Raises `SessionClosed`, `BusError`."""
        request = GraphRequest(session=subjects.token(id_, "session"))
        graph: GraphView = codec.decode(await self._ask(Question.GRAPH, request), GraphView)
        if not graph.found:
            raise SessionClosed(f"session {id_!r} is not open")
        return graph

    async def why(self, id_: str, call: str) -> Explanation:
        """Why a call is where it is. Raises `BusError`."""
        return codec.decode(await self._ask(Question.WHY, Why(call=call, session=id_)), Explanation)

    async def _ask(self, question: Question, what: StatusRequest | GraphRequest | Why) -> bytes:
        subject = subjects.ask(self.tenant, question)
        return (await self._bus.request(subject, codec.encode(what), timeout=QUESTION_TIMEOUT)).data

    async def outcome(self, id_: str, variable: VarId) -> Outcome | None:
        """How a variable has ended, None if it has not. Raises `BusError`, `WireError`."""
        subject = subjects.write(self.tenant, SessionId(id_), variable)
        stored = await self._bus.get(subjects.VALUES, subject)
        if stored is None:
            return None
        outcome: Outcome = codec.decode(stored.data, Outcome)
        return outcome

    async def models(self) -> tuple[str, ...]:
        """The models that engines serve now. Raises `BusError`."""
        status = await self.status()
        engines = [w for w in status.workers if w.kind is WorkerKind.ENGINE]
        names = tuple(dict.fromkeys(name for w in engines for name in w.serves))
        self._models = (self._loop.time(), names)
        return names

    async def serves(self, model: str) -> bool:
        """Whether some engine serves `model`: known for a moment, asked for after that. Raises `BusError`."""
        if self._models is not None:
            asked, names = self._models
            if model in names and self._loop.time() - asked < MODELS_FOR:
                return True
        return model in await self.models()

    async def close(self) -> None:
        """Leave all sessions; close those that are this gateway's own."""
        await self.client.close()
        for held in [*self._attached.values(), *([self._shared] if self._shared else [])]:
            await held.session.close()


def check_stored(made: Any) -> None:
    """Raise what kept calls from being stored; `made` is what submitting them returned, flushed."""
    if not isinstance(made, Variable):
        for item in made:
            check_stored(item)
    elif made.failed and made.outcome is None:
        made.result()


async def _cancel(session: Session, variables: list[Variable]) -> None:
    try:
        await session.cancel(*variables, reason="the client has left")
    except (BusError, MynaError) as error:
        _log.info("not_cancelled", session=session.id, reason=str(error))
