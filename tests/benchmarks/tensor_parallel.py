"""The engine on two GPUs beside one of them: Llama-3-8B's shape, random bfloat16 weights, on one machine, in one run.

    python tests/benchmarks/tensor_parallel.py [--json FILE] [--quick] [--runs 3] [--shape tiny] [CASE ...]

`step` is measured as `gpu_engine.py` does. First both say the same prompts: their logits may be as far apart as those of one GPU
for the same prompts alone and beside others, times 1.5, since in bfloat16 every other way to compute rounds otherwise. Without
GPUs the shape is `tiny` and two processes of the CPU are the devices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from myna.engine.admission import admit
from myna.engine.parallel import follower
from myna.engine.parallel.division import divide
from myna.engine.parallel.leader import DividedModel, gather
from myna.engine.parallel.ranks import Ranks
from tests.benchmarks.gpu_engine import (
    LLAMA_3_8B,
    PREFILLS,
    STEPS,
    TINY,
    Bench,
    PrefillCase,
    StepCase,
    name_of,
    random_network,
    release,
    settled,
    torch_device,
)
from tests.benchmarks.reporting import Row, row, show, write
from tests.engine.scoring import Spoken, apart, speak

SHAPES = {"llama-3-8b": LLAMA_3_8B, "tiny": {**TINY, "num_key_value_heads": 2}}
CASES: list[StepCase | PrefillCase] = [STEPS[1], STEPS[0], STEPS[2], STEPS[5], PREFILLS[0]]
TARGET = {STEPS[1].name: 0.65}
"""Two GPUs' step over one's."""
PROMPTS, SAID = 8, 6
ALIKE = 1.5
"""How far two GPUs' logits may be from one's, over what one GPU's are apart alone and batched."""


def part(shape: dict[str, Any], ranks: Ranks) -> Any:
    """A rank's part of the model."""
    network = random_network(shape, ranks.device)
    division = divide(network, name_of(shape), ranks)
    return admit(network, name_of(shape), division)


@contextmanager
def divided(named: str, devices: list[str]) -> Iterator[Bench]:
    """The bench over several devices."""
    shape = SHAPES[named]
    command = [sys.executable, __file__, "--follow", "--shape", named]
    with gather(devices, command, name_of(shape)) as group:
        model = DividedModel(part(shape, group.ranks), group)
        yield settled(Bench(shape, torch.device(devices[0]), model))


def said(bench: Bench, prompts: list[list[int]]) -> list[Spoken]:
    """Greedy outputs, with their logits; nothing is cached before."""
    bench.engine.tree.evict(bench.engine.pool.pages)
    return speak(bench.engine, prompts, SAID)


def measured(bench: Bench, case: StepCase | PrefillCase, runs: int) -> list[float]:
    """Milliseconds a step, or those of a prompt."""
    if isinstance(case, StepCase):
        return bench.steps(case, runs)
    return [bench.length(case.tokens) / rate * 1e3 for rate in bench.prefill(case, runs + 1)]


def compared(case: StepCase | PrefillCase, one: list[float], two: list[float]) -> list[Row]:
    """The rows of a case."""
    metric = "step" if isinstance(case, StepCase) else "prefill"
    alone = statistics.median(one)
    time = replace(row(case.name, metric, "ms", "lower", two), baselines={"one GPU": round(alone, 3)}, same_run=True)
    shares = [each / alone for each in two]
    share = row(case.name, "two GPUs' time / one GPU's", "ratio", "lower", shares)
    return [time, replace(share, target=TARGET.get(case.name))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *(case.name for case in CASES)], metavar="CASE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one run of the case that has a target")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", choices=list(SHAPES), default=None)
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if gpus == 1:
        parser.error("there is one GPU: two are compared with one")
    devices = ["cuda:0", "cuda:1"] if gpus else ["cpu", "cpu"]
    named = options.shape or ("llama-3-8b" if gpus else "tiny")
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    if options.quick:
        chosen = chosen[:1]
    rows = compare(named, devices, chosen, 1 if options.quick else options.runs)
    if options.json:
        name = torch_device(torch.device(devices[0]))
        write(options.json, "tensor_parallel", rows, ("torch", "triton", "transformers"), name and f"2 x {name}")


def compare(named: str, devices: list[str], chosen: list[StepCase | PrefillCase], runs: int) -> list[Row]:
    """All rows, shown as they come."""
    first = torch.device(devices[0])
    bench = settled(Bench(SHAPES[named], first))
    prompts = [bench.text(100 + 60 * number) for number in range(PROMPTS)]
    spoken = said(bench, prompts)
    noise = max(apart(one, said(bench, [prompt])[0]) for one, prompt in zip(spoken, prompts, strict=True))
    alone = {case.name: measured(bench, case, runs) for case in chosen}
    show([row(case.name, "one GPU", "ms", "lower", alone[case.name]) for case in chosen])
    del bench
    release(first)
    with divided(named, devices) as bench:
        off = max(apart(one, two) for one, two in zip(spoken, said(bench, prompts), strict=True))
        found = row("logits", "two GPUs' from one's / one's alone and batched", "ratio", "lower", [off / noise])
        rows = [replace(found, baselines={"one GPU, in deviations": round(noise, 4)}, target=ALIKE)]
        show(rows)
        for case in chosen:
            made = compared(case, alone[case.name], measured(bench, case, runs))
            show(made)
            sys.stdout.flush()
            rows += made
    return rows


def follow() -> int:
    """Be a follower, as the leader's command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--shape", required=True)
    follower.add_arguments(parser)
    options = parser.parse_args()
    return follower.serve(options, lambda ranks: part(SHAPES[options.shape], ranks))


if __name__ == "__main__":
    if "--follow" in sys.argv:
        sys.exit(follow())
    main()
