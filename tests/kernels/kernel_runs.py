"""What the kernel tests run in processes of their own: Triton reads whether to interpret when it is first imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch

from myna.engine.work import Tiling, make_work
from tests.kernels.paged_trees import Node, Request, flat, make_plan, make_pool

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def process(**environment: str) -> Iterator[ProcessPoolExecutor]:
    """One process with some environment variables of its own."""
    before = {name: os.environ.get(name) for name in environment}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        os.environ.update(environment)
        try:
            pool.submit(torch.set_num_threads, 1).result()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        yield pool


@dataclass(frozen=True)
class Run:
    """A kernel on a random tree. `tiles`: fields of the kernel's shape that are not the chosen ones."""

    nodes: list[Node]
    requests: list[Request]
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    tiles: dict[str, int] | None = None
    slots: int = 7
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


def error_of(run: Run) -> float:
    """Relative error against float64 on fresh random inputs; NaN if an output was not written."""
    from dataclasses import replace

    from myna.kernels import reference
    from myna.kernels.tree_launch import WorkBuffer, choose_shape, tree_attention

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    shape = choose_shape(run.kv_heads, run.group, run.head_dim, run.page_size, run.dtype)
    shape = replace(shape, pdl=not interpreted, **(run.tiles or {}))
    plan, pages = make_plan(run.nodes, run.requests, run.page_size, np.random.default_rng())
    keys, values = make_pool(pages, run.page_size, run.kv_heads, run.head_dim, run.dtype, DEVICE)
    heads = run.kv_heads * run.group
    query = torch.randn(len(plan.positions), heads, run.head_dim, dtype=run.dtype, device=DEVICE)
    sinks = torch.randn(heads, device=DEVICE) if run.sinks else None
    work = make_work(plan, Tiling.of(shape, run.slots), run.window)
    buffer = WorkBuffer(WorkBuffer.capacity([work]), shape, DEVICE)
    buffer.load(work)
    buffer.partial.fill_(torch.nan)
    buffer.log_sum.fill_(torch.nan)
    output = torch.full_like(query, torch.nan)
    options = {"scaling": run.head_dim**-0.5, "window": run.window, "softcap": run.softcap}
    tree_attention(query, keys, values, output, buffer, shape, sinks=sinks, upcast=interpreted, **options)  # type: ignore[arg-type]
    truth = reference.tree_attention(
        query.double(), flat(keys), flat(values), plan.spans, plan.positions, run.page_size,
        sinks=None if sinks is None else sinks.double(), **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return float((output.double() - truth).norm() / truth.norm())


def parts_of(run: Run) -> int:
    """The most partial results that one head of a row is merged from."""
    from dataclasses import replace

    from myna.kernels.tree_launch import choose_shape

    shape = choose_shape(run.kv_heads, run.group, run.head_dim, run.page_size, run.dtype)
    shape = replace(shape, **(run.tiles or {}))
    plan, _ = make_plan(run.nodes, run.requests, run.page_size, np.random.default_rng())
    return int(np.diff(make_work(plan, Tiling.of(shape, run.slots), run.window).merge_begin).max())
