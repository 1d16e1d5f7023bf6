"""How soon any server could be done on an engine of given speed: what a ratio can reach at most.

Law: a floor counts only what nobody can avoid. Each distinct prompt token is computed once, at the highest rate measured; each
token drawn takes a step of a lone sequence, and waits for its call's inputs; tools take their time. Nothing travels, nothing is
chosen, and steps with prompts in them take no longer than without.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import myna
from myna.actors.messages import Usage
from myna.sdk.examples._callers import Result, Run
from myna.sdk.function import Function
from tests.benchmarks.experiment.arms import Load, Outcome

RECORD = Path(__file__).parents[1] / "results" / "h100" / "gpu_engine.json"


@dataclass(frozen=True)
class Speed:
    """Seconds for each token that a lone sequence draws, and for each prompt token at the best rate."""

    step: float
    prompt: float


def measured(path: Path = RECORD) -> Speed:
    """The engine's, from its own record."""
    found = {row["case"]: row["value"] for row in json.loads(path.read_text())["rows"]}
    step = next(value for case, value in found.items() if case.startswith("decode B1,"))
    rates = [value for case, value in found.items() if case.startswith("prefill")]
    return Speed(step / 1000, 1 / max(rates))


Pieces = tuple["str | Call", ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an application: what its prompt is made of and what it draws; of a native one, how long it takes. The first piece
    of a prompt is its function's own."""

    function: str
    pieces: Pieces
    drawn: int
    seconds: float = 0.0

    @property
    def inputs(self) -> list[Call]:
        """The calls whose results it reads."""
        return [piece for piece in self.pieces if isinstance(piece, Call)]

    @property
    def tokens(self) -> int:
        """Of its result. A native function's is one of the texts that it is given: none is longer than the longest."""
        return self.drawn or max(map(tokens_of, self.pieces))


@dataclass
class Recorder:
    """Takes an application's calls down instead of making them (`Calls`)."""

    calls: list[Call] = field(default_factory=list)

    def call(self, label: str, function: Function | myna.Agent, **arguments: Any) -> Result:
        """See `Calls`."""
        if isinstance(function, Function):
            pieces = tuple(_flat([arguments["head"], arguments["body"]]))
            made = Call(function.name, pieces, arguments["answer"].sampling.max_tokens)
        else:
            pieces = tuple(_flat(list(arguments.values())))
            made = Call(function.name, pieces, 0, float(arguments.get("seconds", 0.0)))
        self.calls.append(made)
        return made


def _flat(argument: Any) -> Pieces:
    if isinstance(argument, list):
        return tuple(piece for item in argument for piece in _flat(item))
    return (argument,) if isinstance(argument, (str, Call)) else ()


def tokens_of(piece: str | Call) -> int:
    """Tokens of a part of a prompt: of the words' texts each word is one."""
    return piece.tokens if isinstance(piece, Call) else piece.count(" ")


def distinct(calls: Sequence[Call]) -> int:
    """Prompt tokens that must be computed for all of them, where whatever begins alike is computed once."""
    beginnings = {call.pieces[: n + 1] for call in calls if call.drawn for n in range(len(call.pieces))}
    return sum(tokens_of(beginning[-1]) for beginning in beginnings)


def alone(load: Load, speed: Speed) -> tuple[float, int]:
    """Seconds until an application could be done, and the prompt tokens that it needs."""
    recorder = Recorder()
    load.application(recorder)
    ends: dict[Call, float] = {}
    for call in recorder.calls:  # each comes after those that it reads
        inputs = call.inputs
        ready = max((ends[one] for one in inputs), default=0.0)
        if inputs:  # the last of them to be begun begins when the prompts of all are computed
            last = min(one.drawn * speed.step + one.seconds for one in inputs)
            ready = max(ready, distinct(inputs) * speed.prompt + last)
        else:
            ready = distinct([call]) * speed.prompt
        ends[call] = ready + call.drawn * speed.step + call.seconds
    return max(ends.values()), distinct(recorder.calls)


def outcomes(loads: Sequence[Load], speed: Speed) -> list[Outcome]:
    """Applications of each kind, as soon as they could be done if the others of their kind were all there is: the shortest
    first, each after the prompts of those before it. As outcomes, for an experiment's measure."""
    made = []
    for kind in dict.fromkeys(load.kind for load in loads if not load.background):
        found = [alone(load, speed) for load in loads if load.kind == kind]
        together = len({load.at for load in loads if load.kind == kind}) == 1
        computed = 0
        for seconds, tokens in zip(sorted(s for s, _ in found), sorted(t for _, t in found), strict=True):
            computed += tokens
            least = max(seconds, computed * speed.prompt) if together else seconds
            made.append(Outcome(kind, Run(least, 0.0, least, (), (), Usage())))
    return made
