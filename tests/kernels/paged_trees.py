"""Random paged trees of KV for the attention tests and benchmarks: a step plan over permuted pages, and its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from myna.engine.plan import Span, StepPlan


@dataclass(frozen=True)
class Node:
    """`length` tokens of KV below `parent` (None: a root)."""

    parent: int | None
    length: int


@dataclass(frozen=True)
class Request:
    """A sequence below `node` with `own` tokens of its own, of which this step writes the last `new`."""

    node: int | None
    own: int
    new: int = 1


def make_plan(
    nodes: Sequence[Node], requests: Sequence[Request], page_size: int, rng: np.random.Generator
) -> tuple[StepPlan, int]:
    """The plan, and how many pages its pool has. Page ids are permuted, page 0 is nobody's."""
    lengths = [node.length for node in nodes] + [request.own for request in requests]
    counts = [-(-length // page_size) for length in lengths]
    pool = sum(counts) + 2
    ids = rng.permutation(np.arange(1, pool))
    ends = np.cumsum(counts)
    pages = [tuple(ids[end - count : end].tolist()) for count, end in zip(counts, ends, strict=True)]
    starts: list[int] = []
    for node in nodes:
        starts.append(0 if node.parent is None else starts[node.parent] + nodes[node.parent].length)
    queries: list[list[int]] = [[] for _ in nodes]
    spans: list[Span] = []
    positions: list[int] = []
    slots: list[int] = []
    for index, request in enumerate(requests):
        start = 0 if request.node is None else starts[request.node] + nodes[request.node].length
        rows = range(len(positions), len(positions) + request.new)
        at: int | None = request.node
        while at is not None:
            queries[at] += rows
            at = nodes[at].parent
        own = pages[len(nodes) + index]
        spans.append(Span(own, start, request.own, rows, own=True))
        fresh = range(request.own - request.new, request.own)
        positions += [start + token for token in fresh]
        slots += [own[token // page_size] * page_size + token % page_size for token in fresh]
    shared = [
        Span(pages[index], starts[index], node.length, tuple(queries[index]), own=False)
        for index, node in enumerate(nodes)
        if queries[index]
    ]
    return StepPlan([0] * len(positions), positions, slots, [*shared, *spans], list(range(len(positions)))), pool


def fan_out(shape: str) -> tuple[list[Node], list[Request]]:
    """A tree of the benchmarks, as "fan-outs_lengths": "1,4_1024,32" is a root of 1,024 tokens and 4 leaves of 32.

    Each leaf is one decoding request. The fan-outs count the nodes of a level.
    """
    widths, lengths = ([int(number) for number in part.split(",")] for part in shape.split("_"))
    nodes: list[Node] = []
    above: list[int] = []
    for width, length in zip(widths[:-1], lengths[:-1], strict=True):
        level = [Node(above[i * len(above) // width] if above else None, length) for i in range(width)]
        above = list(range(len(nodes), len(nodes) + width))
        nodes += level
    leaves, own = widths[-1], lengths[-1]
    return nodes, [Request(above[i * len(above) // leaves] if above else None, own) for i in range(leaves)]


def make_pool(
    pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random keys and values as the kernel takes them: views [pages, page_size, Hkv, D] of [2, pages, Hkv, page_size, D]."""
    pool = torch.randn((2, pages, kv_heads, page_size, head_dim), dtype=dtype, device=device)
    keys, values = pool.transpose(2, 3)
    return keys, values


def flat(pool: Tensor) -> Tensor:
    """The pool as the reference takes it, float64 [Hkv, slots, D]."""
    return pool.permute(2, 0, 1, 3).flatten(1, 2).double()
