"""The calls of one request over HTTP, from their submission to their end.

Laws:
- A call whose reader leaves before its end is cancelled; unless it is part of a graph that the reader has only begun to build.
- Who named no session hears of none: calls whose shared session ends under them (a cut network may do that) are submitted anew in
  another, as long as nothing of them was shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import structlog

from myna.actors import messages as wire
from myna.actors.bus import BusError
from myna.actors.gateway.openai.extension import Extension
from myna.actors.gateway.problems import Problem
from myna.actors.gateway.tenancy import Tenancy, check_stored
from myna.sdk import ids
from myna.sdk.errors import Cancelled, SessionClosed
from myna.sdk.function import Prepared, Result
from myna.sdk.session import Session
from myna.sdk.variable import Variable

_log = structlog.get_logger(__name__)

ANY_MODEL = ("", "default")
"""Names that leave the choice of the model to the scheduler."""
MOST_TOLD = 20
"""Models that are told to who names another; GET /v1/models lists all."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A call to be made: its messages up to the output, and how that is drawn, `n` times."""

    messages: tuple[wire.Message, ...]
    sampling: wire.Sampling
    n: int = 1
    model: str = ""
    tools: tuple[wire.Tool, ...] = ()
    tool_choice: str = ""
    parallel_tool_calls: bool = True
    format: wire.ResponseFormat | None = None
    chat: bool = True


@dataclass(slots=True, eq=False)
class Work:
    """A submitted call. `variables` stays the same list where the call moves to another session, with others in it."""

    session: Session
    prepared: Prepared
    variables: list[Variable]

    @property
    def call(self) -> str:
        """The call's id, in whatever session."""
        return self.prepared.call.id

    @property
    def where(self) -> dict[str, object]:
        """The field `myna` of an answer."""
        return {"session": self.session.id, "variables": [v.id for v in self.variables]}


async def check_model(tenancy: Tenancy, model: str) -> None:
    """Raise `Problem` for a model that nobody serves. While nobody answers that, the call may wait."""
    if model in ANY_MODEL:
        return
    with contextlib.suppress(BusError):
        if not await tenancy.serves(model):
            there = ", ".join(sorted(await tenancy.models())[:MOST_TOLD]) or "none"
            message = f"the model {model!r} is not served; there are: {there}; 'default' is any of them"
            raise Problem(404, "model_not_found", message, "model")


class Submission:
    """Calls that were submitted together. `held` holds their session; `shared`: with calls of others."""

    def __init__(self, tenancy: Tenancy, held: AsyncExitStack, works: Sequence[Work], *, shared: bool) -> None:
        self.works = works
        self._tenancy = tenancy
        self._held = held
        self._shared = shared

    @property
    def variables(self) -> list[Variable]:
        """Those of all calls."""
        return [v for work in self.works for v in work.variables]

    async def values(self) -> list[list[wire.Value]]:
        """The values of each call. Raises what reading raises, `Problem` where the shared sessions end again and again."""
        try:
            return await self._values()
        except (SessionClosed, Cancelled) as error:
            await self._check_lost(error)
        await self._move()
        try:
            return await self._values()
        except (SessionClosed, Cancelled) as error:
            raise await self._check_lost(error) from None

    async def texts(self) -> AsyncGenerator[tuple[int, str | None], None]:
        """The texts as they come: number of the variable and its next piece, None at its end. Raises like `values`, and where a
        shared session has ended after a piece of a text was given."""
        final = False
        while True:
            try:
                async with aclosing(texts(self.variables)) as pieces:
                    async for piece in pieces:
                        final = True
                        yield piece
                return
            except (SessionClosed, Cancelled) as error:
                lost = await self._check_lost(error)
            if final:
                raise lost
            await self._move()
            final = True

    async def _values(self) -> list[list[wire.Value]]:
        everything = self.variables
        await self.works[0].session.wait(everything)
        for variable in everything:
            if variable.failed:
                variable.result()
        return [[v.result() for v in work.variables] for work in self.works]

    async def _check_lost(self, error: SessionClosed | Cancelled) -> Problem:
        """What is told of calls that were lost with the session that they shared; if that is not what has happened, `error` is
        raised."""
        session = self.works[0].session
        if not self._shared or not (isinstance(error, SessionClosed) or await self._tenancy.has_ended(session)):
            raise error
        message = f"the call was lost with the session that it shared with others: {error}"
        return Problem(503, "unavailable", message, headers={"retry-after": "1"})

    async def _move(self) -> None:
        """Submit all calls anew, in another shared session. Raises `BusError`."""
        old = self.works[0].session
        self._tenancy.retire(old)
        session = await self._held.enter_async_context(self._tenancy.single())
        _log.info("calls_moved", tenant=self._tenancy.tenant, session=old.id, to=session.id)
        for work in self.works:
            work.session, work.variables[:] = session, _variables(session, work.prepared)


@asynccontextmanager
async def submitted(tenancy: Tenancy, drafts: Sequence[Draft], extended: Extension) -> AsyncIterator[Submission]:
    """The calls, submitted; at the end of the block those that have not ended are cancelled, unless nobody waits for them."""
    async with AsyncExitStack() as held:
        session = await held.enter_async_context(_session(tenancy, extended))
        calls = [_prepare(draft, extended) for draft in drafts]
        works = [Work(session, prepared, _variables(session, prepared)) for prepared in calls]
        submission = Submission(tenancy, held, works, shared=extended.session is None)
        try:
            if not extended.wait:
                await session.flush()
                check_stored(submission.variables)
            yield submission
        finally:
            if extended.wait:
                tenancy.abandon(works[0].session, *submission.variables)


@asynccontextmanager
async def _session(tenancy: Tenancy, extended: Extension) -> AsyncIterator[Session]:
    if extended.session is None:
        async with tenancy.single() as session:
            yield session
        return
    await tenancy.ensure(extended.session, lazy=extended.lazy)
    async with tenancy.session(extended.session) as session:
        for variable in extended.variables:
            session.declare(variable)
        yield session


def _prepare(draft: Draft, extended: Extension) -> Prepared:
    names = extended.outputs(draft.n) or tuple(ids.new("answer") for _ in range(draft.n))
    place = wire.Output(
        variables=names,
        name="answer",
        sampling=draft.sampling,
        format=draft.format,
        partial=extended.session is None,  # who asks for no variables learns from the reason that the text was cut
    )
    last = wire.Message(segments=(place,), role="assistant")
    if draft.chat:
        messages = (*draft.messages, last)
    else:
        messages = (wire.Message(segments=(*draft.messages[0].segments, place)),)
    call = wire.ModelCall(
        id=ids.new("chat" if draft.chat else "completion"),
        messages=messages,
        function="chat" if draft.chat else "completion",
        models=() if draft.model in ANY_MODEL else (draft.model,),
        tools=draft.tools,
        tool_choice=draft.tool_choice,
        parallel_tool_calls=draft.parallel_tool_calls,
        objective=extended.goal,
        priority=extended.priority,
    )
    return Prepared(call, (Result("answer", names, draft.n == 1),))


def _variables(session: Session, prepared: Prepared) -> list[Variable]:
    """Submit a call; returns what it makes."""
    made = session.submit(prepared)
    return list(made) if isinstance(made, list) else [made]


async def texts(variables: Sequence[Variable]) -> AsyncGenerator[tuple[int, str | None], None]:
    """The texts as they come: number of the variable and its next piece, None at its end. Raises what reading raises."""
    if len(variables) == 1:
        async with aclosing(variables[0].stream()) as pieces:
            async for piece in pieces:
                yield 0, piece
        await variables[0].value()  # a text is whole a moment before its value is there
        yield 0, None
        return
    ready: asyncio.Queue[tuple[int, str | Exception | None]] = asyncio.Queue()
    # No task group: a generator that is closed between two pieces may not cancel the task that reads it.
    readers = [asyncio.ensure_future(_read(i, v, ready)) for i, v in enumerate(variables)]
    try:
        left = len(readers)
        while left:
            number, item = await ready.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            yield number, item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def _read(number: int, variable: Variable, ready: asyncio.Queue[tuple[int, str | Exception | None]]) -> None:
    try:
        async with aclosing(variable.stream()) as pieces:
            async for piece in pieces:
                ready.put_nowait((number, piece))
        await variable.value()
    except Exception as error:  # the reader of the queue raises it
        ready.put_nowait((number, error))
    else:
        ready.put_nowait((number, None))
