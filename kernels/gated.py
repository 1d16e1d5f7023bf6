"""silu(gate) * up of many rows in one product: what the MLP's first half computes never leaves the GPU unfinished.

cuBLAS multiplies 5 % faster, but what it writes is twice as wide as what is wanted, and is read again. Here a program
holds a tile of gates and the tile of ups that belongs to it, and writes their product. Programs of a fixed grid take tiles
in an order in which those that run together share rows and columns in the L2. Tiles come by TMA: sm_90.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from myna.kernels.launching import overlaps, processors

_FEW, _MANY = 256, 2048
"""Up to and from so many rows this is faster than cuBLAS with `fused.swiglu` behind it (kernels/NOTES.md)."""

_ROWS, _COLUMNS, _INNER = 128, 128, 64  # a tile
_STAGES = 4
_WARPS = 8
_GROUP = 16  # tiles of rows that are taken together, column after column


@triton.jit(do_not_specialize=["rows"])
def _gated_kernel(
    x_desc, weight_desc, output_desc, rows, columns,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
    UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program p does tiles p, p + programs and so on of silu(x gates^T) * (x ups^T); ups are `columns` after the gates."""
    across = columns // BN
    down = tl.cdiv(rows, BM)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0)):
        first = tile // (GROUP * across) * GROUP
        height = tl.minimum(down - first, GROUP)
        inside = tile % (GROUP * across)
        m = (first + inside % height) * BM
        n = inside // height * BN
        gates = tl.zeros([BM, BN], tl.float32)
        ups = tl.zeros([BM, BN], tl.float32)
        for k in tl.range(0, K, BK, num_stages=STAGES):
            x = x_desc.load([m, k])
            gate = weight_desc.load([n, k])
            up = weight_desc.load([columns + n, k])
            if UPCAST:
                gates = tl.dot(x.to(tl.float32), gate.to(tl.float32).T, gates, input_precision="ieee")
                ups = tl.dot(x.to(tl.float32), up.to(tl.float32).T, ups, input_precision="ieee")
            else:
                gates = tl.dot(x, gate.T, gates)
                ups = tl.dot(x, up.T, ups)
        result = gates / (1.0 + tl.exp(-gates)) * ups
        output_desc.store([m, n], result.to(output_desc.dtype))


def takes(rows: int, weight: Tensor) -> bool:
    """Whether `gated` is the way for so many rows and a weight [2 N, K]."""
    columns, inner = weight.shape[0] // 2, weight.shape[1]
    return (
        (rows <= _FEW or rows >= _MANY)
        and overlaps(weight.device)
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and columns % _COLUMNS == 0
        and inner % _INNER == 0
    )


def gated(x: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up of `x` [T, K] times `weight` [2 N, K], gates first; K a multiple of 64, N of 128. Returns [T, N]."""
    rows, inner = x.shape
    columns = weight.shape[0] // 2
    assert x.is_contiguous()
    assert weight.is_contiguous()
    assert weight.shape == (2 * columns, inner)
    assert columns % _COLUMNS == 0
    assert inner % _INNER == 0
    output = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(rows, _ROWS) * (columns // _COLUMNS)
    pdl = overlaps(x.device)
    _gated_kernel[(min(tiles, processors(x.device)),)](
        _tiled(x, _ROWS, _INNER), _tiled(weight, _COLUMNS, _INNER), _tiled(output, _ROWS, _COLUMNS), rows, columns,
        K=inner, BM=_ROWS, BN=_COLUMNS, BK=_INNER, GROUP=_GROUP, STAGES=_STAGES,
        UPCAST=x.device.type == "cpu", PDL=pdl, num_warps=_WARPS, launch_pdl=pdl,
    )  # fmt: skip
    return output


def _tiled(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], [rows, columns])
