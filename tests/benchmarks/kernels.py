"""Time of one layer's tree attention on a GPU, beside FlashInfer's best arms on the same trees in the same run; fused kernels.

    python tests/benchmarks/kernels.py [--json FILE] [--quick] [CASE ...]

Decoding steps of random paged trees, bf16, head size 128, by replay of a CUDA graph over distinct layers, whose KV
doesn't fit in the L2 together. Every case is compared with float64 before it is timed. Our pages have 64 tokens,
FlashInfer's 16, its best. Without FlashInfer, its figures for the four main cases are quoted (`same_run` is false).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor

from myna.engine.plan import Span, StepPlan
from myna.engine.work import Tiling, make_work
from myna.kernels.fused import rms_norm, rotary_store, swiglu
from myna.kernels.tree_launch import WorkBuffer, choose_shape, tree_attention
from tests.kernels.paged_trees import Node, Request, fan_out, make_plan

HEAD_DIM = 128
PAGE_SIZE, PEER_PAGE_SIZE = 64, 16
BYTES_PER_US = 3.0e6
FLOP_PER_US = 790e6
TOLERANCE = 3.3e-3


@dataclass(frozen=True)
class Case:
    """A tree (`paged_trees.fan_out`), the issue's target and FlashInfer's best arm as once measured, both in us.

    `prompt` instead of a tree: tokens of one sequence, and how many of them are new in this step.
    """

    name: str
    tree: str = ""
    target: float | None = None
    quoted: tuple[str, float] | None = None
    heads: int = 32
    kv_heads: int = 8
    prompt: tuple[int, int] | None = None

    def sequences(self) -> tuple[list[Node], list[Request]]:
        return fan_out(self.tree) if self.prompt is None else ([], [Request(None, *self.prompt)])


CASES = [
    Case("P2048 U256 B16", "1,16_2048,256", 20, ("dec_tc", 27.4)),
    Case("P6000 U500 B32", "1,32_6000,500", 45, ("mixed", 59.4)),
    Case("P8192 U128 B64", "1,64_8192,128", 40, ("mixed", 66.4)),
    Case("P32768 U512 B32", "1,32_32768,512", 88, ("mixed", 100.8)),
    *(
        Case(tree, tree)
        for tree in (
            "1,10_4096,416",
            "1,256_256,32",
            "1,4,16,512_1024,256,128,32",
            "8,16,32,256_512,512,256,32",
            "256_4096",
        )
    ),
    Case("MHA 40 heads, P8192 U10 B64", "1,64_8192,10", heads=40, kv_heads=40),
    Case("prompt of 4096", prompt=(4096, 4096)),
    Case("prompt of 16384", prompt=(16384, 16384)),
    Case("chunk of 2048 after 14336", prompt=(16384, 2048)),
]


@dataclass(frozen=True)
class Timing:
    """Microseconds a layer: median, 10th and 90th percentile of so many replays."""

    median: float
    low: float
    high: float
    runs: int


def time_layers(run: Callable[[], object], layers: int, runs: int) -> Timing:
    """Time `run`, which does all layers, by replays of a graph of it."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    taken = []
    for _ in range(runs + 5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) * 1e3 / layers)
    taken = taken[5:]
    deciles = statistics.quantiles(taken, n=10)
    return Timing(statistics.median(taken), deciles[0], deciles[-1], runs)


def kv_bytes(case: Case, nodes: list[Node], requests: list[Request]) -> int:
    tokens = sum(node.length for node in nodes) + sum(request.own for request in requests)
    return tokens * case.kv_heads * HEAD_DIM * 2 * 2


def floor(case: Case, plan: StepPlan, kv: int) -> float:
    """Microseconds that bytes or arithmetic take at the least."""
    pairs = sum(min(at + 1 - span.start, span.length) for span in plan.spans for at in _positions(plan, span))
    queries = 2 * 2 * len(plan.positions) * case.heads * HEAD_DIM
    return max((kv + queries) / BYTES_PER_US, 4 * pairs * case.heads * HEAD_DIM / FLOP_PER_US)


def _positions(plan: StepPlan, span: Span) -> list[int]:
    return [plan.positions[row] for row in span.queries]


def layers_of(kv: int) -> int:
    """As many distinct layers as make cached KV unlikely."""
    return max(4, min(16, 600_000_000 // kv + 1))


def measure_ours(case: Case, runs: int) -> tuple[Timing, float]:
    """Our time, and the case's floor. Raises AssertionError if an output is wrong."""
    nodes, requests = case.sequences()
    plan, pages = make_plan(nodes, requests, PAGE_SIZE, np.random.default_rng())
    kv = kv_bytes(case, nodes, requests)
    layers = layers_of(kv)
    group = case.heads // case.kv_heads
    shape = choose_shape(case.kv_heads, group, HEAD_DIM, PAGE_SIZE, torch.bfloat16)
    slots = shape.programs * torch.cuda.get_device_properties(0).multi_processor_count
    work = make_work(plan, Tiling.of(shape, slots))
    buffer = WorkBuffer(WorkBuffer.capacity([work]), shape, torch.device("cuda"))
    buffer.load(work)
    pools = [random(2, pages, case.kv_heads, PAGE_SIZE, HEAD_DIM).transpose(2, 3) for _ in range(layers)]
    queries = [random(len(plan.positions), case.heads, HEAD_DIM) for _ in range(layers)]
    outputs = [torch.full_like(query, torch.nan) for query in queries]

    def run() -> None:
        for query, (keys, values), output in zip(queries, pools, outputs, strict=True):
            tree_attention(query, keys, values, output, buffer, shape, scaling=HEAD_DIM**-0.5)

    timing = time_layers(run, layers, runs)
    for layer in (0, layers - 1):
        check(plan, queries[layer], pools[layer], outputs[layer])
    return timing, floor(case, plan, kv)


def random(*sizes: int) -> Tensor:
    return torch.randn(sizes, dtype=torch.bfloat16, device="cuda")


def check(plan: StepPlan, query: Tensor, pool: Tensor, output: Tensor) -> None:
    """Compare some rows with attention in float64."""
    keys, values = pool
    for row in np.random.default_rng().choice(len(plan.positions), 6, replace=False):
        parts = [
            (
                pool_[torch.tensor(span.pages, device="cuda")]
                .flatten(0, 1)[: min(span.length, plan.positions[row] + 1 - span.start)]
                .double()
            )
            for pool_ in (keys, values)
            for span in plan.spans
            if row in span.queries
        ]  # all keys, or as many as the row's position says
        k, v = (torch.cat(half) for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]))
        q = query[row].double().unflatten(0, (k.shape[1], -1))
        weights = torch.softmax(torch.einsum("hgd,thd->hgt", q, k) * HEAD_DIM**-0.5, dim=-1)
        truth = torch.einsum("hgt,thd->hgd", weights, v).flatten(0, 1)
        error = float((output[row].double() - truth).norm() / truth.norm())
        assert error < TOLERANCE, f"row {row} is off by {error:.1e}"


def measure_peers(case: Case, runs: int) -> dict[str, Timing]:
    """FlashInfer's arms, none where it isn't installed; for a whole prompt, torch's own attention."""
    if case.prompt is not None:
        return measure_torch(case, runs) if len(set(case.prompt)) == 1 else {}
    try:
        peer = version("flashinfer-python")
    except PackageNotFoundError:
        return {}
    from tests.benchmarks.peers import flashinfer_arms

    nodes, requests = case.sequences()
    plan, pages = make_plan(nodes, requests, PEER_PAGE_SIZE, np.random.default_rng())
    layers = layers_of(kv_bytes(case, nodes, requests))
    pools = [random(pages, 2, PEER_PAGE_SIZE, case.kv_heads, HEAD_DIM) for _ in range(layers)]
    queries = [random(len(requests), case.heads, HEAD_DIM) for _ in range(layers)]
    timings = {}
    for name, arm in flashinfer_arms(plan, PEER_PAGE_SIZE, case.heads, case.kv_heads, HEAD_DIM).items():
        timings[f"flashinfer {peer} {name}"] = time_layers(
            lambda arm=arm: [arm(query, pool) for query, pool in zip(queries, pools, strict=True)],  # type: ignore[misc]
            layers,
            runs,
        )
    return timings


def measure_torch(case: Case, runs: int) -> dict[str, Timing]:
    """`scaled_dot_product_attention` of a whole prompt, by the backend that torch chooses."""
    assert case.prompt is not None
    query, key, value = (random(1, heads, case.prompt[0], HEAD_DIM) for heads in (case.heads, *[case.kv_heads] * 2))
    attend = torch.nn.functional.scaled_dot_product_attention
    timing = time_layers(
        lambda: [attend(query, key, value, is_causal=True, enable_gqa=True) for _ in range(4)], 4, runs
    )
    return {f"torch {version('torch')} SDPA": timing}


def row(case: Case, runs: int) -> dict[str, object]:
    """One row of the report."""
    timing, least = measure_ours(case, runs)
    torch.cuda.empty_cache()
    peers = {name: round(peer.median, 1) for name, peer in measure_peers(case, runs).items()}
    torch.cuda.empty_cache()
    quoted = {} if case.quoted is None else {f"flashinfer 0.6.13 {case.quoted[0]}": case.quoted[1]}
    return {
        "case": case.name, "metric": "time per layer", "unit": "us", "better": "lower",
        "value": round(timing.median, 1), "spread": [round(timing.low, 1), round(timing.high, 1)], "runs": timing.runs,
        "baselines": peers or quoted, "same_run": bool(peers), "floor": round(least, 1), "target": case.target,
    }  # fmt: skip


def fused_rows(runs: int) -> list[dict[str, object]]:
    """The fused kernels at the sizes of Llama-3-8B, beside the same in eager torch, both in graphs."""
    rows: list[dict[str, object]] = []
    for tokens in (64, 2048):
        for name, (ours, torchs) in fused_pairs(tokens).items():
            timing, peer = (time_layers(lambda run=run: [run() for _ in range(20)], 20, runs) for run in (ours, torchs))  # type: ignore[misc]
            rows.append(
                {
                    "case": f"{name} T{tokens}", "metric": "time", "unit": "us", "better": "lower",
                    "value": round(timing.median, 2), "spread": [round(timing.low, 2), round(timing.high, 2)],
                    "runs": runs, "baselines": {f"torch {version('torch')}": round(peer.median, 2)}, "same_run": True,
                    "floor": None, "target": None,
                }
            )  # fmt: skip
    return rows


def fused_pairs(tokens: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Our kernel and what it replaces. Both find their data in the L2, as they do in a model."""
    hidden, inner, heads, kv_heads = 4096, 14336, 32, 8
    x, residual, weight = random(tokens, hidden), random(tokens, hidden), random(hidden)
    gate_up = random(tokens, 2 * inner)
    query, key, value = random(tokens, heads + 2 * kv_heads, HEAD_DIM).split([heads, kv_heads, kv_heads], dim=1)
    cos, sin = random(tokens, HEAD_DIM), random(tokens, HEAD_DIM)
    keys, values = random(2, tokens // PAGE_SIZE + 1, kv_heads, PAGE_SIZE, HEAD_DIM).transpose(2, 3)
    slots = torch.randperm(tokens, device="cuda")

    def torch_norm() -> Tensor:
        residual.add_(x)
        return torch.nn.functional.rms_norm(residual, (hidden,), weight, 1e-5)

    def turn(part: Tensor) -> Tensor:
        low, high = part.chunk(2, dim=-1)
        return part * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]

    def torch_rotary() -> None:
        turn(query)
        keys[slots // PAGE_SIZE, slots % PAGE_SIZE] = turn(key)
        values[slots // PAGE_SIZE, slots % PAGE_SIZE] = value

    def torch_swiglu() -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    return {
        "norm with residual": (lambda: rms_norm(x, weight, 1e-5, residual), torch_norm),
        "rotary and KV write": (
            lambda: rotary_store(query, key, value, cos, sin, slots, slots, keys, values),
            torch_rotary,
        ),
        "SwiGLU": (lambda: swiglu(gate_up), torch_swiglu),
    }


def facts() -> dict[str, object]:
    """Where and of what the numbers were taken. A copy without its repository gets MYNA_COMMIT and MYNA_DIRTY."""
    commit, dirty = os.environ.get("MYNA_COMMIT"), os.environ.get("MYNA_DIRTY", "0") != "0"
    if commit is None:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "device": torch.cuda.get_device_name(),
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "triton")},
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *(case.name for case in CASES)], metavar="CASE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="the two smallest cases, few replays")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device")
    chosen = CASES[:1] + CASES[4:5] if options.quick else CASES
    rows = []
    for case in chosen:
        if options.cases and case.name not in options.cases:
            continue
        rows.append(row(case, 10 if options.quick else 30))
        print(line(rows[-1]), flush=True)
    if not options.cases:
        for result in fused_rows(10 if options.quick else 30):
            rows.append(result)
            print(line(result), flush=True)
    if options.json:
        report = {"benchmark": "kernels", **facts(), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def line(result: dict[str, object]) -> str:
    """A row for people."""
    baselines = result["baselines"]
    assert isinstance(baselines, dict)
    peer = min(baselines.items(), key=lambda item: float(item[1]), default=("no peer", float("nan")))
    return (
        f"{result['case']!s:30} {result['value']:>8} us   floor {result['floor'] or '-':>7}   target {result['target'] or '-':>4}"
        f"   {peer[0]} {peer[1]}"
    )


if __name__ == "__main__":
    main()
