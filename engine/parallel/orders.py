"""What the leader tells its followers, as MessagePack: to get ready, to make the pool, to copy a page, to do a step.

A plan's pages are told once: while a span's pages are the same object as in the plan before, they aren't sent again, and the
follower's plan has the same object as well. So work grows at the follower as it does at the leader (`growing.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from myna.engine.plan import Span, StepPlan


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`ModelRunner.prepare`."""

    max_sequences: int
    step_tokens: int
    mixed_tokens: int | None
    ahead_tokens: int | None
    graphs: bool


class Allocate(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`ModelRunner.allocate`."""

    pages: int
    page_size: int


class CopyPage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`ModelRunner.copy_page`."""

    source: int
    target: int


class ToldSpan(msgspec.Struct, frozen=True, array_like=True):
    """A `Span`. `pages`: None where they are those of the span at the same place of the plan before. Its queries are the rows
    from `begin` to `end`, or `rows`."""

    pages: tuple[int, ...] | None
    start: int
    length: int
    begin: int
    end: int
    rows: tuple[int, ...] | None
    own: bool


class Step(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A `StepPlan`. `fed` are pairs of a row and a place."""

    token_ids: Sequence[int]
    positions: Sequence[int]
    write_slots: Sequence[int]
    spans: Sequence[ToldSpan]
    logit_rows: Sequence[int]
    fed: Sequence[tuple[int, int]]
    number: int
    continues: int | None


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine ends: leave the group."""


Order: TypeAlias = Prepare | Allocate | CopyPage | Step | Leave


class Teller:
    """Turns plans into orders, one after another, for a `Listener`."""

    def __init__(self) -> None:
        self._pages: list[tuple[int, ...]] = []

    def step(self, plan: StepPlan) -> Step:
        """The order for a plan."""
        before, self._pages = self._pages, [span.pages for span in plan.spans]
        same = [old is new for old, new in zip(before, self._pages, strict=False)]
        same += [False] * (len(self._pages) - len(same))
        spans = [_told(span, known=known) for span, known in zip(plan.spans, same, strict=True)]
        return Step(
            plan.token_ids, plan.positions, plan.write_slots, spans, plan.logit_rows, list(plan.fed.items()),
            plan.number, plan.continues,
        )  # fmt: skip


class Listener:
    """Turns a `Teller`'s orders into its plans again."""

    def __init__(self) -> None:
        self._pages: list[tuple[int, ...]] = []

    def plan(self, step: Step) -> StepPlan:
        """The plan that was told."""
        self._pages = [
            self._pages[place] if span.pages is None else span.pages for place, span in enumerate(step.spans)
        ]
        spans = [
            Span(pages, span.start, span.length, _queries(span), span.own)
            for pages, span in zip(self._pages, step.spans, strict=True)
        ]
        return StepPlan(
            step.token_ids, step.positions, step.write_slots, spans, step.logit_rows, dict(step.fed), step.number,
            step.continues,
        )  # fmt: skip


def _told(span: Span, *, known: bool) -> ToldSpan:
    pages, queries = None if known else span.pages, span.queries
    if isinstance(queries, range):
        return ToldSpan(pages, span.start, span.length, queries.start, queries.stop, None, span.own)
    return ToldSpan(pages, span.start, span.length, 0, 0, tuple(queries), span.own)


def _queries(span: ToldSpan) -> Sequence[int]:
    return range(span.begin, span.end) if span.rows is None else span.rows


_decoder = msgspec.msgpack.Decoder(Order)
encode = msgspec.msgpack.Encoder().encode


def decode(data: bytes) -> Order:
    """An order from its bytes. Raises `msgspec.DecodeError`."""
    order: Order = _decoder.decode(data)
    return order
