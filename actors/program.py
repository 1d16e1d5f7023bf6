"""What a call consumes and produces, read off its program. Pure; used by clients, scheduler and workers alike."""

from __future__ import annotations

from collections.abc import Iterator

from myna.actors.messages import Argument, Call, Input, ModelCall, NativeCall, Output, VarId


def inputs_of(call: Call) -> Iterator[VarId]:
    """Every variable that a call consumes, with repetitions, in order."""
    for item in _parts(call):
        if item is not None:
            yield from (VarId(v) for v in item.variables)


def _parts(call: Call) -> Iterator[Input | None]:
    match call:
        case ModelCall():
            for message in call.messages:
                yield from (s for s in message.segments if isinstance(s, Input))
        case NativeCall():
            yield from (a.input for a in call.arguments)


def outputs_of(call: Call) -> tuple[VarId, ...]:
    """Every variable that a call produces, in order."""
    match call:
        case ModelCall():
            return tuple(
                VarId(v) for m in call.messages for s in m.segments if isinstance(s, Output) for v in s.variables
            )
        case NativeCall():
            return (VarId(call.variable),)


def placeholder_of(call: Call, variable: VarId) -> str:
    """The name that the call's author gave to an input, for messages to people."""
    match call:
        case ModelCall():
            named = [
                s.name for m in call.messages for s in m.segments if isinstance(s, Input) and variable in s.variables
            ]
        case NativeCall():
            named = [a.name for a in call.arguments if _feeds(a, variable)]
    return next((name for name in named if name), variable)


def _feeds(argument: Argument, variable: VarId) -> bool:
    return argument.input is not None and variable in argument.input.variables
