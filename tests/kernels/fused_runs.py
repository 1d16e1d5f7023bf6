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
    rotary_store(query, key, value, cos, sin, slots, keys, values)
    stored = [part.flatten(0, 1)[slots] for part in (keys, values)]
    assert int((pool != 0).any(-1).sum()) == 2 * rows * kv_heads, "slots of other tokens were written"
    return max(difference(query, true_query), difference(stored[0], true_key), difference(stored[1], true_value))


def swiglu_error(dtype: torch.dtype, size: int) -> float:
    from myna.kernels.fused import swiglu

    gate_up = torch.randn(3, 2 * size, dtype=dtype, device=DEVICE)
    gate, up = gate_up.double().chunk(2, dim=-1)
    return difference(swiglu(gate_up), torch.nn.functional.silu(gate) * up)
