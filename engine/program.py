"""A program is one request (or one of its siblings) on its way through a context. No torch, no queues here.

It knows what must be computed next; the batch decides when. A token enters through `accept` alone, whether it was drawn
or is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType

from myna.engine.context import Context
from myna.engine.errors import InvalidPrompt, PromptTooLong
from myna.engine.output import Output
from myna.engine.request import (
    LEAST,
    Delta,
    Event,
    Fill,
    Finished,
    FinishReason,
    Generate,
    Request,
    TokenLogprob,
    Usage,
)
from myna.engine.sampling import SamplingParams, derive_seed
from myna.engine.structured.constraint import Constraint
from myna.engine.structured.grammars import Grammar
from myna.engine.text import Decode

_SEEDS = 2**64
NO_GRAMMARS: Mapping[Constraint, Grammar] = MappingProxyType({})
"""Of a request without constraints."""

Importance = tuple[int, float, tuple[int, int]]
"""Priority, order, arrival; the least goes first."""


class ProgramState(StrEnum):
    """Where a program is; `Batch` alone changes it. A held one waits for its turn in its context."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Program:
    """`capacity`: most tokens that the context may ever have. `arrival` orders programs of the same priority and order.
    `grammars`: of the constraints of all its outputs."""

    def __init__(
        self, request: Request, context: Context, arrival: tuple[int, int], capacity: int, decode: Decode,
        eos_token_ids: frozenset[int], grammars: Mapping[Constraint, Grammar] = NO_GRAMMARS, *, step: int = 0,
        sibling: int | None = None,
    ) -> None:  # fmt: skip
        self.request = request
        self.context = context
        self.arrival = arrival
        self.state = ProgramState.HELD
        self.output: Output | None = None
        self.cached = 0
        self.publish_at: int | None = None
        """Followers wait for the prefix up to this position."""
        self.awaits: tuple[Program, int] | None = None
        """The program that is computing a prefix of this one, and up to which position."""
        self.place = 0
        """Where among the draws of the last step this program's was, while nobody has read it."""
        self._high_water = 0
        self._capacity = capacity
        self._decode = decode
        self._eos_token_ids = eos_token_ids
        self._grammars = grammars
        self._step = step
        self._sibling = sibling

    @property
    def key(self) -> Importance:
        """Order of importance, the most important program first."""
        return -self.request.priority, self.request.order, self.arrival

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for it: all but what is computed ahead."""
        return self.request.priority > LEAST

    @property
    def owns_context(self) -> bool:
        """Whether the context was made for this program and ends with it."""
        return self.request.context is None or self._sibling is not None

    @property
    def room(self) -> int:
        """Tokens that the context may come to have, as far as is known now."""
        wanted = len(self.context.tokens)
        if self.output is not None and self.output.sampling.max_tokens is not None:
            wanted = self.output.start + self.output.sampling.max_tokens
        return min(wanted, self._capacity)

    @property
    def must_fork(self) -> bool:
        """Whether the next step is drawn several times from one prompt, so that the program splits into siblings."""
        step = self._current
        return isinstance(step, Generate) and step.sampling.n > 1 and self._sibling is None

    @property
    def work(self) -> int:
        """Tokens to compute before the program can go on. Siblings each compute the prompt's last token themselves."""
        pending = self.context.pending
        if self.output is not None:
            return 0 if self._awaits_end(self.output) else pending
        if self.finished:
            return 0
        return max(pending - 1, 0) if self.must_fork else pending

    def _awaits_end(self, output: Output) -> bool:
        """Whether a draw under way is surely the output's last."""
        unread = self.context.unread
        if not unread:
            return False
        return (
            output.drawn + unread == output.sampling.max_tokens or len(self.context.tokens) + unread >= self._capacity
        )

    @property
    def finished(self) -> bool:
        """Whether all steps are done. A fill is done when it is computed; the last token drawn need not be."""
        if self._step < len(self.request.steps):
            return False
        return not self.context.pending or isinstance(self.request.steps[-1], Generate)

    @property
    def _current(self) -> Fill | Generate | None:
        steps = self.request.steps
        return steps[self._step] if self._step < len(steps) else None

    def settle(self) -> Iterator[Event]:
        """Go on as far as nothing must be computed: append fills, begin the next output, replay its forced tokens.

        To be exhausted. Raises PromptTooLong and InvalidPrompt, after the events that came before.
        """
        while self.output is None and (step := self._current) is not None:
            if isinstance(step, Fill):
                self._fill(step)
            elif self.must_fork:
                return
            else:
                self._begin(step)
                yield from self._replay(step.forced(self._sibling or 0))

    def siblings(self, fork: Callable[[Context], Context]) -> list[Program]:
        """Split into one program for each output to draw, all waiting, on forks of this one's context."""
        step = self._current
        assert isinstance(step, Generate)
        return [self._sibling_of(fork(self.context), number) for number in range(step.sampling.n)]

    def expect(self, place: int) -> None:
        """A step has begun that draws the current output's next token, as its draw number `place`."""
        self.context.unread += 1
        self.place = place

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> list[Event]:
        """Take the token drawn for the current output. If that ends it, `settle` goes on to the next step."""
        output = self.output
        assert output is not None
        assert self.context.unread, "a token comes that no step was to draw"
        self.context.unread -= 1
        before = len(output.tokens)
        text = self._take(output, token)
        ids = tuple(output.tokens[before:])
        events: list[Event] = []
        if ids or text:
            logprobs = (logprob,) if ids and logprob is not None else ()
            events.append(Delta(self.request.id, output.index, text, ids, logprobs))
        if output.reason is not None:
            events.append(self._finish(output, output.reason))
        return events

    def note_cached(self, before: int) -> None:
        """Count what a match gained from position `before` on, unless this program had computed it itself."""
        now = self.context.computed
        self.cached += max(now - max(before, self._high_water), 0)

    def note_computed(self) -> None:
        """Remember how far this program has computed."""
        self._high_water = max(self._high_water, self.context.computed)

    def _fill(self, step: Fill) -> None:
        needed = len(self.context.tokens) + len(step.token_ids) + 1
        if needed > self._capacity:
            raise PromptTooLong(needed - 1, self._capacity, "the room for one context")
        self.context.fill(step.token_ids)
        self._step += 1

    def _begin(self, step: Generate) -> None:
        sibling = self._sibling or 0
        sampling: SamplingParams = step.sampling
        seed = derive_seed(self.request.id) if sampling.seed is None else sampling.seed
        prompt = self.context.tokens
        if not prompt:
            raise InvalidPrompt("nothing can be generated from an empty prompt: not even a first token stands in it")
        if len(prompt) + 1 > self._capacity:
            raise PromptTooLong(len(prompt), self._capacity, "the room for one context")
        if not self.context.pending:
            self.context.rewind(len(prompt) - 1)  # the logits of the last token are wanted, and nobody kept them
        grammar = None if sampling.constraint is None else self._grammars[sampling.constraint]
        self.output = Output(
            step.index + sibling,
            sampling,
            (seed + sibling) % _SEEDS,
            prompt,
            self._decode,
            self._eos_token_ids,
            grammar,
        )

    def _replay(self, tokens: tuple[int, ...]) -> Iterator[Event]:
        output = self.output
        assert output is not None
        for token in tokens:
            self._take(output, token)  # its text was published with it
            if output.reason is not None:
                yield self._finish(output, output.reason)
                return

    def _take(self, output: Output, token: int) -> str:
        text = output.accept(token, self._capacity - len(self.context.tokens) - 1)
        self.context.fill(output.tokens[len(self.context.tokens) - output.start :])
        return text

    def _finish(self, output: Output, reason: FinishReason) -> Finished:
        self.context.truncate(output.start + output.kept)
        self.output = None
        self._step += 1
        usage = Usage(output.start, min(self.cached, output.start), output.drawn)
        return Finished(self.request.id, output.index, reason, usage)

    def _sibling_of(self, context: Context, number: int) -> Program:
        program = Program(
            self.request, context, (self.arrival[0], number), self._capacity, self._decode, self._eos_token_ids,
            self._grammars, step=self._step, sibling=number,
        )  # fmt: skip
        program.cached = self.cached
        program._high_water = self._high_water
        return program
