"""Compiles for sm_90 what a launcher launches, without a GPU: arguments and options are the real ones, the device is not there.

For processes of their own (see `kernel_runs.process`): Triton is told of a device that doesn't exist, and compiles where it
would launch.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from myna.engine.work import Tiling, make_work
from tests.kernels.paged_trees import Node, Request, make_plan, make_pool

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Compiled:
    """What a kernel compiled for sm_90 holds. `stack_bytes`: local memory of a thread, which is spilled registers."""

    name: str
    stack_bytes: int
    shared_bytes: int
    wgmma: int
    tensor_loads: int
    async_copies: int
    hash: str
    """Of all that it was compiled from."""


@dataclass(frozen=True)
class AttentionCase:
    """A kind of layer and a batch of decodes, `requests` of them below a shared node."""

    dtype: torch.dtype
    head_dim: int
    kv_heads: int = 8
    group: int = 4
    page_size: int = 64
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    requests: int = 3


def compile_attention(case: AttentionCase) -> dict[str, Compiled]:
    """The kernels of one layer's attention, by name."""
    from myna.kernels.tree_launch import WorkBuffer, choose_shape, tree_attention

    shape = choose_shape(case.kv_heads, case.group, case.head_dim, case.page_size, case.dtype)
    nodes, requests = [Node(None, 128)], [Request(0, 3)] * case.requests
    plan, pages = make_plan(nodes, requests, case.page_size, np.random.default_rng(0))
    work = make_work(plan, Tiling.of(shape, shape.programs * 132), case.window)
    buffer = WorkBuffer(WorkBuffer.capacity([work]), shape, CPU)
    keys, values = make_pool(pages, case.page_size, case.kv_heads, case.head_dim, case.dtype, CPU)
    heads = case.kv_heads * case.group
    query = torch.zeros(case.requests, heads, case.head_dim, dtype=case.dtype)
    sinks = torch.zeros(heads, dtype=case.dtype) if case.sinks else None
    with _launches() as made:
        tree_attention(
            query, keys, values, torch.empty_like(query), buffer, shape,
            scaling=0.1, window=case.window, softcap=case.softcap, sinks=sinks,
        )  # fmt: skip
    return {kernel.name: kernel for kernel in made}


def compile_fused(dtype: torch.dtype) -> dict[str, Compiled]:
    """The fused kernels at the sizes of Llama-3-8B, by name."""
    from myna.kernels.fused import rms_norm, rotary_store, swiglu
    from myna.kernels.pick import largest

    rows, hidden, inner, heads, kv_heads, size = 3, 4096, 14336, 32, 8, 128
    x, weight = torch.zeros(rows, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    query, key, value = torch.zeros(rows, heads + 2 * kv_heads, size, dtype=dtype).split([heads, kv_heads, kv_heads], 1)
    turn = torch.zeros(rows, size, dtype=dtype)
    keys, values = make_pool(2, 64, kv_heads, size, dtype, CPU)
    with _launches() as made:
        rms_norm(x, weight, 1e-5, x.clone())
        rotary_store(query, key, value, turn, turn, torch.arange(rows), torch.arange(rows), keys, values)
        swiglu(torch.zeros(rows, 2 * inner, dtype=dtype))
        largest(torch.zeros(rows, 128_256, dtype=dtype))
    return {kernel.name: kernel for kernel in made}


def compile_exchange() -> dict[str, Compiled]:
    """Sums with their norm and joined logits of Llama-3-8B on two GPUs, by name."""
    from myna.kernels.exchange import Exchange, MailboxShape

    shape = MailboxShape(2, 64, 4096, 64, 64_128, torch.bfloat16)
    exchange = Exchange(shape, 0, torch.zeros(shape.bytes, dtype=torch.uint8), [0, 0])
    hidden, weight = torch.zeros(64, 4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    with _launches() as made:
        exchange.sum_and_norm(torch.zeros(2, 64, 4096), weight, 1e-5, hidden)
        exchange.join(torch.zeros(64, 64_128, dtype=torch.bfloat16))
    return {kernel.name: kernel for kernel in made}


def compile_few_rows(rows: int) -> list[Compiled]:
    """Products of few rows with the weights of Llama-3-8B: attention's output in parts, gate and up, the output matrix."""
    from myna.kernels.few_rows import few_rows, few_rows_gated

    x = torch.zeros(rows, 4096, dtype=torch.bfloat16)
    with _launches() as made:
        few_rows(x, torch.empty(4096, 4096, dtype=x.dtype), summed=False)
        few_rows_gated(x, torch.empty(2 * 14336, 4096, dtype=x.dtype))
        few_rows(x, torch.empty(128_256, 4096, dtype=x.dtype))
    return made


def compile_gated(rows: int) -> Compiled:
    """The first half of Llama-3-8B's MLP for many rows."""
    from myna.kernels.gated import gated

    with _launches() as made:
        gated(torch.zeros(rows, 4096, dtype=torch.bfloat16), torch.empty(2 * 14336, 4096, dtype=torch.bfloat16))
    return made[0]


class _Hopper:
    """The device that Triton is told of: as much of its driver as compiling asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextmanager
def _launches() -> Iterator[list[Compiled]]:
    """Compile instead of launching; what was compiled is in the list."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from myna.kernels import exchange, few_rows, fused, gated, pick

    made: list[Compiled] = []
    launch = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if "UPCAST" in options:  # what the interpreter needs, which launchers take a CPU for
            options["UPCAST"] = False
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        made.append(_examine(self.__name__, kernel))
        return kernel

    driver.set_active(_Hopper())
    for module in (exchange, few_rows, fused, gated, pick):
        module.overlaps = lambda device: True  # as on the device that isn't there
    JITFunction.run = compile_only
    try:
        yield made
    finally:
        JITFunction.run = launch


def _examine(name: str, kernel: Any) -> Compiled:
    ptx = kernel.asm["ptx"]
    return Compiled(
        name,
        stack_bytes=_stack(kernel.asm["cubin"]),
        shared_bytes=kernel.metadata.shared,
        wgmma=ptx.count("wgmma.mma_async"),
        tensor_loads=ptx.count("cp.async.bulk.tensor"),
        async_copies=ptx.count("cp.async.cg"),
        hash=kernel.hash,
    )


def _stack(cubin: bytes) -> int:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    assert found, listing
    return int(found[1]) + int(found[2])
