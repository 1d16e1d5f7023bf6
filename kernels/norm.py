"""What the kernels that end in an RMS norm have in common: how each begins, what a row is, and how it ends.

A program has a whole row: `offs` are its columns, `mask` those that exist. Sums are taken in float32.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin_norm(weight_ptr, offs, mask, ONE_PLUS: tl.constexpr, PDL: tl.constexpr):
    """The weight, float32. It is read while the kernel before may still run, whose results are there afterwards."""
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if ONE_PLUS:
        weight += 1.0
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    return weight


@triton.jit
def chosen_row(rows_ptr, place, ROWS: tl.constexpr):
    """Which row goes to row `place` of the output: that one, or the one that `rows` names there."""
    row = tl.cast(place, tl.int64)
    if ROWS:
        row = tl.load(rows_ptr + place).to(tl.int64)
    return row


@triton.jit
def sum_of_parts(x_ptr, row, offs, mask, stride_part, stride_x, PARTS: tl.constexpr):
    """A row of x, which is the sum of its parts, float32."""
    x = tl.load(x_ptr + row * stride_x + offs, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(x_ptr + part * stride_part + row * stride_x + offs, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def row_of_residual(residual_ptr, row, offs, mask, SIZE: tl.constexpr):
    """A row of what the layers add up, float32."""
    return tl.load(residual_ptr + row * SIZE + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def round_and_keep(x, residual_ptr, row, offs, mask, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """x in the residual's precision; kept there, unless rows are chosen: two of them may be the same."""
    x = x.to(residual_ptr.dtype.element_ty)
    if not ROWS:
        tl.store(residual_ptr + row * SIZE + offs, x, mask=mask)
    return x.to(tl.float32)


@triton.jit
def store_normed(x, weight, output_ptr, place, offs, mask, eps, SIZE: tl.constexpr):
    """x over its root mean square, times the weight, as row `place` of the output."""
    scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    output = (x * scale * weight).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + tl.cast(place, tl.int64) * SIZE + offs, output, mask=mask)
