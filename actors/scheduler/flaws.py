"""Why a call is not accepted, or can't run: in words that name the culprit and say what to do.

Law: whether a call is valid follows from the log alone, so that a rebuilt scheduler judges as the one before it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from myna.actors.messages import Call, Cancellation, ErrorCode, Failure, ModelCall, Output, VarId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.program import placeholder_of
from myna.actors.scheduler.nodes import CallNode, VarNode
from myna.actors.scheduler.policies.lengths import Outline


def flaw_of(call: Call, outline: Outline, variables: Mapping[VarId, VarNode], produced: Set[VarId]) -> Failure | None:
    """What is wrong with a new call, if anything is. `produced`: what the calls of the same log entry make."""
    outputs = outline.outputs
    if not outputs:
        return invalid(call, f"{_title(call)} has no output")
    if len(outputs) > 1 and len(set(outputs)) != len(outputs):
        return invalid(call, f"{_title(call)} names one output variable twice: {', '.join(sorted(outputs))}")
    for variable in outputs:
        node = variables.get(variable)
        if node is not None and node.producer is not None:
            return invalid(call, f"{_title(call)} would produce {variable!r}, which call {node.producer.id!r} produces")
    if isinstance(call, ModelCall) and len(outputs) > 1:
        groups = [s for m in call.messages for s in m.segments if isinstance(s, Output)]
        if any(len(s.variables) > 1 for s in groups[:-1]):
            return invalid(call, f"{_title(call)}: only the last output may have several variables (n > 1)")
    for variable in outline.inputs:
        known = variables.get(variable)
        if variable not in produced and (known is None or not known.known):
            return Failure(
                code=ErrorCode.UNKNOWN_VARIABLE,
                message=f"{_title(call)}: input {placeholder_of(call, variable)!r} is variable {variable!r}, which this "
                "session does not know; declare it, or submit the call that produces it, first",
                call=call.id,
                function=call.function,
                variable=variable,
            )
    return None


def used_before(call: Call) -> Failure:
    """A call whose id another one has."""
    return invalid(call, f"call id {call.id!r} was used before, for a call with other outputs")


def cyclic(call: CallNode, way: list[CallNode]) -> Failure:
    """A call that needs its own result, by this way."""
    chain = " -> ".join(repr(c.id) for c in way)
    return Failure(
        code=ErrorCode.CYCLE,
        message=f"call {call.id!r} waits for its own result: {chain}; take one of these calls out",
        call=call.id,
        function=call.function,
    )


def inherited(source: VarNode) -> Failure | Cancellation:
    """What a call ends in whose input `source` has no value: the first failure, unchanged, so that it names its origin."""
    if source.status is OutcomeStatus.CANCELLED or source.failure is None:
        origin = source.producer.id if source.producer else ""
        return Cancellation(reason=f"its input {source.id!r} was cancelled", call=origin)
    return source.failure


def invalid(call: Call, message: str) -> Failure:
    """A call that can't be accepted as it is."""
    return Failure(code=ErrorCode.INVALID_CALL, message=message, call=call.id, function=call.function)


def _title(call: Call) -> str:
    return f"call {call.id!r}" + (f" of function {call.function!r}" if call.function else "")
