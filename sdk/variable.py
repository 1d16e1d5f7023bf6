"""Semantic variables: a name for a text that may not exist yet. A variable has one value, for ever.

A variable is passed to other calls as it is, or awaited. It can't be formatted into a string by accident: that would put
its name where its value is meant.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn

from myna.actors.messages import Cancellation, ErrorCode, Failure, Objective, Outcome, SessionId, Value, VarId
from myna.actors.plain import is_plain
from myna.sdk.errors import CallFailed, Cancelled, FunctionError, InvalidValue, MynaError, SessionClosed, TimedOut
from myna.sdk.schemas import Parse

if TYPE_CHECKING:
    from myna.sdk.session import Session


class Placeholder:
    """What all variables have in common: they can be inputs of calls, and they are no text."""

    __slots__ = ("__weakref__", "id", "name", "session_id")

    def __init__(self, session_id: SessionId, id_: VarId, name: str) -> None:
        self.session_id = session_id
        self.id = id_
        self.name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def __str__(self) -> NoReturn:
        self._refuse()

    def __format__(self, spec: str) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            f"variable {self.name!r} is not a text yet: await it to get its text, or pass it to a function as an input"
        )


End = Value | MynaError
"""What a reader gets at the end: the value, or the error that stands for it."""


class Variable(Placeholder):
    """A variable of an open session. Made by calls and by `Session.variable`; belongs to the session's event loop."""

    __slots__ = ("_callbacks", "_end", "_session", "call", "fresh", "function", "outcome", "parse")

    def __init__(
        self, session: Session, id_: VarId, name: str, *, fresh: bool, call: str = "", function: str = ""
    ) -> None:
        super().__init__(session.id, id_, name)
        self._session = session
        self._end: End | None = None
        self.outcome: Outcome | None = None
        self._callbacks: list[Callable[[], None]] = []
        self.fresh = fresh
        self.call = call
        self.function = function
        self.parse: Parse | None = None

    # --- reading ---

    @property
    def done(self) -> bool:
        """Whether this process knows how the variable ended."""
        return self._end is not None

    def __await__(self) -> Generator[Any, None, Any]:
        return self.get().__await__()

    async def get(self, *, objective: Objective | str | None = None, timeout: float | None = None) -> Any:
        """The text, or, if the output has a schema, the object. `objective` says what the reader cares for, and counts for all
        that the variable needs; `timeout` is in seconds. Raises `CallFailed`, `Cancelled`, `SessionClosed`, `TimedOut`,
        `SubmitFailed`, and `InvalidValue` where a type refuses what its schema lets through."""
        await self.value(objective=objective, timeout=timeout)
        return self.read()

    async def value(self, *, objective: Objective | str | None = None, timeout: float | None = None) -> Value:
        """The whole value: text, parsed JSON, tokens, usage, log-probabilities. Otherwise like `get`."""
        if self._end is None:
            try:
                async with asyncio.timeout(timeout):
                    await self._session.wait((self,), objective)
            except TimeoutError:
                if self._end is None:
                    raise TimedOut(
                        f"variable {self.name!r} had no value after {timeout} seconds; it may still come"
                    ) from None
        return self.result()

    async def json(self, *, objective: Objective | str | None = None, timeout: float | None = None) -> Any:
        """The value's JSON, parsed from the text if the writer did not parse it. Raises ValueError if it is none."""
        value = await self.value(objective=objective, timeout=timeout)
        return json.loads(value.text) if value.json is None else value.json

    def stream(self, *, objective: Objective | str | None = None) -> AsyncGenerator[str, None]:
        """The text in pieces as it is generated. A late reader gets first what went before; nothing comes twice and nothing is
        left out. Where no stream was kept, the text comes in one piece. It ends when the value is there, and is what was read;
        where servers have lost what was stored, and the value is another text, it raises `StreamBroken`. Else raises like `get`.
        """
        return self._session.stream(self, objective)

    def result(self) -> Value:
        """The value, if `done`. Raises what reading raises; asyncio.InvalidStateError if the variable has not ended."""
        match self._end:
            case Value() as value:
                return value
            case None:
                raise asyncio.InvalidStateError(f"variable {self.name!r} has not ended: await it")
            case error:
                raise error.with_traceback(None)  # readers share the error, not how each came to it

    def read(self) -> Any:
        """What `get` returns, if `done`. Raises like it; asyncio.InvalidStateError if the variable has not ended."""
        text = self.result().text
        if self.parse is None:
            return text
        try:
            return self.parse(text)
        except (ValueError, TypeError) as error:  # pydantic's and msgspec's are ValueErrors
            raise InvalidValue(
                f"variable {self.name!r} has the value {text[:200]!r}, which its type refuses: {error}"
            ) from error

    # --- writing ---

    async def set(self, value: Any) -> None:
        """Give the variable its value: a text, or JSON data. Setting an equal value again does nothing. Raises `AlreadySet` if it
        has another, `codec.TooLarge`, `FunctionError` if `value` is neither, `bus.Unavailable` if the network is gone."""
        await self._session.set(self, as_value(value, f"variable {self.name!r}"))

    # --- inside: for the session ---

    @property
    def session(self) -> Session:
        """The session that this object belongs to."""
        return self._session

    @property
    def failed(self) -> bool:
        """Whether the variable has ended without a value."""
        return isinstance(self._end, MynaError)

    @property
    def awaited(self) -> bool:
        """Whether somebody here waits for it now."""
        return bool(self._callbacks)

    def end_with(self, end: End, outcome: Outcome | None = None) -> None:
        """The session learnt how the variable ended, and from which `outcome`, if there is one. The first call counts."""
        if self._end is not None:
            return
        self._end, self.outcome = end, outcome
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back when the variable has ended; at once if it has."""
        if self._end is not None:
            callback()
        else:
            self._callbacks.append(callback)

    def off_end(self, callback: Callable[[], None]) -> bool:
        """Withdraw a callback; returns whether somebody else still waits."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)
        return bool(self._callbacks)


def as_value(value: Any, what: str) -> Value:
    """`value` as a variable's value: a string as it is, other JSON data as its JSON text with the data beside it.
    Raises `FunctionError`, naming `what`."""
    if isinstance(value, Value):
        return value
    if isinstance(value, str):
        return Value(text=value)
    if not is_plain(value):
        raise FunctionError(f"{what} can only hold text or JSON data, not {type(value).__name__}")
    return Value(text=json.dumps(value, ensure_ascii=False), json=value)


def as_end(variable: str, outcome: Outcome) -> End:
    """What a reader of `variable` gets for `outcome`."""
    match outcome:
        case Value():
            return outcome
        case Failure(code=ErrorCode.SESSION_CLOSED):
            return SessionClosed(f"variable {variable!r} has no value: {outcome.message}")
        case Failure():
            return CallFailed(variable, outcome)
        case Cancellation():
            return Cancelled.of(variable, outcome)
