"""The SDK for code without an event loop: the same sessions and variables, with calls that wait.

    with myna.sync.session() as s:
        print(summarize(text).get())

An event loop in a thread of its own does the work. In async code use the async SDK: these calls would block its loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from myna.actors.messages import Objective, Value
from myna.sdk import client as clients
from myna.sdk.client import Client
from myna.sdk.current import CURRENT, leave
from myna.sdk.errors import WrongLoop
from myna.sdk.graphs.display import Picture, bundle
from myna.sdk.graphs.model import Graph
from myna.sdk.outputs import Outputs, mapped
from myna.sdk.session import Session, SessionOptions, gather
from myna.sdk.threads import LoopThread
from myna.sdk.variable import Placeholder, Variable

T = TypeVar("T")


class SyncVariable(Placeholder):
    """A variable, read and set by calls that wait; see `Variable` for what they do and raise."""

    __slots__ = ("_owner", "_variable")

    def __init__(self, owner: SyncSession, variable: Variable) -> None:
        super().__init__(variable.session_id, variable.id, variable.name)
        self._owner = owner
        self._variable = variable

    @property
    def done(self) -> bool:
        """Whether this process knows how the variable ended."""
        return self._variable.done

    def get(self, *, objective: Objective | str | None = None, timeout: float | None = None) -> Any:
        """The text, or the object."""
        return self._owner.wait_for(self._variable.get(objective=objective, timeout=timeout))

    def value(self, *, objective: Objective | str | None = None, timeout: float | None = None) -> Value:
        """The whole value."""
        return self._owner.wait_for(self._variable.value(objective=objective, timeout=timeout))

    def json(self, *, objective: Objective | str | None = None, timeout: float | None = None) -> Any:
        """The value's JSON."""
        return self._owner.wait_for(self._variable.json(objective=objective, timeout=timeout))

    def stream(self, *, objective: Objective | str | None = None) -> Iterator[str]:
        """The text in pieces as it is generated."""
        pieces = self._variable.stream(objective=objective)
        try:
            while (piece := self._owner.wait_for(_next(pieces))) is not None:
                yield piece
        finally:
            self._owner.wait_for(pieces.aclose())

    def set(self, value: Any) -> None:
        """Give the variable its value."""
        self._owner.wait_for(self._variable.set(value))

    @property
    def variable(self) -> Variable:
        """The variable itself, which belongs to the session's event loop."""
        return self._variable


async def _next(pieces: Any) -> str | None:
    piece: str | None = await anext(pieces, None)
    return piece


class SyncSession:
    """A session for `with`; made by `session`. See `Session`."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._loop = loop
        self._token: contextvars.Token[Any] | None = None

    @classmethod
    def of(cls, session: Session, loop: asyncio.AbstractEventLoop) -> SyncSession:
        """A view, for another thread, of a session that is open in `loop`."""
        return cls(session, loop)

    @property
    def id(self) -> str:
        """The session's id."""
        return self._session.id

    def __enter__(self) -> Self:
        self.wait_for(self._session.open())
        self._token = CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            leave(self._token)
        self.wait_for(self._session.close("the application failed" if error is not None else ""))

    def graph(self) -> Picture:
        """The graph of the session as its scheduler sees it now; a notebook shows it."""
        return self.wait_for(self._session.graph())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        async def graph() -> Graph:
            seen = asyncio.run_coroutine_threadsafe(self._session.graph(), self._loop)
            return (await asyncio.wrap_future(seen)).graph

        return bundle(repr(self._session), graph)

    def submit(self, prepared: Any) -> Any:
        """Submit a prepared call; functions call this."""
        return self._wrap(self.wait_for(_async(lambda: self._session.submit(prepared))))

    def variable(self, name: str = "variable") -> SyncVariable:
        """Declare a variable."""
        return SyncVariable(self, self.wait_for(_async(lambda: self._session.variable(name))))

    def lookup(self, variable_id: str, name: str | None = None) -> SyncVariable:
        """The variable of this id."""
        return SyncVariable(self, self.wait_for(_async(lambda: self._session.lookup(variable_id, name))))

    def gather(
        self, *variables: SyncVariable, objective: Objective | str | None = None, timeout: float | None = None
    ) -> list[Any]:
        """What `get` of each of `variables` returns, in their order."""
        return self.wait_for(gather(*(v.variable for v in variables), objective=objective, timeout=timeout))

    def cancel(self, *variables: Placeholder, reason: str = "") -> None:
        """Cancel the calls that make `variables`; without any: all that is unfinished."""
        self.wait_for(self._session.cancel(*variables, reason=reason))

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the session's event loop, and wait for it. Raises `WrongLoop` in async code."""
        if _in_event_loop():
            work.close()
            raise WrongLoop("this would block the event loop that runs here: use the async SDK (myna.session)")
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def _wrap(self, made: Any) -> Any:
        match made:
            case Variable():
                return SyncVariable(self, made)
            case Outputs():
                return mapped(made, self._wrap)
            case _:
                return [self._wrap(item) for item in made]


async def _async(work: Any) -> Any:
    return work()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_LOCK = threading.Lock()
_thread: LoopThread | None = None


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all synchronous sessions; it ends with the process."""
    global _thread
    with _LOCK:
        if _thread is None:
            _thread = LoopThread("myna-sync")
        return _thread.loop


def session(name: str = "session", *, client: Client | None = None, **options: Unpack[SessionOptions]) -> SyncSession:
    """A new session for `with`, on the default connection or on `client`. See `myna.session`."""
    source = client.open if client is not None else clients.default_client
    return SyncSession(Session(source, name, **options), _loop())


def attach(session_id: str, *, client: Client | None = None) -> SyncSession:
    """A session that another process has opened; see `myna.attach`."""
    source = client.open if client is not None else clients.default_client
    return SyncSession(Session(source, session_id, attach_to=session_id), _loop())
