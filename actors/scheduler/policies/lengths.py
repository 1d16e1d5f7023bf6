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


class Lengths:
    """Running means, by tenant and function, of output tokens and of the part of a prompt that an engine computes, the rest being
    in its cache; and of seconds a unit of work."""

    def __init__(self) -> None:
        self._outputs: dict[tuple[Tenant, str], float] = {}
        self._fresh: dict[tuple[Tenant, str], float] = {}
        self.pace = 0.01

    def output(self, tenant: Tenant, function: str, limit: int) -> float:
        """Tokens that a call will generate in all, as far as is known; `limit` is the most that it may."""
        known = self._outputs.get((tenant, function)) if function else None
        likely = UNKNOWN if known is None else known
        return likely if likely < limit else float(limit)

    def fresh(self, tenant: Tenant, function: str) -> float:
        """Part of such a call's prompt that is computed, from 0 to 1; all of it, where nothing is known."""
        return self._fresh.get((tenant, function), 1.0)

    def learn_fresh(self, tenant: Tenant, function: str, part: float) -> None:
        """An engine had to compute this part of a prompt, for the rest was in its cache."""
        if function:
            _learn(self._fresh, (tenant, function), part)

    def learn(self, tenant: Tenant, function: str, tokens: int, work: float, seconds: float) -> None:
        """A call has ended: it generated so many tokens, was thought to be so much work, and took so long."""
        if work > 0:
            self.pace += _WEIGHT * 0.25 * (seconds / work - self.pace)
        if function and tokens > 0:
            _learn(self._outputs, (tenant, function), tokens)


def _learn(means: dict[tuple[Tenant, str], float], key: tuple[Tenant, str], value: float) -> None:
    before = means.get(key)
    if before is None and len(means) >= FUNCTIONS:
        del means[next(iter(means))]
    means[key] = value if before is None else before + _WEIGHT * (value - before)


def work_of(prompt: float, output: float) -> float:
    """The work of a call, in generated tokens."""
    return output + prompt / PREFILL
