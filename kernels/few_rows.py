"""Products of few rows with a large weight: a decode step streams its weights once, and nothing may hold that stream up.

Tiles of the weight are the tall side of the product, so that 16 rows suffice for tensor cores. Where a weight has too few
columns to fill the GPU, its inner dimension is cut in parts, whose sums the norm that follows adds up. A program asks for
the beginning of its weights before it waits for the kernel before: weights depend on nobody.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from myna.kernels.launching import overlaps

MOST_ROWS = 64
"""Rows up to which these kernels are faster than cuBLAS (kernels/NOTES.md)."""

_CACHE_LINE = 64  # numbers of two bytes in 128 bytes


@triton.jit
def _ask_for(weight_ptr, columns, begin, stride, BK: tl.constexpr, TILES: tl.constexpr):
    """Have the first tiles of some columns fetched into the L2."""
    lines = tl.arange(0, BK // 64) * 64
    for tile in tl.static_range(0, TILES):
        address = (weight_ptr + columns[:, None] * stride + begin + tile * BK + lines[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit(do_not_specialize=["rows"])
def _few_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, output_ptr, rows, columns, stride_x, stride_part, stride_output,
    K: tl.constexpr, PART: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (n, p) multiplies all rows with BN columns over part p of K. GATED: silu(gate) * up, `columns` of each."""
    offs_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    offs_m = tl.arange(0, BM)
    offs_k = tl.arange(0, BK)
    begin = tl.program_id(1) * PART
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        _ask_for(weight_ptr, offs_n, begin, K, BK, 2)
        if GATED:
            _ask_for(weight_ptr, offs_n + columns, begin, K, BK, 2)
        tl.extra.cuda.gdc_wait()
    weights = weight_ptr + offs_n[:, None] * K + begin + offs_k[None, :]
    x_source = x_ptr + offs_m[None, :] * stride_x + begin + offs_k[:, None]
    used = offs_m[None, :] < rows
    sums = tl.zeros([BN, BM], tl.float32)
    up_sums = tl.zeros([BN, BM], tl.float32)
    for k in tl.range(0, PART, BK, num_stages=STAGES):
        x = tl.load(x_source + k, mask=used, other=0.0)
        weight = tl.load(weights + k)
        if UPCAST:
            sums = tl.dot(weight.to(tl.float32), x.to(tl.float32), sums, input_precision="ieee")
        else:
            sums = tl.dot(weight, x, sums)
        if GATED:
            up = tl.load(weights + columns * K + k)
            if UPCAST:
                up_sums = tl.dot(up.to(tl.float32), x.to(tl.float32), up_sums, input_precision="ieee")
            else:
                up_sums = tl.dot(up, x, up_sums)
    if GATED:
        sums = sums / (1.0 + tl.exp(-sums)) * up_sums
    if BIAS:
        sums += tl.load(bias_ptr + offs_n)[:, None].to(tl.float32)
    place = tl.program_id(1) * stride_part + offs_m[None, :] * stride_output + offs_n[:, None]
    tl.store(output_ptr + place, sums.to(output_ptr.dtype.element_ty), mask=used)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Columns and inner numbers of a tile, tiles in flight, warps, parts of the inner dimension."""

    columns: int
    inner: int
    stages: int
    warps: int
    parts: int = 1


def takes(rows: int, weight: Tensor, *, gated: bool = False) -> bool:
    """Whether there is a kernel for so many rows and a weight [N, K]. `gated`: for `few_rows_gated`."""
    columns, inner = weight.shape[0] // (2 if gated else 1), weight.shape[1]
    return (
        rows <= MOST_ROWS
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and columns % 128 == 0
        and inner % 512 == 0
    )


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, summed: bool = True) -> Tensor:
    """`x` [T, K] times the transpose of `weight` [N, K], plus `bias` [N]. Returns [T, N].

    Unless `summed`, it may return parts instead, float32 [S, T, N], whose sum over S is the product. See `takes`.
    """
    rows, columns = x.shape[0], weight.shape[0]
    narrow = columns <= 4096 and not summed and bias is None
    if narrow:
        tiles = _Tiles(128, 128, 4, 8, parts=4) if rows <= 16 else _Tiles(64, 128, 5, 4, parts=2)
        output = torch.empty((tiles.parts, rows, columns), dtype=torch.float32, device=x.device)
    else:
        tiles = _Tiles(64, 128, 6 if rows <= 32 else 5, 4)
        output = torch.empty((1, rows, columns), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, output, columns, tiles, gated=False)
    return output if narrow else output[0]


def few_rows_gated(x: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up of `x` [T, K] times `weight` [2 N, K], gates first. Returns [T, N]. See `takes`."""
    columns = weight.shape[0] // 2
    output = torch.empty((1, x.shape[0], columns), dtype=x.dtype, device=x.device)
    tiles = _Tiles(64, 128, 3, 4)
    _launch(x, weight, None, output, columns, tiles, gated=True)
    return output[0]


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, columns: int, tiles: _Tiles, *, gated: bool
) -> None:
    rows, inner = x.shape
    assert x.stride(1) == 1
    assert weight.shape[1] == inner
    assert weight.is_contiguous()
    assert columns % tiles.columns == 0
    assert inner % (tiles.parts * tiles.inner) == 0
    pdl = overlaps(x.device)
    _few_rows_kernel[(columns // tiles.columns, tiles.parts)](
        x, weight, weight if bias is None else bias, output, rows, columns,
        x.stride(0), output.stride(0), output.stride(1),
        K=inner, PART=inner // tiles.parts, BM=max(16, triton.next_power_of_2(rows)), BN=tiles.columns, BK=tiles.inner,
        STAGES=tiles.stages, GATED=gated, BIAS=bias is not None, UPCAST=x.device.type == "cpu", PDL=pdl,
        num_warps=tiles.warps, launch_pdl=pdl,
    )  # fmt: skip
