"""The plan of one forward step: plain data between the batcher, which knows trees, and the model, which knows tensors.

A step packs the new tokens of all running sequences into one row of `T` tokens. What they attend to is a set of spans:
runs of KV pages, each read once for all the query tokens that share it. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Span:
    """A run of KV that some query tokens of the step attend to: one prefix-tree node (or several joined), or a tail.

    `pages`: page ids; token j of the span lies in `pages[j // page_size]` at offset `j % page_size`.
    `start`: position, in its sequence, of the span's first token (the same for every sequence that shares it).
    `length`: tokens in the span, those that this step writes included.
    `queries`: rows of the packed batch that attend to it, ascending. A row with position p sees the keys at positions
    <= p of each of its spans, less what a sliding window hides; for all spans but a sequence's last this is everything.
    `own`: true for a sequence's last span, where the step's new tokens are written and positions must be compared.
    """

    pages: tuple[int, ...]
    start: int
    length: int
    queries: Sequence[int]
    own: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One packed forward step of `T` tokens.

    `token_ids`, `positions`, `write_slots`: one entry per packed token; a slot is `page * page_size + offset`.
    `spans`: every query row appears in at least one span, and in exactly one `own` span.
    `logit_rows`: rows of the packed batch whose logits are wanted, in the order in which the caller wants them.
    `fed`: rows whose token the step before has drawn and nobody has read yet: row -> its place among that step's draws.
    Their entries in `token_ids` mean nothing. Only for models that run steps ahead.
    `number` counts a planner's plans. `continues`: the number of a plan of single tokens that differs from this one only in
    that each own span has one token more, and perhaps one page; the pages of all other spans are the same object.
    """

    token_ids: Sequence[int]
    positions: Sequence[int]
    write_slots: Sequence[int]
    spans: Sequence[Span]
    logit_rows: Sequence[int]
    fed: Mapping[int, int] = field(default_factory=dict)
    number: int = 0
    continues: int | None = None
