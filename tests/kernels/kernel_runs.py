"""What the kernel tests run in processes of their own: Triton reads whether to interpret when it is first imported."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

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


@dataclass(frozen=True)
class Compiled:
    """What a kernel compiled for sm_90 holds."""

    stack_bytes: int
    shared_bytes: int
    wgmma: int
    tensor_loads: int
    async_copies: int


def compile_for_hopper(
    dtype: torch.dtype, head_dim: int, group: int, page_size: int, *, window: bool, softcap: bool, sinks: bool
) -> Compiled:
    """Compile the attention kernel in its chosen shape. Needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from myna.kernels.tree_attention import tree_attention_kernel
    from myna.kernels.tree_launch import choose_shape

    shape = choose_shape(8, group, head_dim, page_size, dtype)
    kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    constants = {
        "G": group, "D": head_dim, "BLOCK_D": shape.block_d, "PAGE": page_size, "KEYS": shape.keys,
        "SMALL_ROWS": shape.small_rows, "LARGE_ROWS": shape.large_rows, "STAGES": shape.stages, "TMA": shape.tma,
        "WINDOW": window, "SOFTCAP": softcap, "SINKS": sinks, "UPCAST": False, "PDL": shape.pdl,
    }  # fmt: skip
    source = f"tensordesc<{kind}[{shape.keys}, {shape.block_d}]>" if shape.tma else f"*{kind}"
    types = dict.fromkeys(("query_ptr", "output_ptr", "sinks_ptr"), f"*{kind}")
    types |= {"keys_src": source, "values_src": source, "scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("partial_ptr", "log_sum_ptr"), "*fp32") | dict.fromkeys(constants, "constexpr")
    names = tree_attention_kernel.arg_names
    signature = {name: types.get(name, "*i32" if name.endswith("_ptr") else "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name][0] == "*" or name.startswith("stride")]
    kernel = triton.compile(
        ASTSource(tree_attention_kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": shape.warps},
    )
    ptx = kernel.asm["ptx"]
    return Compiled(
        stack_bytes=_stack(kernel.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"),
        shared_bytes=kernel.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        tensor_loads=ptx.count("cp.async.bulk.tensor"),
        async_copies=ptx.count("cp.async.cg"),
    )


def _stack(cubin: bytes, cuobjdump: Path) -> int:
    """Bytes of local memory of a thread: spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    assert found, listing
    return int(found[1]) + int(found[2])
