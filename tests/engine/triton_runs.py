"""What the tests of `TritonAttention` run in a process of their own (see `tests/kernels/kernel_runs.py`)."""

from __future__ import annotations

import numpy as np
import torch

from myna.engine.attention import LayerShape, Scoring, TorchAttention
from tests.kernels.kernel_runs import DEVICE
from tests.kernels.paged_trees import Node, Request, make_plan

LAYERS = [LayerShape(2, 16, 0.25), LayerShape(2, 16, 0.25, window=20), LayerShape(1, 32, 0.2, softcap=5.0, sinks=True)]


def difference_from_torch(page_size: int, steps: int) -> float:
    """Largest relative difference, over some steps of growing batches and all layers, from the torch implementation."""
    from myna.engine.triton_attention import TritonAttention

    generator = torch.Generator().manual_seed(0)
    ours = TritonAttention(LAYERS, torch.float32, DEVICE, interpreted=DEVICE.type == "cpu")
    truth = TorchAttention(LAYERS, torch.float32, torch.device("cpu"))
    for attention in (ours, truth):
        attention.allocate(64, page_size)
    worst = 0.0
    for step in range(steps):
        requests = [
            Request(1, 9 + step, new=9),
            *[Request(0, 3 + step)] * (2 + step),
            Request(None, 5 + step, new=5 + step),
        ]
        plan, pages = make_plan([Node(None, 40), Node(0, 17)], requests, page_size, np.random.default_rng(step))
        assert pages <= 64
        steps_of = ours.compile(plan), truth.compile(plan)
        for index, layer in enumerate(LAYERS):
            query, key, value = (
                torch.randn(heads, len(plan.positions), layer.head_dim, generator=generator)
                for heads in (4, layer.kv_heads, layer.kv_heads)
            )
            sinks = torch.randn(4, generator=generator) if layer.sinks else None
            one, other = (
                each.attend(
                    index, query.to(device), key.to(device), value.to(device),
                    Scoring(layer.scaling, layer.window, layer.softcap, None if sinks is None else sinks.to(device)),
                )
                for each, device in zip(steps_of, (DEVICE, torch.device("cpu")), strict=True)
            )  # fmt: skip
            worst = max(worst, float((one.cpu() - other).norm() / other.norm()))
    for attention in (ours, truth):
        attention.copy_page(1, 2)
    keys, values = ours.pool(0)
    assert torch.equal(keys[1], keys[2])
    assert torch.equal(values[1], values[2])
    return worst
