"""One call of a model over HTTP, from its submission to its end.

Law: when its reader leaves before its end, it is cancelled; unless it is part of a graph that the reader has only begun to build.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from myna.actors import messages as wire
from myna.actors.bus import BusError
from myna.actors.gateway.openai.extension import Extension
from myna.actors.gateway.problems import Problem
from myna.actors.gateway.tenancy import Tenancy, check_stored
from myna.sdk import ids
from myna.sdk.function import Prepared, Result
from myna.sdk.session import Session
from myna.sdk.variable import Variable

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


@dataclass(frozen=True, slots=True)
class Work:
    """A submitted call."""

    session: Session
    call: str
    variables: tuple[Variable, ...]

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


@asynccontextmanager
async def submitted(tenancy: Tenancy, drafts: Sequence[Draft], extended: Extension) -> AsyncIterator[list[Work]]:
    """The calls, submitted; at the end of the block those that have not ended are cancelled, unless nobody waits for them."""
    async with _session(tenancy, extended) as session:
        works = [_submit(session, draft, extended) for draft in drafts]
        try:
            if not extended.wait:
                await session.flush()
                check_stored([v for work in works for v in work.variables])
            yield works
        finally:
            if extended.wait:
                tenancy.abandon(session, *(v for work in works for v in work.variables))


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


def _submit(session: Session, draft: Draft, extended: Extension) -> Work:
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
    made = session.submit(Prepared(call, (Result("answer", names, draft.n == 1),)))
    return Work(session, call.id, tuple(made) if isinstance(made, list) else (made,))


async def values(works: Sequence[Work]) -> list[list[wire.Value]]:
    """The values of each call. Raises what reading raises."""
    everything = [v for work in works for v in work.variables]
    await works[0].session.wait(everything)
    for variable in everything:
        if variable.failed:
            variable.result()
    return [[v.result() for v in work.variables] for work in works]


async def texts(variables: Sequence[Variable]) -> AsyncGenerator[tuple[int, str | None], None]:
    """The texts as they come: number of the variable and its next piece, None at its end. Raises what reading raises."""
    if len(variables) == 1:
        async with contextlib.aclosing(variables[0].stream()) as pieces:
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
        async with contextlib.aclosing(variable.stream()) as pieces:
            async for piece in pieces:
                ready.put_nowait((number, piece))
        await variable.value()
    except Exception as error:  # the reader of the queue raises it
        ready.put_nowait((number, error))
    else:
        ready.put_nowait((number, None))
