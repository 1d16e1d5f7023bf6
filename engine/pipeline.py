"""The steps that have begun and have not been read. On a GPU a step begins before the one before it is read.

Law: steps take effect and are read in the order in which they begin. What the host learns a step late (that an output has
ended) costs one surplus draw. An output with a constraint doesn't hold that up: while its step runs, the tokens before are
read and its masks computed, and only then are this step's tokens drawn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from myna.engine.batch import Chunk
from myna.engine.errors import StepFailed
from myna.engine.interface import ModelRunner, StepUnderWay
from myna.engine.output import Output
from myna.engine.planner import Planner
from myna.engine.program import Program
from myna.engine.sampler import Drawn, Row
from myna.engine.structured.masks import Masks
from myna.engine.structured.matcher import Mask, Matcher

_NOTHING: frozenset[int] = frozenset()
Draw: TypeAlias = tuple[Program, Output, int]
"""Whose it is, for which output, and the how manieth of that."""


@dataclass(slots=True)
class Begun:
    """A step that has begun, and what it draws."""

    programs: Sequence[Program]
    drawing: Sequence[Draw]
    _under_way: StepUnderWay
    _drawn: list[Drawn] | None = None

    @property
    def holds_up(self) -> bool:
        """Whether the next step can't be planned before this one's draws are known."""
        return any(output.sampling.penalised for _, output, _ in self.drawing)

    def foresee(self) -> bool:
        """Tell the matchers of what has been drawn, before its programs are told. False if that was done before."""
        if self._drawn is not None:
            return False
        for (_, output, number), draw in zip(self.drawing, self.read(), strict=True):
            if output.matcher is not None and draw.token is not None:
                output.matcher.take(number, draw.token)
        return True

    def read(self) -> list[Drawn]:
        """What has been drawn, as soon as it is there."""
        if self._drawn is None:
            self._drawn = self._under_way.read()
        return self._drawn


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """What a grammar says of the next token of a step that has just begun. Whoever asks first has what the steps before have
    drawn read, and `matchers` computed."""

    before: Iterable[Begun]
    matcher: Matcher
    matchers: Sequence[Matcher]
    masks: Masks

    def allows(self, token: int) -> bool:
        """See `sampler.Constrained`."""
        self._foresee()
        return self.matcher.allows(token)

    def narrow(self) -> bool:
        """See `sampler.Constrained`."""
        self._foresee()
        return self.matcher.narrow()

    def mask(self) -> Mask | None:
        """See `sampler.Constrained`."""
        self._foresee()
        return self.matcher.mask()

    def _foresee(self) -> None:
        if [step for step in self.before if step.foresee()]:
            self.masks.begin(self.matchers)


class Pipeline:
    """One model's steps under way. `seconds` that its calls took, `steps` begun, `computed` tokens, `drawn` tokens: so far."""

    def __init__(self, model: ModelRunner, planner: Planner) -> None:
        self.seconds = 0.0
        self.steps = self.computed = self.drawn = 0
        self._model = model
        self._planner = planner
        self._masks = Masks(model.spec.vocab_size)
        self._steps: deque[Begun] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def holds_up(self) -> bool:
        """Whether all steps have to be read before another is planned."""
        return bool(self._steps) and self._steps[-1].holds_up

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Begin a step. Raises StepFailed if the model does."""
        plan = self._planner.plan(chunks)
        drawing = [_draw_of(chunk.program) for chunk in chunks if chunk.draws]
        matchers = [
            output.matcher for _, output, _ in drawing if output.matcher is not None and self._wants_mask(output)
        ]
        if not any(step.drawing for step in self._steps):
            self._masks.begin(matchers)
        began = time.perf_counter()
        try:
            step = self._model.begin(plan, [self._row(program, output, matchers) for program, output, _ in drawing])
        except Exception as error:  # whatever the model does, the requests of other steps go on
            raise _failed(error) from error
        self.seconds += time.perf_counter() - began
        self.steps += 1
        self.computed += len(plan.token_ids)
        self._steps.append(Begun([chunk.program for chunk in chunks], drawing, step))

    def take_oldest(self) -> Begun:
        """The step that began first, which is under way no more."""
        return self._steps.popleft()

    def read(self, step: Begun) -> list[Drawn]:
        """What a step has drawn, for each of its `drawing`. Waits for it. Raises StepFailed if the model does."""
        began = time.perf_counter()
        try:
            drawn = step.read()
        except Exception as error:
            raise _failed(error) from error
        self.seconds += time.perf_counter() - began
        self.drawn += len(drawn)
        return drawn

    def _row(self, program: Program, output: Output, matchers: Sequence[Matcher]) -> Row:
        """What the next draw depends on. Where penalties count the tokens so far, all of these have been read."""
        unread = program.context.unread
        banned = output.stop_tokens if output.bans_stops(unread) else _NOTHING
        position = len(program.context.tokens) + unread
        constraint = None if output.matcher is None else _Foreseen(self._steps, output.matcher, matchers, self._masks)
        return Row(output.sampling, output.seed, position, output.counts, output.prompt_ids, banned, constraint)

    def _wants_mask(self, output: Output) -> bool:
        """Whether all tokens that may come are surely wanted, and not only whether one of them is: see `sampler`."""
        return self._model.spec.device != "cpu" or (output.sampling.cuts and not output.sampling.greedy)


def _draw_of(program: Program) -> Draw:
    """The next draw of a program."""
    output = program.output
    assert output is not None
    return program, output, output.drawn + program.context.unread


def _failed(cause: Exception) -> StepFailed:
    return StepFailed(f"the model failed: {type(cause).__name__}: {cause}")
