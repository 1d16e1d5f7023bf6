"""Plans by hand, for tests of the model without the engine: sequences over pages that we choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from myna.engine.model import Model
from myna.engine.plan import Span, StepPlan

PAGE_SIZE = 4


@dataclass
class Sequences:
    """Running sequences over one model, each with pages of its own after an optional shared prefix."""

    model: Model
    free: list[int]
    tokens: list[list[int]] = field(default_factory=list)
    pages: list[list[int]] = field(default_factory=list)
    prefix: tuple[int, ...] = ()
    prefix_pages: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Model, pages: int = 64) -> Sequences:
        model.allocate(pages, PAGE_SIZE)
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(1)).tolist()
        return cls(model, order)

    def share(self, prefix: Sequence[int], *, chunk: int = 1000) -> None:
        """Prefill a prefix that all sequences added later share."""
        self.prefix_pages = self._take(len(prefix))
        for begin in range(0, len(prefix), chunk):
            fresh = prefix[begin : begin + chunk]
            end = begin + len(fresh)
            span = Span(self.prefix_pages, 0, end, range(len(fresh)), own=True)
            slots = [_slot(self.prefix_pages, j) for j in range(begin, end)]
            self.model.forward(StepPlan(fresh, range(begin, end), slots, [span], []))
        self.prefix = tuple(prefix)

    def step(self, fresh: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append tokens to each sequence (a new one where there is none yet) in one step; logits of all of them."""
        token_ids, positions, slots, spans = [], [], [], []
        for index, new in enumerate(fresh):
            if index == len(self.tokens):
                self.tokens.append([])
                self.pages.append([])
            begin = len(self.tokens[index])
            self.tokens[index] += new
            end = len(self.tokens[index])
            self.pages[index] += self._take(end - len(self.pages[index]) * PAGE_SIZE)
            if new:
                rows = range(len(token_ids), len(token_ids) + len(new))
                spans.append(Span(tuple(self.pages[index]), len(self.prefix), end, rows, own=True))
            token_ids += new
            positions += range(len(self.prefix) + begin, len(self.prefix) + end)
            slots += [_slot(self.pages[index], j) for j in range(begin, end)]
        if self.prefix:
            spans.insert(0, Span(self.prefix_pages, 0, len(self.prefix), range(len(token_ids)), own=False))
        return self.model.forward(StepPlan(token_ids, positions, slots, spans, range(len(token_ids))))

    def _take(self, tokens: int) -> tuple[int, ...]:
        return tuple(self.free.pop() for _ in range(-(-max(tokens, 0) // PAGE_SIZE)))


def _slot(pages: Sequence[int], token: int) -> int:
    return pages[token // PAGE_SIZE] * PAGE_SIZE + token % PAGE_SIZE
