"""Small kernels that a decoding step is full of, each one pass over its data: norm with residual, rotary with KV write, SwiGLU.

They are bound by launches and bytes, not arithmetic: each reads its inputs once and writes its outputs once. Sums and
products are taken in float32. Each function's docstring is its torch reference in words; the tests spell it out.
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
from myna.kernels.norm import begin_norm, chosen_row, round_and_keep, row_of_residual, store_normed, sum_of_parts


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, output_ptr, rows_ptr, eps, stride_part, stride_x,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr,
    ONE_PLUS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program t norms row t (or `rows[t]`). With a residual, the row is first added to it, there and in place."""
    place = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    mask = offs < SIZE
    weight = begin_norm(weight_ptr, offs, mask, ONE_PLUS, PDL)
    row = chosen_row(rows_ptr, place, ROWS)
    x = sum_of_parts(x_ptr, row, offs, mask, stride_part, stride_x, PARTS)
    if RESIDUAL:
        x += row_of_residual(residual_ptr, row, offs, mask, SIZE)
        x = round_and_keep(x, residual_ptr, row, offs, mask, SIZE, ROWS)
    store_normed(x, weight, output_ptr, place, offs, mask, eps, SIZE)


@triton.jit
def _rotary_store_kernel(
    query_ptr, key_ptr, value_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, keys_ptr, values_ptr,
    query_norm_ptr, key_norm_ptr, eps,
    stride_query, stride_key, stride_value, stride_page, stride_token, stride_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PAGE: tl.constexpr, AT_ONCE: tl.constexpr, NORM: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (t, b) turns AT_ONCE query heads of row t in place, or so many key heads into the pool, with their values."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offs = tl.arange(0, BLOCK)[None, :]
    half = offs < HALF
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = tl.load(positions_ptr + token).to(tl.int64)
    cos = tl.load(cos_ptr + at * D + offs, mask=half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at * D + offs, mask=half, other=0.0).to(tl.float32)
    blocks: tl.constexpr = (HEADS + AT_ONCE - 1) // AT_ONCE
    if block < blocks:
        head = block * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]
        mask = half & (head < HEADS)
        source = query_ptr + token * stride_query + head * D
        target = source
        norm_ptr = query_norm_ptr
    else:
        head = (block - blocks) * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]
        mask = half & (head < KV_HEADS)
        slot = tl.load(slots_ptr + token).to(tl.int64)
        place = slot // PAGE * stride_page + slot % PAGE * stride_token + head * stride_head
        source = key_ptr + token * stride_key + head * D
        target = keys_ptr + place
        norm_ptr = key_norm_ptr
        value = value_ptr + token * stride_value + head * D
        tl.store(values_ptr + place + offs, tl.load(value + offs, mask=mask), mask=mask)
        tl.store(values_ptr + place + HALF + offs, tl.load(value + HALF + offs, mask=mask), mask=mask)
    low = tl.load(source + offs, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + HALF + offs, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / D + eps)[:, None]
        low *= scale * tl.load(norm_ptr + offs, mask=half, other=0.0).to(tl.float32)
        high *= scale * tl.load(norm_ptr + HALF + offs, mask=half, other=0.0).to(tl.float32)
    turned_low = (low * cos - high * sin).to(query_ptr.dtype.element_ty)
    turned_high = (high * cos + low * sin).to(query_ptr.dtype.element_ty)
    tl.store(target + offs, turned_low, mask=mask)
    tl.store(target + HALF + offs, turned_high, mask=mask)
    if KEEP:  # noqa: SIM102  # Triton joins no constant with a number of the program's by `and`
        if block >= blocks:
            tl.store(source + offs, turned_low, mask=mask)
            tl.store(source + HALF + offs, turned_high, mask=mask)


@triton.jit
def _swiglu_kernel(gate_up_ptr, output_ptr, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Program (t, b) does block b of row t."""
    token = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < SIZE
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate = tl.load(gate_up_ptr + token * stride + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * stride + SIZE + offs, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output_ptr + token * SIZE + offs, result.to(output_ptr.dtype.element_ty), mask=mask)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    one_plus: bool = False,
    rows: Tensor | None = None,
) -> Tensor:
    """`x` / root mean square of `x` * `weight`, over the last dimension of `x` [T, N]. Returns [T, N], of `weight`'s dtype.

    `x` [S, T, N] stands for its sum over S. With `residual` [T, N], x + residual is normed instead, and stored in
    `residual`. `one_plus`: multiply by 1 + weight. `rows` [R]: norm these rows alone, returns [R, N], stores nothing.
    """
    parts = x.shape[0] if x.dim() == 3 else 1
    count, size = x.shape[-2:]
    assert x.stride(-1) == 1
    assert weight.shape == (size,)
    assert residual is None or (residual.shape == (count, size) and residual.is_contiguous())
    count = count if rows is None else rows.shape[0]
    output = torch.empty((count, size), dtype=weight.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    pdl = overlaps(x.device)
    _rms_norm_kernel[(count,)](
        x, x if residual is None else residual, weight, output, weight if rows is None else rows, eps,
        x.stride(0), x.stride(-2),
        SIZE=size, BLOCK=block, PARTS=parts, RESIDUAL=residual is not None, ROWS=rows is not None, ONE_PLUS=one_plus,
        PDL=pdl, num_warps=min(16, max(1, block // 512)), launch_pdl=pdl,
    )  # fmt: skip
    return output


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of each query and key head before they are turned. `query`, `key` [D]."""

    query: Tensor
    key: Tensor
    eps: float


def rotary_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    norms: HeadNorms | None = None,
    keep: bool = False,
) -> None:
    """Turn `query` [T, Hq, D] in place and `key` [T, Hkv, D] on its way into the pool; store `value` beside it.

    `x * cos + rotate_half(x) * sin`, halves of D as pairs. `cos`, `sin` [positions, D], contiguous, both halves alike, read
    at row `positions[t]`. `slots` [T]: page * page_size + offset, all different. `keys`, `values` [pages, page_size, Hkv, D]
    of the same strides. `keep`: turn `key` in place as well. Either may have no heads.
    """
    rows, heads, size = query.shape
    kv_heads = key.shape[1]
    assert key.shape == value.shape == (rows, kv_heads, size)
    assert query.stride()[1:] == key.stride()[1:] == value.stride()[1:] == (size, 1)
    assert cos.shape == sin.shape == (cos.shape[0], size)
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    assert slots.shape == positions.shape == (rows,)
    assert keys.shape == values.shape
    assert keys.shape[2:] == (kv_heads, size)
    assert keys.stride() == values.stride()
    assert keys.stride(3) == 1
    assert norms is None or norms.query.shape == norms.key.shape == (size,)
    half = size // 2
    at_once = min(8, triton.next_power_of_2(kv_heads or heads))
    pdl = overlaps(query.device)
    _rotary_store_kernel[(rows, triton.cdiv(heads, at_once) + triton.cdiv(kv_heads, at_once))](
        query, key, value, cos, sin, positions, slots, keys, values,
        cos if norms is None else norms.query, cos if norms is None else norms.key, 0.0 if norms is None else norms.eps,
        query.stride(0), key.stride(0), value.stride(0), *keys.stride()[:3],
        HEADS=heads, KV_HEADS=kv_heads, D=size, HALF=half, BLOCK=triton.next_power_of_2(half), PAGE=keys.shape[1],
        AT_ONCE=at_once, NORM=norms is not None, KEEP=keep, PDL=pdl, num_warps=2, launch_pdl=pdl,
    )  # fmt: skip


def rotate(query: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, norms: HeadNorms | None = None) -> None:
    """Turn `query` [T, Hq, D] in place as `rotary_store` does, and store nothing."""
    nothing = query[:, :0]
    pool = query.new_empty((1, 1, 0, query.shape[2]))
    rotary_store(query, nothing, nothing, cos, sin, positions, positions, pool, pool, norms=norms)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of `gate_up` [T, 2 N], gates first. Returns [T, N]."""
    rows, both = gate_up.shape
    assert gate_up.stride(1) == 1
    assert both % 2 == 0
    size = both // 2
    output = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(size))
    pdl = overlaps(gate_up.device)
    _swiglu_kernel[(rows, triton.cdiv(size, block))](
        gate_up, output, gate_up.stride(0), SIZE=size, BLOCK=block, PDL=pdl, num_warps=4, launch_pdl=pdl
    )
    return output
