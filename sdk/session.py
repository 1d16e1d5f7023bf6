"""Sessions: one application's calls and variables, from its opening to its end.

Law: whatever happens to a session, every variable that somebody waits for ends. All its tasks belong to one owner, which ends
with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict
from weakref import WeakValueDictionary

import structlog
from msgspec.structs import replace

from myna.actors import subjects
from myna.actors.bus import AlreadyAssigned
from myna.actors.messages import (
    Call,
    Cancel,
    Close,
    Declare,
    ModelCall,
    Objective,
    Outcome,
    SessionId,
    Submit,
    Unwant,
    Value,
    VarId,
    Want,
)
from myna.sdk import ids
from myna.sdk.current import CURRENT, leave
from myna.sdk.errors import AlreadySet, FunctionError, SessionClosed, SubmitFailed, TimedOut, WrongLoop
from myna.sdk.graphs.display import Picture, bundle, graph_of
from myna.sdk.graphs.model import Graph
from myna.sdk.models import models_of
from myna.sdk.objectives import as_objective
from myna.sdk.outputs import Outputs
from myna.sdk.running import Running
from myna.sdk.variable import Placeholder, Variable, as_end

if TYPE_CHECKING:
    from myna.sdk.client import Client
    from myna.sdk.function import Prepared, Result

_log = structlog.get_logger(__name__)

ClientSource = Callable[[], Awaitable["Client"]]
"""Connects a session; the client is left again when the session ends."""


class SessionOptions(TypedDict, total=False):
    """What `Session` takes by name, for the functions that make one."""

    lazy: bool
    ttl: float
    priority: int
    objective: Objective | str | None
    memoise: bool
    cache: str
    keep: float
    model: str | Sequence[str]


class Session:
    """An open session, used as `async with`. Made by `myna.session`, `Client.session` and `attach`.

    In a session every result is wanted from the moment of its call, and only `cancel`, a failure, or the end of the session stops
    a call. A `lazy` session starts only what is awaited, with all that it needs; when nobody awaits it any more (the waiting was
    cancelled or timed out, a stream was left), what nobody else needs stops, and goes on when it is awaited again.

    A session whose process is gone expires after `ttl` seconds. `priority` counts for all its calls; `objective` for all results
    for which none is given; with `memoise`, identical calls of the tenant are computed once (see `function`); with `cache`, any
    word, it shares prefixes only with the tenant's sessions of the same word: timing tells it of no others. `model`, a name or
    several of which any will do, is that of the calls made through it whose functions name none. Leaving the block
    cancels what is unfinished and frees everything; a session that was attached is only left. What it stored can
    still be exported for `keep` seconds after its end.
    """

    def __init__(
        self,
        client: ClientSource,
        name: str = "session",
        *,
        lazy: bool = False,
        ttl: float = 3600.0,
        priority: int = 0,
        objective: Objective | str | None = None,
        memoise: bool = False,
        cache: str = "",
        keep: float = 0.0,
        model: str | Sequence[str] = (),
        attach_to: str | None = None,
    ) -> None:
        if not 0 < ttl <= 30 * 86400:
            raise FunctionError(f"ttl={ttl!r} must be more than 0 seconds and at most 30 days")
        if not 0 <= keep <= 30 * 86400:
            raise FunctionError(f"keep={keep!r} must be at least 0 seconds and at most 30 days")
        self.id = SessionId(subjects.token(attach_to, "session") if attach_to is not None else ids.new(name))
        self.name = name
        self.lazy = lazy
        self.ttl = ttl
        self.priority = priority
        self.objective = as_objective(objective)
        self.memoise = memoise
        self.cache = subjects.token(cache, "cache") if cache else ""
        self.keep = keep
        self.models = models_of(model, f"session {name!r}")
        self.attached = attach_to is not None
        self._client_source = client
        self._variables: WeakValueDictionary[VarId, Variable] = WeakValueDictionary()
        self._wanted: dict[VarId, set[Objective | None]] = {}
        self._state: Running | None = None
        self._ended: SessionClosed | None = None
        self._token: Any = None
        self._entries = 0
        self._nonce = ids.new("c")

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    # --- life ---

    async def __aenter__(self) -> Self:
        await self.open()
        self._token = CURRENT.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave(self._token)
        await self.close("the application failed" if error is not None else "")

    async def open(self) -> None:
        """Connect, and write the session's first entry. `async with` does this. Raises `bus.Unavailable`, `NotReady`."""
        if self._state is not None or self._ended is not None:
            raise SessionClosed(f"session {self.id} was opened before: ids are never used again")
        client = await self._client_source()
        try:
            self._state = await Running.start(self, client)
        except BaseException:
            await client.leave()
            raise

    async def close(self, reason: str = "") -> None:
        """End the session: what is unfinished is cancelled. Idempotent, and bounded in time."""
        state, self._state = self._state, None
        if state is None:
            return
        self._ended = self._ended or SessionClosed(f"session {self.id} is closed")
        try:
            await state.stop(None if self.attached else Close(reason=reason))
        finally:
            self._abandon(self._ended)
            await state.client.leave()

    def _abandon(self, error: SessionClosed) -> None:
        for variable in list(self._variables.values()):
            variable.end_with(error)

    def _open(self) -> Running:
        if self._ended is not None:
            raise SessionClosed(str(self._ended)) from self._ended.__cause__
        if self._state is None:
            raise SessionClosed(f"session {self.id} is not open: use `async with`")
        if self._state.loop is not _running_loop():
            raise WrongLoop(
                f"session {self.id} belongs to another event loop or thread; myna.sync has sessions for threads"
            )
        return self._state

    @property
    def closed(self) -> bool:
        """Whether the session has been closed here."""
        return self._ended is not None

    # --- calls and variables ---

    def submit(self, prepared: Prepared) -> Any:
        """Submit a prepared call; functions call this. Returns a variable, a list (`n > 1`), or `Outputs`."""
        state = self._open()
        self._check_inputs(prepared)
        items = [self._result(prepared, result) for result in prepared.results]
        call = prepared.call
        if self.memoise and prepared.memoise is None and isinstance(call, ModelCall):
            call = replace(call, memoise=True)
        if self.models and isinstance(call, ModelCall) and not call.models:
            call = replace(call, models=self.models)
        state.outbox.say(Submit(calls=(call,)))
        if len(items) == 1:
            return items[0]
        return Outputs((result.name for result in prepared.results), items)

    def _check_inputs(self, prepared: Prepared) -> None:
        for placeholder in prepared.used:
            if placeholder.session_id != self.id:
                raise FunctionError(
                    f"function {prepared.call.function!r}: variable {placeholder.id} belongs to session "
                    f"{placeholder.session_id}, not to {self.id}: await it, and pass its text"
                )

    def _result(self, prepared: Prepared, result: Result) -> Any:
        call = prepared.call
        made = [self._made(VarId(id_), result.name, call.id, call.function) for id_ in result.variables]
        for variable in made:
            variable.parse = result.parse
        return made[0] if result.single else made

    def _made(self, id_: VarId, name: str, call: str, function: str) -> Variable:
        """The variable that a call makes: a new one, or one that was declared and is bound to it."""
        variable = self._variables.get(id_) or self._variable(id_, name)
        variable.call, variable.function = call, function
        return variable

    def _variable(self, id_: VarId, name: str, *, fresh: bool = True) -> Variable:
        variable = self._variables[id_] = Variable(self, id_, name, fresh=fresh and not self.attached)
        return variable

    def variable(self, name: str = "variable") -> Variable:
        """Declare a variable, to be set by hand or bound to an output."""
        state = self._open()
        made = self._variable(VarId(ids.new(name)), name)
        state.outbox.say(Declare(variables=(made.id,)))
        return made

    def lookup(self, variable_id: str, name: str | None = None) -> Variable:
        """The variable of this id, made anywhere."""
        self._open()
        id_ = VarId(subjects.token(variable_id, "variable"))
        return self._variables.get(id_) or self._variable(id_, name or variable_id, fresh=False)

    def declare(self, variable_id: str, name: str | None = None) -> Variable:
        """The variable of this id, made known to the scheduler: somebody will set it, or a later call will make it. Declaring it
        again changes nothing."""
        variable = self.lookup(variable_id, name)
        self._open().outbox.say(Declare(variables=(variable.id,)))
        return variable

    def resubmit(self, calls: Iterable[Call]) -> None:
        """Submit calls as another session had them, ids and all; their inputs are known here."""
        self._open().outbox.say(*(Submit(calls=(call,)) for call in calls))

    async def gather(
        self, *variables: Variable, objective: Objective | str | None = None, timeout: float | None = None
    ) -> list[Any]:
        """What `get` of each of `variables` returns, in their order; the first failure ends the waiting. Raises like it."""
        return await gather(*variables, objective=objective, timeout=timeout)

    async def cancel(self, *variables: Placeholder, reason: str = "", upstream: bool = False) -> None:
        """Cancel the calls that make `variables`, and all that needs them; without any: all that is unfinished. With `upstream`
        also the calls whose results went into cancelled ones alone, and that nobody awaits now. Returns when the scheduler has
        been told; the variables end soon after. Raises `bus.Unavailable`."""
        state = self._open()
        calls: dict[str, None] = {}
        for variable in variables:
            known = self._variables.get(VarId(variable.id))
            if known is None or not known.call:
                raise FunctionError(
                    f"variable {variable.id} was not made by a call of this session object: nothing to cancel"
                )
            calls[known.call] = None
        if upstream and (awaited := [v for v in self._variables.values() if v.awaited]):
            state.outbox.say(Want(variables=tuple(v.id for v in awaited), reader=self._nonce))
        await state.outbox.tell(Cancel(calls=tuple(calls), reason=reason, upstream=upstream))

    async def flush(self) -> None:
        """Wait until all that was submitted so far is stored, or has failed."""
        await self._open().outbox.flush()

    # --- to look at ---

    async def graph(self) -> Picture:
        """The graph of the session as its scheduler sees it now; a notebook shows it. Raises `SessionClosed`,
        `bus.Unavailable`."""
        client = self._open().client
        return Picture(await graph_of(client.bus, client.tenant, self.id, held=True))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return bundle(repr(self), self._looked_at)

    async def _looked_at(self) -> Graph:
        """The graph, asked for in whatever event loop runs this."""
        if self._state is None:
            raise SessionClosed("it is not open")
        return await self._state.client.ask_graph(self.id)

    # --- for variables ---

    async def wait(self, variables: Sequence[Variable], objective: Objective | str | None = None) -> None:
        """Wait until all of `variables` have ended, or one of them in an error."""
        pending = [v for v in variables if not v.done]
        if not pending:
            return
        state = self._open()
        finished: asyncio.Future[None] = state.loop.create_future()
        left = len(pending)

        def ended(variable: Variable) -> None:
            nonlocal left
            left -= 1
            if (left == 0 or variable.failed) and not finished.done():
                finished.set_result(None)

        callbacks = [(v, _Callback(ended, v)) for v in pending]
        self._want(state, pending, as_objective(objective))
        try:
            for variable, callback in callbacks:
                self._attend(state, variable, callback)
            await finished
        finally:
            for variable, callback in callbacks:
                self._leave(variable, callback)

    def stream(self, variable: Variable, objective: Objective | str | None = None) -> AsyncGenerator[str, None]:
        """The text of `variable` in pieces; see `Variable.stream`."""
        return self._stream(variable, as_objective(objective))

    async def _stream(self, variable: Variable, objective: Objective | None) -> AsyncGenerator[str, None]:
        if variable.done:
            if text := variable.result().text:
                yield text
            return
        state = self._open()
        self._want(state, [variable], objective)
        callback: _Callback | None = None

        def when_ended(tell: Callable[[Outcome | None], None]) -> None:
            nonlocal callback
            callback = _Callback(lambda v: tell(v.outcome), variable)
            self._attend(state, variable, callback)

        try:
            async with aclosing(state.reading.chunks(variable.id, when_ended)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if callback is not None:
                self._leave(variable, callback)
        if variable.failed:
            variable.result()

    def _attend(self, state: Running, variable: Variable, callback: _Callback) -> None:
        variable.on_end(callback)
        if not variable.done:
            state.reading.want(variable.id, fresh=variable.fresh)

    def _leave(self, variable: Variable, callback: _Callback) -> None:
        if not variable.off_end(callback) and not variable.done and self._state is not None:
            self._state.reading.unwant(variable.id)
            if self._wanted.pop(variable.id, None) and (self.lazy or self.attached):
                self._state.outbox.say(Unwant(variables=(variable.id,), reader=self._nonce))

    def _want(self, state: Running, variables: Sequence[Variable], objective: Objective | None) -> None:
        """Tell the scheduler what is awaited, where that changes anything for it."""
        if not (self.lazy or self.attached or objective is not None):
            return
        new = [v.id for v in variables if objective not in self._wanted.get(v.id, ())]
        for id_ in new:
            self._wanted.setdefault(id_, set()).add(objective)
        if new:
            state.outbox.say(Want(variables=tuple(new), objective=objective, reader=self._nonce))

    async def set(self, variable: Placeholder, value: Value) -> None:
        """Publish a variable's value; see `Variable.set`."""
        state = self._open()
        await state.outbox.flush()  # the scheduler should know the variable before its value comes
        try:
            await state.publish(VarId(variable.id), value)
        except AlreadyAssigned:
            await self._compare(state, VarId(variable.id), value)
        self.deliver(VarId(variable.id), value)

    async def _compare(self, state: Running, variable: VarId, value: Value) -> None:
        there = await state.read(variable)
        if isinstance(there, Value) and (there.text, there.json) == (value.text, value.json):
            return
        what = f"has the value {there.text[:60]!r}" if isinstance(there, Value) else "has ended without a value"
        raise AlreadySet(f"variable {variable} {what}: a variable is set once")

    # --- for the readers and the outbox ---

    def expects(self, variable: VarId) -> bool:
        """Whether somebody here holds this variable, and its end is not known."""
        held = self._variables.get(variable)
        return held is not None and not held.done

    def deliver(self, variable: VarId, outcome: Outcome) -> None:
        """A variable has its outcome."""
        self._wanted.pop(variable, None)
        if (held := self._variables.get(variable)) is not None:
            held.end_with(as_end(held.name, outcome), outcome)

    def give_up(self, variable: VarId) -> None:
        """The session has ended elsewhere, without this variable's outcome."""
        if (held := self._variables.get(variable)) is not None:
            held.end_with(
                SessionClosed(f"session {self.id} has ended (closed or expired) before {held.name!r} had a value")
            )

    def fail(self, variables: Sequence[str], error: Exception) -> None:
        """An entry was not stored, so these variables won't end as they should."""
        for id_ in variables:
            if (held := self._variables.get(VarId(id_))) is not None:
                failed = SubmitFailed(f"variable {held.name!r}: its call could not be submitted: {error}")
                failed.__cause__ = error
                held.end_with(failed)

    def next_message_id(self) -> str:
        """A new id for an entry of the log, the same for all its retries."""
        self._entries += 1
        return f"{self._nonce}-{self._entries}"

    def crashed(self, error: BaseException) -> None:
        """A task of this session failed, which is a fault of the SDK: nobody may wait for ever because of it."""
        _log.error("session_failed", session=self.id, exc_info=error)
        self._ended = SessionClosed(f"session {self.id} failed inside: {error!r}")
        self._ended.__cause__ = error
        self._abandon(self._ended)


class _Callback:
    """A callback about one variable, equal only to itself."""

    __slots__ = ("_function", "_variable")

    def __init__(self, function: Callable[[Variable], None], variable: Variable) -> None:
        self._function = function
        self._variable = variable

    def __call__(self) -> None:
        self._function(self._variable)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def gather(
    *variables: Variable, objective: Objective | str | None = None, timeout: float | None = None
) -> list[Any]:
    """What `get` of each of `variables` returns, in their order; they may belong to several sessions. All are awaited at once;
    the first failure ends the waiting and is raised. Raises like `Variable.get`."""
    groups: dict[Session, list[Variable]] = {}
    for variable in variables:
        groups.setdefault(variable.session, []).append(variable)
    try:
        async with asyncio.timeout(timeout):
            await asyncio.gather(*(session.wait(group, objective) for session, group in groups.items()))
    except TimeoutError:
        left = sum(not v.done for v in variables)
        raise TimedOut(f"{left} of {len(variables)} variables had no value after {timeout} seconds") from None
    for variable in variables:
        if variable.failed:
            variable.result()
    return [variable.read() for variable in variables]
