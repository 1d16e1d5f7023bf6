"""What tokens of a prompt cost that join an output's step, by how many they are: what to fill steps to (`--ahead-tokens`).

    python tests/benchmarks/joining.py [--json FILE] [--runs 5] [--shape tiny] [ROWS ...]

One output draws on; to each of its steps comes a prompt that makes it so many rows wide. `joined`: what each of those tokens
costs the output, beside `alone`: a share of a prompt of 4096. To join pays where that is less than alone, and best where it is
least. The engine is that of `gpu_engine.py`; widths take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from myna.engine.engine import Engine
from myna.engine.request import Failed, Fill, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from tests.benchmarks.gpu_engine import LLAMA_3_8B, PREFILLS, TINY, Bench, settled, torch_device
from tests.benchmarks.reporting import Row, row, show, write

ROWS = (1, 2, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
STEPS = 40
"""Of an output, after the first few."""
FIRST = 4


def step_seconds(bench: Bench, name: str, rows: int) -> float:
    """Seconds of a step in which an output has the company of `rows - 1` tokens of a prompt."""
    engine = bench.engine
    output = Generate(0, SamplingParams(temperature=0, max_tokens=FIRST + STEPS + 4, ignore_eos=True))
    engine.submit(Request(RequestId(name), (Fill(tuple(bench.text(1024))), output)))
    for _ in range(FIRST):
        engine.step()
    company = [tuple(bench.exactly(rows - 1)) for _ in range(STEPS)]
    before, began = engine.stats().computed_tokens, time.perf_counter()
    for number, tokens in enumerate(company):
        if tokens:
            engine.submit(Request(RequestId(f"{name} {number}"), (Fill(tokens),), cache_prefix=False))
        engine.step()
    seconds = (time.perf_counter() - began) / STEPS
    computed = engine.stats().computed_tokens - before
    assert computed == STEPS * rows, f"{computed} tokens were computed in {STEPS} steps of {rows}"
    _drain(engine)
    return seconds


def _drain(engine: Engine) -> None:
    while engine.has_work:
        failed = [event.error for event in engine.step() if isinstance(event, Failed)]
        if failed:
            raise failed[0]


def measure(bench: Bench, widths: Sequence[int], runs: int) -> list[Row]:
    """A step by its rows, and what each token that joins one costs; `widths` begin with 1."""
    taken: dict[int, list[float]] = {width: [] for width in widths}
    for turn in range(runs + 1):
        for width in widths[:: 1 if turn % 2 else -1]:
            seconds = step_seconds(bench, f"{turn}-{width}", width)
            if turn:  # the first warms up
                taken[width].append(1e3 * seconds)
    alone = 1e6 / statistics.median(bench.prefill(PREFILLS[0], runs))
    rows = [row(f"{width} rows", "step", "ms", "lower", taken[width]) for width in widths]
    for width in widths[1:]:
        costs = [1e3 * (ms - one) / (width - 1) for ms, one in zip(taken[width], taken[widths[0]], strict=True)]
        joined = row(f"{width} rows", "joined, each", "us", "lower", costs)
        rows.append(replace(joined, baselines={"alone": alone}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("widths", nargs="*", type=int, default=ROWS, metavar="ROWS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shape", choices=["llama-3-8b", "tiny"], default=None, help="tiny where there is no GPU")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = options.shape or ("llama-3-8b" if device.type == "cuda" else "tiny")
    bench = settled(Bench(LLAMA_3_8B if shape == "llama-3-8b" else TINY, device))
    rows = measure(bench, sorted({1, *options.widths}), options.runs)
    show(rows)
    if options.json:
        write(options.json, "joining", rows, ("torch", "triton", "transformers"), torch_device(device))


if __name__ == "__main__":
    main()
