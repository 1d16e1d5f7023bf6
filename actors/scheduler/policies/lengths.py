"""How long a call's prompt and outputs will be: learned per function from what it produced before.

Law: an estimate decides order and place, never whether a call may run. Work is measured in generated tokens: an engine that is
busy prefills `PREFILL` tokens in the time that one more generated token costs it.
"""

from __future__ import annotations

from myna.actors.messages import Call, Input, ModelCall, Output, Tenant, Text, VarId

CHARACTERS = 4.0
"""Characters of a token of plain text, about."""
PREFILL = 6.0
"""Prompt tokens that cost as much of a busy engine as one generated token."""
UNKNOWN = 128.0
"""Tokens of an output of which nothing is known, unless its limit is smaller."""
FUNCTIONS = 10_000
"""Functions that are remembered."""
_WEIGHT = 0.2
"""Of the newest observation in the running mean."""


class Outline:
    """What the shape of a call says: its variables, the characters of its constants, and the limit of its outputs."""

    __slots__ = ("characters", "inputs", "limit", "outputs")

    def __init__(self, call: Call) -> None:
        inputs: list[str] = []
        outputs: list[str] = []
        self.characters, self.limit = 0, 0
        if isinstance(call, ModelCall):
            for message in call.messages:
                for segment in message.segments:
                    if isinstance(segment, Text):
                        self.characters += len(segment.text)
                    elif isinstance(segment, Input):
                        inputs += segment.variables
                    elif isinstance(segment, Output):
                        outputs += segment.variables
                        self.limit += segment.sampling.max_tokens * len(segment.variables)
        else:
            outputs.append(call.variable)
            for argument in call.arguments:
                if argument.input is not None:
                    inputs += argument.input.variables
        self.inputs = tuple(map(VarId, dict.fromkeys(inputs) if len(inputs) > 1 else inputs))
        self.outputs = tuple(map(VarId, outputs))


class Habit:
    """What one function's calls are like: running means. `fresh`: the part of a prompt, from 0 to 1, that an engine computes, the
    rest being in its cache; all of it, where nothing is known."""

    __slots__ = ("_fresh", "_output", "fresh")

    def __init__(self) -> None:
        self._output: float | None = None
        self._fresh: float | None = None
        self.fresh = 1.0

    def output(self, limit: int) -> float:
        """Tokens that a call will generate in all, as far as is known; `limit` is the most that it may."""
        likely = UNKNOWN if self._output is None else self._output
        return likely if likely < limit else float(limit)

    def learn_fresh(self, part: float) -> None:
        """An engine had to compute this part of a prompt, for the rest was in its cache."""
        before = self._fresh
        self.fresh = self._fresh = part if before is None else before + _WEIGHT * (part - before)

    def learn_output(self, tokens: int) -> None:
        """A call has generated so many tokens."""
        before = self._output
        self._output = tokens if before is None else before + _WEIGHT * (tokens - before)


class Lengths:
    """The habits of functions, by tenant, and the mean seconds a unit of work. A call keeps the one that it was given when
    it was submitted."""

    def __init__(self) -> None:
        self._habits: dict[tuple[Tenant, str], Habit] = {}
        self.pace = 0.01

    def of(self, tenant: Tenant, function: str) -> Habit:
        """A function's habit; of a call without a name nothing is remembered."""
        habit = self._habits.get((tenant, function))
        if habit is None:
            habit = Habit()
            if function:
                if len(self._habits) >= FUNCTIONS:
                    del self._habits[next(iter(self._habits))]
                self._habits[tenant, function] = habit
        return habit

    def took(self, work: float, seconds: float) -> None:
        """A call has ended that was thought to be so much work."""
        if work > 0:
            self.pace += _WEIGHT * 0.25 * (seconds / work - self.pace)


def work_of(prompt: float, output: float) -> float:
    """The work of a call, in generated tokens."""
    return output + prompt / PREFILL
