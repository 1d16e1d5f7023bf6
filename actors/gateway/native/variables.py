"""Variables over HTTP: made, set, awaited, streamed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from msgspec import UNSET, UnsetType

from myna.actors import messages as wire
from myna.actors.gateway import problems
from myna.actors.gateway.http import Answer, Events, Incoming, Json, sse
from myna.actors.gateway.native.schemas import (
    NewValue,
    NewVariable,
    Reading,
    Streaming,
    VariableList,
    VariableMade,
    ending,
    goal,
    shown,
)
from myna.actors.messages import Objective
from myna.actors.subjects import token
from myna.sdk import ids
from myna.sdk.errors import TimedOut
from myna.sdk.variable import Variable


async def list_variables(incoming: Incoming) -> Answer:
    """The variables of a session."""
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        return Json(VariableList(shown(await incoming.tenancy.graph(session.id))))


async def make_variable(incoming: Incoming) -> Answer:
    """Make a variable by hand."""
    spec: NewVariable = incoming.body
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        variable = session.declare(spec.id or ids.new(spec.name))
        if spec.text is not UNSET or spec.json is not UNSET:
            await variable.set(spec.json if isinstance(spec.text, UnsetType) else spec.text)
        else:
            await session.flush()
    return Json(VariableMade(variable.id), 201)


async def set_variable(incoming: Incoming) -> Answer:
    """Give a variable its value. The same value again changes nothing; another is refused."""
    spec: NewValue = incoming.body
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        variable = session.declare(incoming.path["variable"])
        await variable.set(spec.json if isinstance(spec.text, UnsetType) else spec.text)
    return Json(VariableMade(variable.id))


async def get_variable(incoming: Incoming) -> Answer:
    """How a variable stands, awaited for `timeout` seconds: 200 when it has ended, 202 while it is pending."""
    reading: Reading = incoming.query
    wish = reading.goal
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        variable = session.lookup(token(incoming.path["variable"], "variable"))
        if not reading.timeout:
            outcome = variable.outcome or await incoming.tenancy.outcome(session.id, variable.id)
        else:
            with contextlib.suppress(TimedOut):
                await _wait(variable, wish, reading.timeout)
            outcome = variable.outcome
            if outcome is None and variable.done:
                variable.result()  # the session has ended without it
    told = ending(variable.id, outcome)
    return Json(told, 202 if outcome is None else 200)


async def _wait(variable: Variable, goal: Objective | None, timeout: float) -> None:
    """Until the variable has ended, in whatever."""
    try:
        await variable.value(objective=goal, timeout=timeout)
    except TimedOut:
        raise
    except Exception:
        if variable.outcome is None:
            raise


async def stream_variable(incoming: Incoming) -> Answer:
    """A variable's text as it comes: events `text` with `offset` and `text`, then one `end`. An event's id is the offset after
    it, so that a client that connects again (Last-Event-ID) goes on where it was."""
    asked: Streaming = incoming.query
    told = incoming.headers.get("last-event-id", "")
    offset = int(told) if told.isdecimal() and len(told) < 16 else asked.offset
    stack = AsyncExitStack()
    async with stack:
        session = await stack.enter_async_context(incoming.tenancy.session(incoming.path["session"]))
        variable = session.lookup(token(incoming.path["variable"], "variable"))
        wish = goal(asked.objective, asked.seconds)
        return Events(_pieces(variable, wish, offset), lambda p: sse(problems.plain(p), event="error"), stack.pop_all())


async def _pieces(variable: Variable, goal: Objective | None, offset: int) -> AsyncGenerator[bytes, None]:
    at = 0
    try:
        async with aclosing(variable.stream(objective=goal)) as pieces:
            async for piece in pieces:
                begin, at = at, at + len(piece)
                if at > offset:
                    new = piece[max(0, offset - begin) :]
                    yield sse({"offset": at - len(new), "text": new}, event="text", id=str(at))
        await variable.value()  # a text is whole a moment before its value is there
    except Exception:
        if variable.outcome is None or isinstance(variable.outcome, wire.Value):
            raise
    yield sse(ending(variable.id, variable.outcome), event="end", id=str(at))
