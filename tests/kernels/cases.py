"""Trees of shared KV for the kernel tests: spans over permuted pages, with a truth in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAGE_SIZE = 4


@dataclass(frozen=True)
class TreeSpan:
    pages: tuple[int, ...]
    start: int
    length: int
    queries: Sequence[int]
    own: bool


@dataclass(frozen=True)
class Case:
    """A step over a pool in which only written slots are numbers."""

    query: Tensor
    keys: Tensor
    values: Tensor
    spans: tuple[TreeSpan, ...]
    positions: tuple[int, ...]

    def to(self, dtype: torch.dtype) -> Case:
        return Case(self.query.to(dtype), self.keys.to(dtype), self.values.to(dtype), self.spans, self.positions)


Branch = tuple[Sequence[int], int, int]
"""Lengths of the shared nodes above a sequence, its own tokens, and how many of those are new in this step."""


def build(
    roots: Sequence[Sequence[Branch]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 8,
    seed: int = 0,
    contiguous: bool = False,
) -> Case:
    """Each root is a list of sequences that share its nodes; a node belongs to the sequences that name its length."""
    rng = random.Random(seed)
    total = sum(_page_count(length) for root in roots for path, own, _ in root for length in [*path, own]) + 2
    free = list(range(total))
    if not contiguous:
        rng.shuffle(free)
    spans: list[TreeSpan] = []
    positions: list[int] = []
    for root in roots:
        nodes: dict[tuple[int, ...], tuple[tuple[int, ...], list[int]]] = {}
        for path, own, fresh in root:
            rows = list(range(len(positions), len(positions) + fresh))
            start = sum(path)
            for depth in range(len(path)):
                key = tuple(path[: depth + 1])
                if key not in nodes:
                    nodes[key] = (_take(free, path[depth]), [])
                nodes[key][1].extend(rows)
            spans.append(TreeSpan(_take(free, own), start, own, rows, own=True))
            positions += range(start + own - fresh, start + own)
        for key, (pages, rows) in nodes.items():
            spans.append(TreeSpan(pages, sum(key[:-1]), key[-1], rows, own=False))
    return _fill(spans, positions, total, heads, kv_heads, size, seed)


def _page_count(length: int) -> int:
    return -(-length // PAGE_SIZE)


def _take(free: list[int], length: int) -> tuple[int, ...]:
    return tuple(free.pop(0) for _ in range(_page_count(length)))


def _fill(
    spans: list[TreeSpan], positions: list[int], pages: int, heads: int, kv_heads: int, size: int, seed: int
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    written = [s.pages[j // PAGE_SIZE] * PAGE_SIZE + j % PAGE_SIZE for s in spans for j in range(s.length)]

    def pool() -> Tensor:
        poisoned = torch.full((kv_heads, pages * PAGE_SIZE, size), torch.nan, dtype=torch.float64)
        poisoned[:, written] = torch.randn(kv_heads, len(written), size, generator=generator, dtype=torch.float64)
        return poisoned

    query = torch.randn(len(positions), heads, size, generator=generator, dtype=torch.float64)
    return Case(query, pool(), pool(), tuple(spans), tuple(positions))


SHAPES: dict[str, list[list[Branch]]] = {
    "one token of one sequence": [[((), 7, 1)]],
    "fresh prompts of ragged lengths": [[((), 9, 9), ((), 4, 4), ((), 1, 1)]],
    "a chunk after a cached part": [[((), 11, 5)]],
    "decode with ragged tails": [[((), 3, 1), ((), 21, 1), ((), 8, 1), ((), 1, 1)]],
    "a prefix that all share": [[((13,), 5, 1), ((13,), 2, 1), ((13,), 9, 1)]],
    "a node with one child": [[((6,), 5, 2)]],
    "two levels and a sibling": [[((8, 5), 3, 1), ((8, 5), 4, 2), ((8, 7), 6, 6), ((8,), 2, 1)]],
    "several roots": [[((5,), 3, 1), ((5,), 4, 1)], [((17,), 2, 2), ((17,), 6, 1)], [((), 5, 5)]],
    "an empty node": [[((0, 6), 3, 1), ((0, 6), 2, 2)]],
    "decode and chunked prefill together": [[((12,), 3, 1), ((12,), 18, 7), ((), 30, 11), ((), 2, 1)]],
}
