"""The engine on a CPU against transformers' `generate` and `generate_batch`: same weights, dtype, prompts and threads.

    python tests/benchmarks/cpu_engine.py [--json FILE] [--quick] [--dtype bfloat16] [--threads 2] [--runs 5]

Greedy, with a forced number of tokens; all cases in bfloat16 and in float32, unless told. Arms run in turn in one process, so
that a noisy machine disturbs all alike; a ratio is the better baseline's median over ours. Decode time is what 64 tokens take
more than one token does. Each run of the engine has a namespace of its own, so that it begins with an empty prefix cache. All
arms get the OpenMP setting that engine processes get. A baseline that takes over twice the other's time in the first run is
not run again: it is not the better one.

A row of its own compares the engine with itself: 16 outputs that follow a JSON schema against 16 that are free.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import pydoc_data.topics
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from myna.actors.config import engine_environment

os.environ.update(engine_environment())  # before torch is loaded

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from myna.engine import loading
from myna.engine.engine import Engine, EngineConfig
from myna.engine.request import Delta, Fill, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from myna.engine.structured.constraint import Constraint, constraint_of

Prompts = list[list[int]]
Arm = Callable[[Prompts, int], list[list[int]]]


@dataclass(frozen=True)
class Case:
    """`requests` prompts of `shared` common tokens and `own` tokens of their own."""

    name: str
    requests: int
    shared: int
    own: int
    targets: dict[str, float]


CASES = [
    Case("one request", 1, 0, 64, {"decode ratio": 1.5}),
    Case("16 requests of 256, 64 out", 16, 0, 256, {"decode ratio": 3.0, "total ratio": 1.6}),
    Case("16 requests sharing 1500, 64 out", 16, 1484, 16, {"total ratio": 6.0}),
]
OUT = 64
SHAPED = Case("16 requests of 256, 64 out, JSON schema", 16, 0, 256, {"decode ratio, constrained to free": 1.05})
RECORD = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer"},
        "kind": {"enum": ["statement", "expression", "type", "module"]},
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 20}},
    },
    "required": ["title", "year", "kind", "keywords"],
    "additionalProperties": False,
}
SCHEMA = constraint_of("json_schema", {"type": "array", "items": RECORD, "minItems": OUT})
"""So long that nothing of it is whole after `OUT` tokens."""


class Ours:
    """Myna's engine, driven to the end of a batch."""

    def __init__(self, dtype: str) -> None:
        loaded = loading.load(dtype=dtype)
        self.spec = loaded.model.spec
        self.tokenizer = loaded.tokenizer
        self._engine = Engine(loaded.model, loaded.tokenizer, EngineConfig(kv_tokens=24_000))
        self._runs = 0

    def __call__(self, prompts: Prompts, tokens: int) -> list[list[int]]:
        """Greedy tokens of each prompt."""
        return self.draw(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))

    def draw(self, prompts: Prompts, sampling: SamplingParams) -> list[list[int]]:
        """Tokens of each prompt."""
        self._runs += 1
        for index, prompt in enumerate(prompts):
            steps = (Fill(tuple(prompt)), Generate(0, sampling))
            self._engine.submit(Request(RequestId(str(index)), steps, namespace=str(self._runs)))
        made: list[list[int]] = [[] for _ in prompts]
        while self._engine.has_work:
            for event in self._engine.step():
                if isinstance(event, Delta):
                    made[int(event.request_id)] += event.token_ids
        return made


class Theirs:
    """transformers, on an untouched copy of the same weights."""

    def __init__(self, dtype: str) -> None:
        source = loading._find(loading.DEFAULT_MODEL, loading._default_cache())
        self._network: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def generate(self, prompts: Prompts, tokens: int) -> list[list[int]]:
        """Static batch, dynamic cache."""
        rows = torch.tensor(prompts)
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        made = self._network.generate(rows, attention_mask=torch.ones_like(rows), do_sample=False, **limits)
        return [row[len(prompts[0]) :].tolist() for row in made]

    @torch.inference_mode()
    def generate_batch(self, prompts: Prompts, tokens: int) -> list[list[int]]:
        """transformers' own continuous batching over a paged cache."""
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        made = self._network.generate_batch(inputs=prompts, generation_config=config, progress_bar=False, warmup=False)
        return [list(output.generated_tokens) for output in made.values()]


def make_prompts(case: Case, tokenizer: Any, run: int) -> Prompts:
    """Real text, different in every run: the language reference, from another place each time."""
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    offset = 20_000 * run
    ids = tokenizer(text[offset : offset + 60_000])["input_ids"]
    shared, rest = ids[: case.shared], ids[case.shared :]
    return [shared + rest[i * case.own : (i + 1) * case.own] for i in range(case.requests)]


def timed(arm: Arm, prompts: Prompts, tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds and tokens of one run."""
    start = time.perf_counter()
    made = arm(prompts, tokens)
    seconds = time.perf_counter() - start
    assert all(len(output) == tokens for output in made), "an arm made fewer tokens than asked"
    return seconds, made


def measure(case: Case, arms: dict[str, Arm], tokenizer: Any, runs: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds for one token, seconds for all tokens) of each arm, in turn."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    running = dict(arms)
    for run in range(runs):
        prompts = make_prompts(case, tokenizer, run)
        for name, arm in running.items():
            first, _ = timed(arm, prompts, 1)
            whole, _ = timed(arm, prompts, OUT)
            taken[name].append((first, whole))
        totals = {name: taken[name][0][1] for name in running if name != "myna"}
        running = {
            name: arm for name, arm in running.items() if name == "myna" or totals[name] < 2 * min(totals.values())
        }
    return taken


def shaped_row(ours: Ours, dtype: str, runs: int, temperature: float) -> dict[str, Any]:
    """What a schema costs: decode seconds with it, over those without, in turn."""

    def arm(constraint: Constraint | None) -> Arm:
        options: dict[str, Any] = {"ignore_eos": constraint is None, "constraint": constraint}
        return lambda prompts, tokens: ours.draw(
            prompts, SamplingParams(temperature=temperature, seed=1, max_tokens=tokens, **options)
        )

    arms = {"free": arm(None), "myna": arm(SCHEMA)}
    measure(SHAPED, arms, ours.tokenizer, 1)
    taken = measure(SHAPED, arms, ours.tokenizer, runs)
    decode = {name: [whole - first for first, whole in pairs] for name, pairs in taken.items()}
    ratios = sorted(mine / free for mine, free in zip(decode["myna"], decode["free"], strict=True))
    ((metric, target),) = SHAPED.targets.items()
    return {
        "case": f"{SHAPED.name}, {'greedy' if not temperature else f'temperature {temperature:g}'}",
        "metric": metric,
        "unit": "x",
        "better": "lower",
        "dtype": dtype,
        "value": round(statistics.median(ratios), 3),
        "spread": [round(_quantile(ratios, 0.1), 3), round(_quantile(ratios, 0.9), 3)],
        "runs": runs,
        "seconds": round(statistics.median(decode["myna"]), 3),
        "baselines": {"free": round(statistics.median(decode["free"]), 3)},
        "same_run": True,
        "target": target,
    }


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory, with the threads in use: the best of several sweeps."""
    numbers = torch.ones(1 << 27)
    return numbers.nbytes / min(_seconds(numbers.sum) for _ in range(7))


def gemm_peak(dtype: torch.dtype) -> float:
    """Multiply-adds a second, times two, of a large matrix product."""
    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return 2 * 2048**3 / min(_seconds(lambda: left @ right) for _ in range(7))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def rows_of(case: Case, dtype: str, taken: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Ratios of each run's better baseline to ours."""
    metrics: dict[str, Callable[[tuple[float, float]], float]] = {
        "decode ratio": lambda pair: pair[1] - pair[0],
        "total ratio": lambda pair: pair[1],
    }
    # The better baseline is the one with the better total: `generate_batch` starts for seconds that vary by seconds, so that
    # what its 64 tokens take more than its one token may be less than reading the weights takes, or negative.
    totals = {name: statistics.median(pair[1] for pair in pairs) for name, pairs in taken.items() if name != "myna"}
    best = min(totals, key=lambda name: totals[name])
    rows = []
    for metric, target in case.targets.items():
        seconds = {name: [metrics[metric](pair) for pair in pairs] for name, pairs in taken.items()}
        ours = seconds.pop("myna")
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = sorted(theirs / mine for theirs, mine in zip(seconds[best], ours, strict=False))
        rows.append(
            {
                "case": case.name,
                "metric": metric,
                "unit": "x",
                "better": "higher",
                "dtype": dtype,
                "value": round(medians[best] / statistics.median(ours), 2),
                "spread": [round(_quantile(ratios, 0.1), 2), round(_quantile(ratios, 0.9), 2)],
                "runs": len(ours),
                "seconds": round(statistics.median(ours), 3),
                "baselines": {f"transformers {version('transformers')} {n}": round(s, 3) for n, s in medians.items()},
                "same_run": True,
                "target": target,
            }
        )
    return rows


def machine_rows(case: Case, taken: list[tuple[float, float]], spec: Any, weights: int) -> list[dict[str, Any]]:
    """How near decode comes to the memory's bandwidth, and prefill to the GEMM peak."""
    read, peak = bandwidth(), gemm_peak(getattr(torch, spec.dtype))
    step = statistics.median(whole - first for first, whole in taken) / (OUT - 1)
    item = getattr(torch, spec.dtype).itemsize
    tokens = case.shared + case.requests * (case.own + OUT / 2)
    moved = weights * item + tokens * spec.kv_bytes_per_token
    prompt = case.shared + case.requests * case.own
    first = statistics.median(first for first, _ in taken)
    share = {"decode, share of memory bandwidth": moved / read / step, "prefill, share of GEMM peak": 0.0}
    share["prefill, share of GEMM peak"] = 2 * weights * prompt / peak / first
    return [
        {
            "case": case.name,
            "metric": metric,
            "unit": "%",
            "better": "higher",
            "dtype": spec.dtype,
            "value": round(100 * value, 1),
            "spread": [round(100 * value, 1)] * 2,
            "runs": len(taken),
            "baselines": {"bytes/s read": read, "FLOP/s": peak},
            "same_run": True,
        }
        for metric, value in share.items()
    ]


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[round(part * (len(ordered) - 1))]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file that results.md describes."""
    names = ("torch", "transformers")
    return {
        "benchmark": "cpu_engine",
        "device": platform.processor() or platform.machine(),
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "rows": rows,
    }


def run_cases(dtype: str, cases: Sequence[Case], runs: int) -> list[dict[str, Any]]:
    """All rows of one dtype, printed as they come."""
    ours = Ours(dtype)
    shaped = [shaped_row(ours, dtype, max(runs, 1), temperature) for temperature in (0.0, 1.0)]
    for row in shaped:
        show(row)
    if not cases:
        return shaped
    theirs = Theirs(dtype)
    weights = sum(parameter.numel() for parameter in theirs._network.parameters())
    arms: dict[str, Arm] = {"myna": ours, "generate": theirs.generate, "generate_batch": theirs.generate_batch}
    measure(Case("warm up", 2, 0, 16, {}), arms, ours.tokenizer, 1)
    rows: list[dict[str, Any]] = []
    for case in cases:
        taken = measure(case, arms, ours.tokenizer, runs)
        rows += rows_of(case, dtype, taken) + machine_rows(case, taken["myna"], ours.spec, weights)
        for row in rows[-len(case.targets) - 2 :]:
            show(row)
    return shaped + rows


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    aim = f"target {row['target']}" if "target" in row else ""
    print(f"{row['dtype']} {row['case']:34} {row['metric']:36} {row['value']:8} {row['unit']} {row['spread']} {aim}")
    if "seconds" in row:
        print(f"    {row['seconds']} s against {row['baselines']}", flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one run of each case, the long one left out")
    parser.add_argument("--dtype", default="", help="float32 or bfloat16; both, if not given")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shaped", action="store_true", help="only what a schema costs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    for dtype in [arguments.dtype] if arguments.dtype else ["bfloat16", "float32"]:
        cases = [] if arguments.shaped else CASES[:2] if arguments.quick else CASES
        rows += run_cases(dtype, cases, 1 if arguments.quick else arguments.runs)
    if arguments.json:
        arguments.json.write_text(json.dumps(report(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
