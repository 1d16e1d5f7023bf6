"""Tree attention on a CPU: every span is read once for all the rows that share it, and only where it holds written keys.

A step is compiled once into parts (rows x keys) that all layers reuse; a part's keys are a view of the pool where its
pages are consecutive. A part runs in one fused kernel that also returns log-sum-exp, by which a row's parts are merged.
`reference.py` says what is computed; this file, how.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from myna.kernels.reference import SpanLike
from myna.kernels.tails import Tail

_ROWS_AT_ONCE = 256
"""Rows whose scores the unfused path holds at a time."""

_FEW_ROWS = 64
"""Up to so many rows, the query heads of a KV head are computed as rows of one matrix."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class OwnedSpan(SpanLike, Protocol):
    """A span that says whether it is the last of its sequence, the one that this step writes."""

    @property
    def own(self) -> bool:
        """True for a sequence's last span."""


@dataclass(frozen=True, slots=True)
class Part:
    """Query rows that attend to some keys: to all of them, or causally (as many keys as rows), or by a mask."""

    rows: slice | Tensor
    keys: slice | Tensor
    causal: bool = False
    visible: Tensor | None = None
    """[rows, keys] bool; every row sees at least one key."""


@dataclass(frozen=True, slots=True)
class Given:
    """Partial results [n, Hq, D] and [n, Hq] of some rows; a slice means all rows, in order."""

    rows: slice | Tensor
    output: Tensor
    log_sum: Tensor


@dataclass(frozen=True, slots=True)
class TreePlan:
    """`first` holds each of the `rows` exactly once; `more` is merged into it, in order."""

    rows: int
    first: tuple[Part, ...]
    more: tuple[Part, ...]


def compile_plan(
    spans: Sequence[OwnedSpan], positions: Sequence[int], page_size: int, window: int | None = None
) -> TreePlan:
    """The parts of one step, for layers that see `window` keys (None: all)."""
    first: list[Part] = []
    more: list[Part] = []
    for span in spans:
        parts = _span_parts(span, positions, page_size, window)
        if span.own:
            first += parts[:1]
            more += parts[1:]
        else:
            more += parts
    return TreePlan(len(positions), tuple(first), tuple(more))


def decoding_tails(spans: Sequence[OwnedSpan], page_size: int) -> list[Tail]:
    """The own spans of the sequences that have one query row in this step."""
    return [
        Tail(span.queries[0], tuple(span.pages), _slots(tuple(span.pages), page_size), span.length)
        for span in spans
        if span.own and len(span.queries) == 1
    ]


def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: TreePlan,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    given: Given | None = None,
) -> Tensor:
    """Attention of one layer. `query` [Hq, T, D]; `keys`, `values` [Hkv, slots, D]; `sinks` [Hq]. Returns [T, Hq, D].

    `given`: rows whose own span was computed elsewhere, so that they are missing from `plan.first`.
    """
    if given is not None and not plan.first and not plan.more and sinks is None and isinstance(given.rows, slice):
        return given.output
    if len(plan.first) == 1 and not plan.more and sinks is None and given is None:
        return _partial(query, keys, values, plan.first[0], scaling, softcap)[0]
    heads, rows, size = query.shape
    output = query.new_empty((rows, heads, size), dtype=_accumulator(query.dtype) if plan.more else query.dtype)
    log_sum = query.new_empty((rows, heads), dtype=_accumulator(query.dtype))
    if given is not None:
        output[given.rows], log_sum[given.rows] = given.output.to(output.dtype), given.log_sum
    for part in plan.first:
        output[part.rows], log_sum[part.rows] = _partial(query, keys, values, part, scaling, softcap)
    for part in plan.more:
        _merge_into(output, log_sum, part.rows, *_partial(query, keys, values, part, scaling, softcap))
    if sinks is not None:
        output = output * torch.sigmoid(log_sum - sinks)[..., None]
    return output.to(query.dtype)


def _span_parts(span: OwnedSpan, positions: Sequence[int], page_size: int, window: int | None) -> list[Part]:
    rows = span.queries
    at = [positions[row] for row in rows]
    if window is not None:  # rows whose window begins after the span see nothing of it
        seen = [i for i, position in enumerate(at) if position - window < span.start + span.length - 1]
        rows, at = [rows[i] for i in seen], [at[i] for i in seen]
    if not rows or not span.length:
        return []
    low, high = min(at), max(at)
    begin = 0 if window is None else max(0, low - window + 1 - span.start)
    end = min(span.length, high + 1 - span.start)
    slots = _slots(tuple(span.pages), page_size)
    index = _row_index(rows)
    past_window = window is not None and high - window >= span.start + begin
    if low >= span.start + end - 1 and not past_window:
        return [Part(index, _cut(slots, begin, end))]
    if not past_window and _is_run(at) and high == span.start + end - 1 and len(at) <= end - begin:
        fresh = end - len(at)
        diagonal = Part(index, _cut(slots, fresh, end), causal=True)
        return [diagonal, Part(index, _cut(slots, begin, fresh))] if fresh > begin else [diagonal]
    return [Part(index, _cut(slots, begin, end), visible=_visible(at, span.start + begin, span.start + end, window))]


def _visible(at: Sequence[int], begin: int, end: int, window: int | None) -> Tensor:
    key = torch.arange(begin, end)[None]
    row = torch.tensor(at)[:, None]
    visible = key <= row
    return visible if window is None else visible & (key > row - window)


def _is_run(numbers: Sequence[int]) -> bool:
    """Whether ascending, distinct numbers follow one another."""
    return all(b == a + 1 for a, b in itertools.pairwise(numbers))


def _row_index(rows: Sequence[int]) -> slice | Tensor:
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)


@lru_cache(maxsize=4096)
def _slots(pages: tuple[int, ...], page_size: int) -> slice | Tensor:
    """The slots of whole pages: a slice where the pages are consecutive, so that keys need no gathering."""
    if pages[-1] - pages[0] + 1 == len(pages) and _is_run(pages):
        return slice(pages[0] * page_size, (pages[-1] + 1) * page_size)
    return (torch.tensor(pages)[:, None] * page_size + torch.arange(page_size)).flatten()


def _cut(slots: slice | Tensor, begin: int, end: int) -> slice | Tensor:
    return slice(slots.start + begin, slots.start + end) if isinstance(slots, slice) else slots[begin:end]


def _partial(
    query: Tensor, keys: Tensor, values: Tensor, part: Part, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Output [rows, Hq, D] and log-sum-exp [rows, Hq] of one part."""
    query, keys, values = _take(query, part.rows), _take(keys, part.keys), _take(values, part.keys)
    if softcap is not None:
        return _unfused(query, keys, values, part, scaling, softcap)
    if part.visible is None and not part.causal and query.shape[1] <= _FEW_ROWS:
        return _grouped(query, keys, values, scaling)
    mask = None
    if part.visible is not None:
        mask = torch.zeros(part.visible.shape, dtype=query.dtype).masked_fill_(~part.visible, -torch.inf)[None, None]
    output, log_sum = _flash(query[None], keys[None], values[None], 0.0, part.causal, attn_mask=mask, scale=scaling)
    return output[0].transpose(0, 1), log_sum[0].transpose(0, 1)


def _grouped(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """As `_partial` for a few rows that see all keys: the query heads of a KV head become its rows, so that keys are
    brought into the kernel's layout once for all of them."""
    kv_heads, count = keys.shape[0], query.shape[1]
    rows = torch.unflatten(query, 0, (kv_heads, -1)).flatten(1, 2)  # [Hkv, G * rows, D]
    output, log_sum = _flash(rows[None], keys[None], values[None], 0.0, False, attn_mask=None, scale=scaling)
    output = torch.unflatten(output[0], 1, (-1, count)).permute(2, 0, 1, 3).flatten(1, 2)
    return output, torch.unflatten(log_sum[0], 1, (-1, count)).permute(2, 0, 1).flatten(1, 2)


def _take(tensor: Tensor, index: slice | Tensor) -> Tensor:
    """Entries of the second dimension: a view for a slice."""
    return tensor[:, index] if isinstance(index, slice) else tensor.index_select(1, index)


def _unfused(
    query: Tensor, keys: Tensor, values: Tensor, part: Part, scaling: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """As `_partial`, with capped scores, which the fused kernel doesn't know."""
    count = query.shape[1]
    visible = part.visible
    if part.causal:
        visible = torch.ones(count, count, dtype=torch.bool).tril_()
    outputs, sums = [], []
    for begin in range(0, count, _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        grouped = torch.unflatten(query[:, rows], 0, (keys.shape[0], -1))  # [Hkv, G, rows, D]
        scores = torch.matmul(grouped, keys.mT[:, None]).to(_accumulator(query.dtype)) * scaling
        scores = torch.tanh(scores / softcap) * softcap
        if visible is not None:
            scores.masked_fill_(~visible[rows], -torch.inf)
        sums.append(scores.logsumexp(dim=-1).flatten(0, 1))
        outputs.append(torch.matmul(scores.softmax(dim=-1).to(values.dtype), values[:, None]).flatten(0, 1))
    return torch.cat(outputs, dim=1).transpose(0, 1), torch.cat(sums, dim=1).transpose(0, 1)


def _merge_into(output: Tensor, log_sum: Tensor, rows: slice | Tensor, part: Tensor, part_sum: Tensor) -> None:
    """Fold a partial result into the rows' running one. Every row here already has a finite log-sum."""
    held, held_sum = output[rows], log_sum[rows]
    share = torch.sigmoid(part_sum - held_sum)[..., None]
    output[rows] = torch.lerp(held, part.to(held.dtype), share.to(held.dtype))
    log_sum[rows] = torch.logaddexp(held_sum, part_sum)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
