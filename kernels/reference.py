"""What tree attention means, said as plainly as torch allows: every other implementation is tested against this one.

Two forms of the same function. `dense_attention` gathers all keys of a row and takes one softmax. `tree_attention`
computes each span once for all its rows and merges the partial results by log-sum-exp, which is what the fast kernels
do. Both work in the dtype of their inputs; give them float64 for the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class SpanLike(Protocol):
    """A run of KV pages and the query rows that attend to it (`myna.engine.plan.Span` is one)."""

    @property
    def pages(self) -> Sequence[int]:
        """Page ids; token j lies in `pages[j // page_size]` at offset `j % page_size`."""

    @property
    def start(self) -> int:
        """Position of the first token."""

    @property
    def length(self) -> int:
        """Tokens in the span."""

    @property
    def queries(self) -> Sequence[int]:
        """Rows of the packed batch that attend to the span."""


def span_slots(span: SpanLike, page_size: int) -> list[int]:
    """The pool slots of the span's tokens, in order."""
    return [span.pages[j // page_size] * page_size + j % page_size for j in range(span.length)]


def dense_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Sequence[SpanLike],
    positions: Sequence[int],
    page_size: int,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention row by row. `query` [T, Hq, D]; `keys`, `values` [Hkv, slots, D]; `sinks` [Hq]. Returns [T, Hq, D]."""
    output = torch.zeros_like(query)
    for row, position in enumerate(positions):
        slots: list[int] = []
        for span in spans:
            if row in span.queries:
                slots += _visible_slots(span, page_size, position, window)
        scores = _scores(query[row : row + 1], keys[:, slots], scaling, softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores)[:, None, None]], dim=-1)
        weights = scores.softmax(dim=-1)[..., : len(slots)]
        output[row] = torch.matmul(weights, _per_query_head(values[:, slots], query.shape[1]))[:, 0]
    return output


def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    spans: Sequence[SpanLike],
    positions: Sequence[int],
    page_size: int,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention span by span, partial results merged by log-sum-exp. Shapes as in `dense_attention`."""
    output = torch.zeros_like(query)
    log_sum = query.new_full(query.shape[:2], -torch.inf)
    for span in spans:
        if not span.length:
            continue
        rows = list(span.queries)
        slots = span_slots(span, page_size)
        hidden = _hidden(span, [positions[row] for row in rows], window)
        scores = _scores(query[rows], keys[:, slots], scaling, softcap)
        scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
        part_sum = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - part_sum.clamp(min=torch.finfo(scores.dtype).min)[..., None])
        part = torch.matmul(weights, _per_query_head(values[:, slots], query.shape[1]))
        output[rows], log_sum[rows] = merge(output[rows], log_sum[rows], part.transpose(0, 1), part_sum.T)
    if sinks is not None:
        output = output * torch.sigmoid(log_sum - sinks.to(log_sum))[..., None]
    return output


def merge(left: Tensor, left_sum: Tensor, right: Tensor, right_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Join two partial attentions over disjoint keys. Outputs [..., D], log-sums [...]; a log-sum of -inf is no keys."""
    total = torch.logaddexp(left_sum, right_sum)
    base = total.clamp(min=torch.finfo(total.dtype).min)
    joined = left * torch.exp(left_sum - base)[..., None] + right * torch.exp(right_sum - base)[..., None]
    return joined, total


def _visible_slots(span: SpanLike, page_size: int, position: int, window: int | None) -> list[int]:
    hidden = _hidden(span, [position], window)[0].tolist()
    return [slot for slot, hide in zip(span_slots(span, page_size), hidden, strict=True) if not hide]


def _hidden(span: SpanLike, positions: Sequence[int], window: int | None) -> Tensor:
    """[rows, length] bool: true where the key lies after the row's position or before its window."""
    key = torch.arange(span.start, span.start + span.length)[None]
    row = torch.tensor(positions)[:, None]
    hidden = key > row
    return hidden if window is None else hidden | (key <= row - window)


def _scores(query: Tensor, keys: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """[Hq, rows, keys] scaled and capped scores."""
    scores = torch.matmul(query.transpose(0, 1), _per_query_head(keys, query.shape[1]).mT) * scaling
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _per_query_head(pool: Tensor, heads: int) -> Tensor:
    return pool.repeat_interleave(heads // pool.shape[0], dim=0)
