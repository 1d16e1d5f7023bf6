"""FlashInfer on the trees of `tests/kernels/paged_trees.py`, each of its arms as a function of one layer. Not a dependency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myna.engine.plan import StepPlan

WORKSPACE_BYTES = 512 << 20

Arm = Callable[[Tensor, Tensor], Tensor]
"""Attention of a layer: query [B, Hq, D], pool [pages, 2, page_size, Hkv, D] -> output [B, Hq, D]."""


@dataclass(frozen=True)
class Level:
    """The spans at one depth of the tree, by FlashInfer's index pointers; every request has one span in each level."""

    rows: list[int]
    pages: list[int]
    indices: list[int]
    last_page: list[int]


def levels_of(plan: StepPlan, page_size: int) -> list[Level]:
    """A decoding plan's levels, from the roots down."""
    depth_of_row = [0] * len(plan.positions)
    levels: list[Level] = []
    for span in plan.spans:
        depth = depth_of_row[span.queries[0]]
        for row in span.queries:
            depth_of_row[row] += 1
        if depth == len(levels):
            levels.append(Level([0], [0], [], []))
        level = levels[depth]
        assert level.rows[-1] == span.queries[0], "the rows of a level's spans must follow one another"
        level.rows.append(span.queries[-1] + 1)
        level.indices.extend(span.pages)
        level.pages.append(len(level.indices))
        level.last_page.append(span.length - (len(span.pages) - 1) * page_size)
    return levels


def flashinfer_arms(plan: StepPlan, page_size: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, Arm]:
    """The arms that were the best of all in the anchors, planned for bfloat16. Raises ImportError without FlashInfer."""
    import flashinfer

    levels = levels_of(plan, page_size)
    sizes = (heads, kv_heads, head_dim, page_size)
    arms = {"dec_tc": _decode(flashinfer, _joined(plan, page_size), sizes)}
    if len(levels) > 1:
        prefill = [_prefill(flashinfer, level, sizes) for level in levels]
        arms["casc_fa2"] = _cascade(flashinfer, prefill)
        arms["mixed"] = _cascade(flashinfer, [*prefill[:-1], _decode(flashinfer, levels[-1], sizes, with_sums=True)])
    return arms


def _joined(plan: StepPlan, page_size: int) -> Level:
    """Every row with all of its pages, shared ones by reference."""
    rows = len(plan.positions)
    pages: list[list[int]] = [[] for _ in range(rows)]
    last = [0] * rows
    for span in plan.spans:
        for row in span.queries:
            assert span.own or span.length % page_size == 0, "only whole pages can be joined"
            pages[row] += span.pages
            last[row] = span.length - (len(span.pages) - 1) * page_size
    indptr = [0]
    for part in pages:
        indptr.append(indptr[-1] + len(part))
    return Level(list(range(rows + 1)), indptr, [page for part in pages for page in part], last)


def _ints(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


def _workspace() -> Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


def _decode(flashinfer: Any, level: Level, sizes: tuple[int, ...], with_sums: bool = False) -> Any:
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(), "NHD", use_tensor_cores=True)
    wrapper.plan(
        _ints(level.pages), _ints(level.indices), _ints(level.last_page), *sizes,
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    return lambda query, pool: wrapper.run(query, pool, return_lse=with_sums)


def _prefill(flashinfer: Any, level: Level, sizes: tuple[int, ...]) -> Any:
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(_workspace(), "NHD", backend="fa2")
    wrapper.plan(
        _ints(level.rows), _ints(level.pages), _ints(level.indices), _ints(level.last_page), *sizes,
        causal=False, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    return lambda query, pool: wrapper.run(query, pool, return_lse=True)


def _cascade(flashinfer: Any, levels: list[Any]) -> Arm:
    def run(query: Tensor, pool: Tensor) -> Tensor:
        output: Tensor
        output, log_sum = levels[-1](query, pool)
        for level in reversed(levels[:-1]):
            flashinfer.merge_state_in_place(output, log_sum, *level(query, pool))
        return output

    return run
