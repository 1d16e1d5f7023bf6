"""Performance objectives: what the reader of a result cares for."""

from __future__ import annotations

from myna.actors.messages import Objective, ObjectiveKind
from myna.sdk.errors import FunctionError


def as_objective(objective: Objective | str | None) -> Objective | None:
    """`objective` itself, or the one of this name without a bound. Raises `FunctionError`."""
    if objective is None or isinstance(objective, Objective):
        return objective
    try:
        kind = ObjectiveKind(objective)
    except ValueError:
        raise FunctionError(f"{objective!r} is no objective; known are {', '.join(ObjectiveKind)}") from None
    if kind is ObjectiveKind.DEADLINE:
        raise FunctionError("a deadline needs its seconds: use myna.deadline(seconds)")
    return Objective(kind=kind)


def deadline(seconds: float) -> Objective:
    """The result is wanted within `seconds` from the moment of asking."""
    if not seconds > 0:
        raise FunctionError(f"a deadline of {seconds} seconds has passed already: give a positive number")
    return Objective(kind=ObjectiveKind.DEADLINE, seconds=seconds)
