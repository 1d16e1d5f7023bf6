"""What the tests of the fused kernels run in a process of their own (see `kernel_runs`): errors against float64."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.kernel_runs import DEVICE


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def norm_error(dtype: torch.dtype, size: int, with_residual: bool, one_plus: bool) -> float:
    from myna.kernels.fused import rms_norm

    x, residual = (torch.randn(5, size, dtype=dtype, device=DEVICE) for _ in range(2))
    weight = torch.randn(size, dtype=dtype, device=DEVICE)
    total = (x + residual) if with_residual else x
    exact = total.double()
    truth = exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight.double() + one_plus)
    output = rms_norm(x, weight, 1e-5, residual if with_residual else None, one_plus=one_plus)
    return max(difference(output, truth), difference(residual, total) if with_residual else 0.0)


def rotary_error(dtype: torch.dtype, size: int, page_size: int) -> float:
    from myna.kernels.fused import rotary_store

    rows, heads, kv_heads, pages = 7, 9, 3, 5
    fused = torch.randn(rows, heads + 2 * kv_heads, size, dtype=dtype, device=DEVICE)
    query, key, value = fused.split([heads, kv_heads, kv_heads], dim=1)
    angles = torch.randn(rows, size // 2, device=DEVICE)
    cos, sin = (torch.cat([part, part], -1).to(dtype) for part in (angles.cos(), angles.sin()))
    pool = torch.zeros(2, pages, kv_heads, page_size, size, dtype=dtype, device=DEVICE)
    slots = torch.randperm(pages * page_size, device=DEVICE)[:rows]

    def turned(x: Tensor) -> Tensor:
        low, high = x.double().chunk(2, dim=-1)
        return x.double() * cos.double()[:, None] + torch.cat([-high, low], -1) * sin.double()[:, None]

    true_query, true_key, true_value = turned(query), turned(key), value.clone()
    keys, values = pool.transpose(2, 3)
    rotary_store(query, key, value, cos, sin, torch.arange(rows, device=DEVICE), slots, keys, values)
    stored = [part.flatten(0, 1)[slots] for part in (keys, values)]
    assert int((pool != 0).any(-1).sum()) == 2 * rows * kv_heads, "slots of other tokens were written"
    return max(difference(query, true_query), difference(stored[0], true_key), difference(stored[1], true_value))


def swiglu_error(dtype: torch.dtype, size: int) -> float:
    from myna.kernels.fused import swiglu

    gate_up = torch.randn(3, 2 * size, dtype=dtype, device=DEVICE)
    gate, up = gate_up.double().chunk(2, dim=-1)
    return difference(swiglu(gate_up), torch.nn.functional.silu(gate) * up)


def normed_heads_error(dtype: torch.dtype) -> float:
    """Rotary with a norm of each head before it, tables read by position, keys turned in place as well."""
    from myna.kernels.fused import HeadNorms, rotary_store

    rows, heads, kv_heads, size = 5, 4, 2, 32
    fused = torch.randn(rows, heads + 2 * kv_heads, size, dtype=dtype, device=DEVICE)
    query, key, value = fused.split([heads, kv_heads, kv_heads], dim=1)
    angles = torch.randn(11, size // 2, device=DEVICE)
    cos, sin = (torch.cat([part, part], -1).to(dtype) for part in (angles.cos(), angles.sin()))
    positions = torch.randint(11, (rows,), dtype=torch.int32, device=DEVICE)
    norms = HeadNorms(
        torch.randn(size, dtype=dtype, device=DEVICE), torch.randn(size, dtype=dtype, device=DEVICE), 1e-5
    )
    pool = torch.zeros(2, 3, kv_heads, 4, size, dtype=dtype, device=DEVICE)
    slots = torch.randperm(12, device=DEVICE)[:rows].int()

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        x = x.double()
        x = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
        low, high = x.chunk(2, dim=-1)
        at = positions.long()
        return x * cos.double()[at, None] + torch.cat([-high, low], -1) * sin.double()[at, None]

    truth = turned(query, norms.query), turned(key, norms.key)
    keys, values = pool.transpose(2, 3)
    rotary_store(query, key, value, cos, sin, positions, slots, keys, values, norms=norms, keep=True)
    stored = keys.flatten(0, 1)[slots.long()]
    return max(difference(query, truth[0]), difference(key, truth[1]), difference(stored, truth[1]))


def norm_of_parts_error(dtype: torch.dtype) -> float:
    """Parts of a product are summed, added to the residual and normed; then some rows of them alone."""
    from myna.kernels.fused import rms_norm

    parts = torch.randn(3, 5, 96, device=DEVICE)
    residual = torch.randn(5, 96, dtype=dtype, device=DEVICE)
    weight = torch.randn(96, dtype=dtype, device=DEVICE)
    total = (parts.double().sum(0) + residual.double()).to(dtype)

    def normed(x: Tensor) -> Tensor:
        return x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()

    rows = torch.tensor([4, 0, 4], dtype=torch.int32, device=DEVICE)
    some = rms_norm(parts, weight, 1e-5, residual.clone(), rows=rows)
    every = rms_norm(parts, weight, 1e-5, residual)
    errors = difference(every, normed(total)), difference(some, normed(total)[rows.long()]), difference(residual, total)
    return max(errors)


def few_rows_error(dtype: torch.dtype, rows: int, bias: bool, summed: bool) -> float:
    from myna.kernels.few_rows import few_rows, takes

    x = torch.randn(rows, 1024, dtype=dtype, device=DEVICE)
    weight = torch.randn(256, 1024, dtype=dtype, device=DEVICE)
    assert takes(rows, weight)
    offset = torch.randn(256, dtype=dtype, device=DEVICE) if bias else None
    found = few_rows(x, weight, offset, summed=summed)
    assert found.dim() == (2 if summed or bias else 3)
    truth = x.double() @ weight.double().T + (0 if offset is None else offset.double())
    return difference(found if found.dim() == 2 else found.sum(0), truth)


def gated_error(dtype: torch.dtype, rows: int) -> float:
    from myna.kernels.few_rows import few_rows_gated, takes

    x = torch.randn(rows, 512, dtype=dtype, device=DEVICE)
    weight = torch.randn(512, 512, dtype=dtype, device=DEVICE) * 512**-0.5
    assert takes(rows, weight, gated=True)
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=-1)
    return difference(few_rows_gated(x, weight), torch.nn.functional.silu(gate) * up)


def gated_of_many_rows_error(dtype: torch.dtype, rows: int) -> float:
    """More tiles than there are programs in the interpreter, and rows that no tile ends with."""
    from myna.kernels.gated import gated

    x = torch.randn(rows, 128, dtype=dtype, device=DEVICE)
    weight = torch.randn(768, 128, dtype=dtype, device=DEVICE) * 128**-0.5
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=-1)
    return difference(gated(x, weight), torch.nn.functional.silu(gate) * up)


def largest_is_right(dtype: torch.dtype, rows: int, columns: int) -> bool:
    """Values and places, the first of equals, NaN where there is one."""
    from myna.kernels.pick import largest

    logits = torch.randint(-9, 9, (rows, columns), device=DEVICE).to(dtype)
    logits[0, columns // 2] = torch.nan
    best, place = largest(logits)
    truth = logits[1:].float().max(-1)
    first = (logits[1:] == logits[1:].max(-1, keepdim=True).values).int().argmax(-1)
    return bool(best[0].isnan() and torch.equal(best[1:], truth.values) and torch.equal(place[1:], first))
