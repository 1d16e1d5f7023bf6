"""Step times of the CPU's engine, measured, and the simulator's step-time function fitted to them.

    python tests/benchmarks/step_times.py [--json FILE] [--model FILE] [--record FILE]

Decoding of 1 to 32 sequences over contexts of 64 to 1024 tokens, and prompts. A part of the points is held out of the fit, and
decoding under a shared prefix is; the rows tell each point's measured time and the model's error. `--record` fits our model of
an H100 to a record of `gpu_engine.py` instead of measuring. `--model` writes the fitted model, for `simulate.py --engine`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.reporting import Row, show, write
from tests.benchmarks.simulation.engine import OURS, EngineModel, load
from tests.benchmarks.simulation.fitting import Point, errors, fit, points_of, refit

FIRST, LAST = 4, 36
"""Tokens that are drawn in the shorter and in the longer run of one decoding; a step is their difference."""
GRID = ((1, 64), (1, 1024), (4, 256), (8, 256), (16, 64), (16, 256), (32, 64))
HELD_OUT = ((2, 512), (8, 128), (24, 64))
SHARED = ((1024, 16, 8),)
PROMPTS = (256, 1024, 2048)
HELD_OUT_PROMPTS = (1536,)
CHUNK = 1024
"""Prompt tokens of a step of this engine."""
RUNS = 2


def measure() -> list[Point]:
    """All points, on this machine's engine with the default model."""
    from tests.benchmarks.cpu_engine import Case, Ours, make_prompts, timed  # loads torch

    ours = Ours("bfloat16")
    turn = 0

    def decode(case: Case) -> float:
        nonlocal turn
        found = []
        for _ in range(RUNS):
            turn += 1
            prompts = make_prompts(case, ours.tokenizer, turn % 20)
            seconds = [timed(ours, prompts, tokens)[0] for tokens in (FIRST, LAST)]
            found.append((seconds[1] - seconds[0]) / (LAST - FIRST))
        return statistics.median(found)

    def prompt(tokens: int) -> float:
        nonlocal turn
        found = []
        for _ in range(RUNS):
            turn += 1
            prompts = make_prompts(Case("", 1, 0, tokens, {}), ours.tokenizer, turn % 20)
            began = time.perf_counter()
            ours(prompts, 1)
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    decode(Case("", 2, 0, 64, {}))  # what is compiled or loaded late is
    drawn = (FIRST + LAST) / 2
    points = []
    for batch, context in (*GRID, *HELD_OUT):
        name = f"decode, {batch} of {context}"
        seconds = decode(Case(name, batch, 0, context, {}))
        print(f"{name}: {1e3 * seconds:.2f} ms", flush=True)
        points.append(Point(name, seconds, batch, batch * (context + drawn), seen=(batch, context) in GRID))
    for shared, own, batch in SHARED:
        name = f"decode, {batch} sharing {shared}"
        seconds = decode(Case(name, batch, shared, own, {}))
        points.append(Point(name, seconds, batch, shared + batch * (own + drawn), seen=False))
    for tokens in (*PROMPTS, *HELD_OUT_PROMPTS):
        steps = -(-tokens // CHUNK)
        points.append(Point(f"prompt of {tokens}", prompt(tokens), 0, 0, tokens, steps, seen=tokens in PROMPTS))
    return points


def rows_of(model: EngineModel, points: list[Point]) -> list[Row]:
    """Each point's measured time, and the largest errors on what was seen and what was not."""
    off = errors(model, points)
    rows = [
        Row(p.name, "seen" if p.seen else "held out", "ms", "lower", 1e3 * p.seconds, baselines={"error": off[p.name]})
        for p in points
    ]
    for what, seen in (("seen", True), ("held out", False)):
        size = [abs(off[p.name]) for p in points if p.seen is seen]
        rows.append(Row(f"error on points {what}", "mean", "share", "lower", statistics.mean(size)))
        rows.append(Row(f"error on points {what}", "largest", "share", "lower", max(size)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, help="where the fitted model is written")
    parser.add_argument("--record", type=Path, help="a record of gpu_engine.py to fit to")
    arguments = parser.parse_args()
    if arguments.record is not None:
        record = json.loads(arguments.record.read_text())
        points = points_of(record["rows"])
        model = refit(load(OURS), points, f"{record['device']}, Myna {record['commit'][:7]}")
    else:
        points = measure()
        model = fit(points, "SmolLM2-135M in bfloat16 on 2 cores, Myna")
        model = replace(model, chunk=CHUNK, tokens=24_000, sequences=64)
    rows = rows_of(model, points)
    show(rows)
    for row in rows:
        if row.baselines:
            print(f"{row.case:32} {100 * row.baselines['error']:+6.1f} %")
    if arguments.model is not None:
        arguments.model.write_text(json.dumps(asdict(model), indent=1) + "\n")
    if arguments.json is not None:
        write(arguments.json, "step_times", rows, ("torch", "numba"))


if __name__ == "__main__":
    main()
