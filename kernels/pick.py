"""The largest logit of each row, in two passes that fill the GPU: greedy sampling never brings logits to the host."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from myna.kernels.launching import overlaps

_BLOCK = 4096


@triton.jit
def _largest_kernel(
    source_ptr, index_ptr, best_ptr, place_ptr, columns, stride,
    BLOCK: tl.constexpr, FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (r, c): the largest of block c of row r, and where it is; the first of equals. NaN if one of them is.

    In the second pass (not FIRST) `index_ptr` says where each entry of the row came from.
    """
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(source_ptr + row * stride + offs, mask=offs < columns, other=-float("inf")).to(tl.float32)
    best = tl.max(values, 0)
    place = tl.min(tl.where((values == best) & (offs < columns), offs, columns - 1), 0)
    broken = tl.max((values != values).to(tl.int32), 0)
    best = tl.where(broken != 0, float("nan"), best)
    if FIRST:
        place_64 = place.to(tl.int64)
    else:
        place_64 = tl.load(index_ptr + row * stride + place)
    at = row * tl.num_programs(1) + block
    tl.store(best_ptr + at, best)
    tl.store(place_ptr + at, place_64)


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row of `logits` [R, V], float32 [R], and the first place where it is, int64 [R].

    A row with a NaN in it has NaN for its value and any place.
    """
    rows, columns = logits.shape
    assert logits.stride(1) == 1
    blocks = triton.cdiv(columns, _BLOCK)
    best = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    place = torch.empty((rows, blocks), dtype=torch.int64, device=logits.device)
    pdl = overlaps(logits.device)
    _largest_kernel[(rows, blocks)](
        logits, logits, best, place, columns, logits.stride(0),
        BLOCK=_BLOCK, FIRST=True, PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    if blocks == 1:
        return best[:, 0], place[:, 0]
    result = torch.empty(rows, dtype=torch.float32, device=logits.device)
    where = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _largest_kernel[(rows, 1)](
        best, place, result, where, blocks, blocks,
        BLOCK=triton.next_power_of_2(blocks), FIRST=False, PDL=pdl, num_warps=1, launch_pdl=pdl,
    )  # fmt: skip
    return result, where
