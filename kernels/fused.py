"""Small kernels that a decoding step is full of, each one pass over its data: norm with residual, rotary with KV write, SwiGLU.

They are bound by launches and bytes, not arithmetic: each reads its inputs once and writes its outputs once. Sums and
products are taken in float32. Each function's docstring is its torch reference in words; the tests spell it out.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, output_ptr, eps, stride_x, stride_output,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, ONE_PLUS: tl.constexpr,
):  # fmt: skip
    """Program t norms row t. With a residual, the row is first added to it, there and in place."""
    token = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    mask = offs < SIZE
    x = tl.load(x_ptr + token * stride_x + offs, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + token * SIZE + offs, mask=mask, other=0.0).to(tl.float32)
        x = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + token * SIZE + offs, x, mask=mask)
        x = x.to(tl.float32)
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if ONE_PLUS:
        weight += 1.0
    scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    tl.store(output_ptr + token * stride_output + offs, (x * scale * weight).to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rotary_store_kernel(
    query_ptr, key_ptr, value_ptr, cos_ptr, sin_ptr, slots_ptr, keys_ptr, values_ptr,
    stride_query, stride_key, stride_value, stride_page, stride_token, stride_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PAGE: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Program (t, b) turns AT_ONCE query heads of row t in place, or so many key heads into the pool, with their values."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offs = tl.arange(0, BLOCK)[None, :]
    half = offs < HALF
    cos = tl.load(cos_ptr + token * D + offs, mask=half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * D + offs, mask=half, other=0.0).to(tl.float32)
    blocks: tl.constexpr = (HEADS + AT_ONCE - 1) // AT_ONCE
    if block < blocks:
        head = block * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]
        mask = half & (head < HEADS)
        source = query_ptr + token * stride_query + head * D
        target = source
    else:
        head = (block - blocks) * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]
        mask = half & (head < KV_HEADS)
        slot = tl.load(slots_ptr + token)
        place = slot // PAGE * stride_page + slot % PAGE * stride_token + head * stride_head
        source = key_ptr + token * stride_key + head * D
        target = keys_ptr + place
        value = value_ptr + token * stride_value + head * D
        tl.store(values_ptr + place + offs, tl.load(value + offs, mask=mask), mask=mask)
        tl.store(values_ptr + place + HALF + offs, tl.load(value + HALF + offs, mask=mask), mask=mask)
    low = tl.load(source + offs, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + HALF + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(target + offs, (low * cos - high * sin).to(query_ptr.dtype.element_ty), mask=mask)
    tl.store(target + HALF + offs, (high * cos + low * sin).to(query_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_kernel(gate_up_ptr, output_ptr, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Program (t, b) does block b of row t."""
    token = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < SIZE
    gate = tl.load(gate_up_ptr + token * stride + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * stride + SIZE + offs, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output_ptr + token * SIZE + offs, result.to(output_ptr.dtype.element_ty), mask=mask)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *, one_plus: bool = False
) -> Tensor:
    """`x` / root mean square of `x` * `weight`, over the last dimension of `x` [T, N]. Returns [T, N].

    With `residual` [T, N], x + residual is normed instead, and stored in `residual`. `one_plus`: multiply by 1 + weight.
    """
    rows, size = x.shape
    assert x.stride(1) == 1
    assert weight.shape == (size,)
    assert residual is None or (residual.shape == x.shape and residual.is_contiguous())
    output = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    _rms_norm_kernel[(rows,)](
        x, x if residual is None else residual, weight, output, eps, x.stride(0), output.stride(0),
        SIZE=size, BLOCK=block, RESIDUAL=residual is not None, ONE_PLUS=one_plus, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return output


def rotary_store(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Turn `query` [T, Hq, D] in place and `key` [T, Hkv, D] on its way into the pool; store `value` beside it.

    `x * cos + rotate_half(x) * sin`, halves of D as pairs. `cos`, `sin` [T, D], contiguous, both halves alike. `slots`
    int64 [T]: page * page_size + offset, all different. `keys`, `values` [pages, page_size, Hkv, D] of the same strides.
    """
    rows, heads, size = query.shape
    kv_heads = key.shape[1]
    assert key.shape == value.shape == (rows, kv_heads, size)
    assert query.stride()[1:] == key.stride()[1:] == value.stride()[1:] == (size, 1)
    assert cos.shape == sin.shape == (rows, size)
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    assert slots.shape == (rows,)
    assert slots.dtype == torch.int64
    assert keys.shape == values.shape
    assert keys.shape[2:] == (kv_heads, size)
    assert keys.stride() == values.stride()
    assert keys.stride(3) == 1
    half = size // 2
    at_once = min(8, triton.next_power_of_2(kv_heads))
    _rotary_store_kernel[(rows, triton.cdiv(heads, at_once) + triton.cdiv(kv_heads, at_once))](
        query, key, value, cos, sin, slots, keys, values,
        query.stride(0), key.stride(0), value.stride(0), *keys.stride()[:3],
        HEADS=heads, KV_HEADS=kv_heads, D=size, HALF=half, BLOCK=triton.next_power_of_2(half), PAGE=keys.shape[1],
        AT_ONCE=at_once, num_warps=2,
    )  # fmt: skip


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of `gate_up` [T, 2 N], gates first. Returns [T, N]."""
    rows, both = gate_up.shape
    assert gate_up.stride(1) == 1
    assert both % 2 == 0
    size = both // 2
    output = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(size))
    _swiglu_kernel[(rows, triton.cdiv(size, block))](
        gate_up, output, gate_up.stride(0), SIZE=size, BLOCK=block, num_warps=4
    )
    return output
