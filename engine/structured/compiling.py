"""The grammars of one request, while they are compiled and after."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from myna.engine.request import Generate, Request
from myna.engine.structured.constraint import Constraint
from myna.engine.structured.grammars import Grammar, Grammars

_PATIENCE = 0.005
"""Seconds that an engine without other work waits at a time: it must hear of cancellations meanwhile."""


@dataclass(frozen=True, slots=True)
class Compiling:
    """By constraint. Without any, there is nothing to wait for."""

    futures: Mapping[Constraint, Future[Grammar]] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request, grammars: Grammars) -> Compiling:
        """Those of all outputs of a request, begun."""
        sampled = (step.sampling for step in request.steps if isinstance(step, Generate))
        wanted = {sampling.constraint for sampling in sampled if sampling.constraint is not None}
        return cls({constraint: grammars.compile(constraint) for constraint in wanted})

    @property
    def done(self) -> bool:
        """Whether all are there, or can't be made."""
        return all(future.done() for future in self.futures.values())

    def wait(self) -> None:
        """For a moment."""
        wait(self.futures.values(), _PATIENCE)

    def result(self) -> Mapping[Constraint, Grammar]:
        """All of them, waited for. Raises InvalidConstraint."""
        return {constraint: future.result() for constraint, future in self.futures.items()}
