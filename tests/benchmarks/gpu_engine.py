"""The engine on a GPU: Llama-3-8B's shape, random bfloat16 weights, token ids in, greedy; beside what vLLM takes.

    python tests/benchmarks/gpu_engine.py [--json FILE] [--quick] [--runs 3] [--no-arms] [--shape tiny] [CASE ...]

`step` is what 160 tokens for each request take more than 32 tokens do, over 128, as the anchor measured it: the shared prefix
is cached before, each request's own part is new in every run. `prefill` is one prompt with nothing cached, to its first token.
`job` is a whole application, nothing cached; its requests are submitted as their inputs are there. Engine and batching are
those of an engine process. vLLM's figures are quoted from an earlier run on an H100 (`same_run` is false). Arms of our own
engine, with less of what it does, have rows of their own. Shape `tiny` divides all lengths by 16: to try the program anywhere.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from myna.engine.admission import admit
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import ModelRunner
from myna.engine.request import Delta, Done, Failed, Fill, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from tests.benchmarks.reporting import Row, row, show, write
from tests.engine.tiny_tokenizers import words

LLAMA_3_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 65_536,  # the longest case has 33,440
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}
TINY: dict[str, Any] = {
    **LLAMA_3_8B,
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SHRINK = 16
"""What the tiny shape divides lengths by."""

OUTPUTS = (32, 160)
BYTES_PER_MS = 3.0e9
FLOP_PER_MS = 790e9
WEIGHT_BYTES = 16.0e9

Tokens = list[int]


@dataclass(frozen=True)
class StepCase:
    """`batch` requests decode after `prefix` shared tokens and `own` of their own.

    `vllm`: milliseconds, with prefix caching, and with cascade attention allowed besides.
    """

    name: str
    prefix: int
    own: int
    batch: int
    vllm: tuple[float, float]
    target: float

    def floor(self) -> float:
        """Milliseconds that the bytes or the arithmetic of a step take at the least, as in the anchor."""
        tokens, heads = self.prefix + self.batch * self.own, 16384 * self.batch
        work = 16384 * self.batch * (self.prefix + self.own)
        return 32 * max((4096 * tokens + heads) / BYTES_PER_MS, work / FLOP_PER_MS) + WEIGHT_BYTES / BYTES_PER_MS


STEPS = [
    StepCase("decode B1, U128", 0, 128, 1, (6.79, 6.24), 6.2),
    StepCase("decode B64, U512", 0, 512, 64, (8.87, 8.71), 8.6),
    StepCase("decode B256, U256", 0, 256, 256, (13.95, 12.78), 12.8),
    StepCase("shared 2048, 256, 16", 2048, 256, 16, (7.65, 7.21), 6.6),
    StepCase("shared 6000, 500, 32", 6000, 500, 32, (10.97, 11.17), 7.8),
    StepCase("shared 8192, 128, 64", 8192, 128, 64, (17.82, 17.60), 7.6),
    StepCase("shared 32768, 512, 32", 32768, 512, 32, (27.35, 27.84), 10.0),
]


@dataclass(frozen=True)
class PrefillCase:
    """A prompt of `tokens`. `vllm` and `target` in tokens a second."""

    name: str
    tokens: int
    vllm: tuple[float, float]
    target: float

    def ceiling(self) -> float:
        """Tokens a second that the arithmetic of the layers allows."""
        flop = self.tokens * 2 * 32 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336) + 32 * 2 * 4096 * self.tokens**2
        return self.tokens / (flop / FLOP_PER_MS) * 1e3


PREFILLS = [
    PrefillCase("prefill 4096", 4096, (39_965, 40_806), 41_000),
    PrefillCase("prefill 16384", 16384, (33_310, 33_488), 34_000),
]


@dataclass(frozen=True)
class JobCase:
    """An application. Seconds."""

    name: str
    vllm: tuple[float, float]
    target: float


MAP_REDUCE = JobCase("map-reduce: 32 x (40+1024 -> 50), then 1650 -> 50", (1.606, 1.576), 1.5)
CHAIN = JobCase("chain: 16 x (40+1024+50 -> 50), one after another", (5.772, 5.786), 5.4)
COPILOT = JobCase("copilot: 64 x (5107 shared + 40 -> 300)", (4.297, 4.279), 2.7)
JOBS = [MAP_REDUCE, CHAIN, COPILOT]

Case = StepCase | PrefillCase | JobCase


class Bench:
    """An engine over a model of the shape, and what is measured on it."""

    def __init__(
        self, shape: dict[str, Any], device: torch.device, model: ModelRunner | None = None, **changes: Any
    ) -> None:
        """`model`: one of the shape that is there already."""
        self._divide = SHRINK if shape is TINY else 1
        self._vocabulary: int = shape["vocab_size"]
        self._random = random.Random(0)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        self._left = None
        if model is None:
            network = random_network(shape, device)
            self._left = None if free is None else free - sum(each.nbytes for each in network.parameters())
            model = admit(network, name_of(shape))
            del network
        self.engine = Engine(model, words(self._vocabulary), EngineConfig(**changes))
        self._calls = 0

    def kv_share(self) -> float | None:
        """Percent of the memory that the weights leave free which is KV; None on a CPU."""
        pool = self.engine.pool
        held = pool.pages * pool.page_size * self.engine.spec.kv_bytes_per_token
        return None if self._left is None else 100 * held / self._left

    def length(self, tokens: int) -> int:
        """A length of the shape in use."""
        return max(tokens // self._divide, 1)

    def text(self, tokens: int) -> Tokens:
        """Random token ids, as many as the shape in use makes of `tokens`."""
        return self.exactly(self.length(tokens))

    def exactly(self, tokens: int) -> Tokens:
        """So many random token ids, whatever the shape."""
        return [self._random.randrange(3, self._vocabulary) for _ in range(tokens)]

    def generate(
        self, prompts: Sequence[Tokens], tokens: int, *, namespace: str = "", cached: bool = True
    ) -> list[Tokens]:
        """Submit all at once, run to the end, return each one's `tokens` tokens."""
        self._calls += 1
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        made: dict[str, Tokens] = {f"{self._calls}-{index}": [] for index in range(len(prompts))}
        for name, prompt in zip(made, prompts, strict=True):
            steps = (Fill(tuple(prompt)), Generate(0, sampling))
            self.engine.submit(Request(RequestId(name), steps, namespace=namespace, cache_prefix=cached))
        done = self._drain(made)
        assert done == len(prompts)
        assert all(len(output) == tokens for output in made.values()), "a request ended early"
        return list(made.values())

    def _drain(self, made: dict[str, Tokens]) -> int:
        done = 0
        while self.engine.has_work:
            for event in self.engine.step():
                match event:
                    case Delta(request_id=name, token_ids=ids):
                        made[name] += ids
                    case Done():
                        done += 1
                    case Failed(error=error):
                        raise error
        return done

    @contextmanager
    def cached(self, prefix: Tokens, namespace: str) -> Iterator[None]:
        """Compute a prefix and keep it for a while."""
        name = RequestId(f"pin-{namespace}")
        self.engine.retain(name, prefix, namespace)
        self._drain({})
        yield
        self.engine.unpin(name)

    def steps(self, case: StepCase, runs: int) -> list[float]:
        """Milliseconds a step, of each run."""
        prefix = self.text(case.prefix) if case.prefix else []
        few, many = (self.length(tokens) for tokens in OUTPUTS)

        def seconds(tokens: int) -> float:
            prompts = [prefix + self.text(case.own) for _ in range(case.batch)]
            return _seconds(lambda: self.generate(prompts, tokens, namespace=case.name))

        with self.cached(prefix or self.text(1), case.name):
            seconds(few)  # to warm up
            return [(seconds(many) - seconds(few)) / (many - few) * 1e3 for _ in range(runs)]

    def prefill(self, case: PrefillCase, runs: int) -> list[float]:
        """Tokens a second, of each run."""
        prompts = [self.text(case.tokens) for _ in range(runs + 1)]
        taken = [_seconds(lambda prompt=prompt: self.generate([prompt], 1)) for prompt in prompts]  # type: ignore[misc]
        return [len(prompts[0]) / seconds for seconds in taken[1:]]

    def job(self, case: JobCase, runs: int, *, cached: bool = True) -> list[float]:
        """Seconds, of each run; each has a namespace of its own, so that nothing is cached at its start."""
        job = {MAP_REDUCE: self._map_reduce, CHAIN: self._chain, COPILOT: self._copilot}[case]
        taken = []
        for run in range(runs + 1):
            namespace = f"{case.name} {run}"
            taken.append(_seconds(lambda namespace=namespace: job(namespace, cached)))  # type: ignore[misc]
        return taken[1:]

    def _map_reduce(self, namespace: str, cached: bool) -> None:
        instructions = self.text(40)
        parts = [instructions + self.text(1024) for _ in range(32)]
        mapped = self.generate(parts, self.length(50), namespace=namespace, cached=cached)
        whole = self.text(50) + [token for output in mapped for token in output]
        self.generate([whole], self.length(50), namespace=namespace, cached=cached)

    def _chain(self, namespace: str, cached: bool) -> None:
        instructions, before = self.text(40), self.text(50)
        for _ in range(16):
            prompt = instructions + self.text(1024) + before
            (before,) = self.generate([prompt], self.length(50), namespace=namespace, cached=cached)

    def _copilot(self, namespace: str, cached: bool) -> None:
        shared = self.text(5107)
        prompts = [shared + self.text(40) for _ in range(64)]
        self.generate(prompts, self.length(300), namespace=namespace, cached=cached)


def name_of(shape: dict[str, Any]) -> str:
    """What a model of the shape is called."""
    return "llama-3-8b-shape" if shape is LLAMA_3_8B else "tiny"


def random_network(shape: dict[str, Any], device: torch.device) -> Any:
    """A transformers model with random weights, the same on devices of one kind, made where it will run."""
    transformers_logging.set_verbosity_error()
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **shape, bos_token_id=1, eos_token_id=2)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _seconds(action: Any) -> float:
    gc.collect()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Report:
    """Rows as they come. At another shape than the anchor's there is nothing to compare with."""

    def __init__(self, *, compared: bool) -> None:
        self.rows: list[Row] = []
        self._compared = compared

    def add(self, case: Case, values: list[float], bound: float | None = None, arm: str = "") -> None:
        """A row of a case; `arm` names what of ours was left out. `bound`: the floor, or the ceiling of a rate."""
        metric, unit, better = {
            StepCase: ("step", "ms", "lower"), PrefillCase: ("prefill", "tokens/s", "higher"), JobCase: ("job", "s", "lower")
        }[type(case)]  # fmt: skip
        made = row(case.name, metric + (f", {arm}" if arm else ""), unit, better, values)
        if self._compared:
            plain, cascade = case.vllm
            baselines = {"vllm 0.25.1": plain, "vllm 0.25.1, cascade allowed": cascade}
            made = replace(made, baselines=baselines, same_run=False, floor=bound and round(bound, 2))
            made = made if arm else replace(made, target=case.target)
        self.take(made)

    def take(self, made: Row) -> None:
        """A row made elsewhere."""
        self.rows.append(made)
        show([made])
        sys.stdout.flush()


def measure(bench: Bench, report: Report, cases: Sequence[Case], runs: int) -> None:
    """All cases on the engine as it is."""
    for case in cases:
        match case:
            case StepCase():
                report.add(case, bench.steps(case, runs), case.floor())
            case PrefillCase():
                report.add(case, bench.prefill(case, runs + 2), case.ceiling())
            case JobCase():
                report.add(case, bench.job(case, runs))
    if (share := bench.kv_share()) is not None:
        report.take(
            replace(row("KV pool", "share of what the weights leave", "%", "higher", [round(share, 1)]), target=90)
        )


def measure_arms(shape: dict[str, Any], device: torch.device, report: Report, cases: Sequence[Case]) -> None:
    """One run of some cases on engines that leave something out."""
    bench = settled(Bench(shape, device, small_run=10**9))
    for case in cases:
        if isinstance(case, StepCase) and case.prefix:
            report.add(case, bench.steps(case, 1), arm="shared runs read by each")
    if COPILOT in cases:
        report.add(COPILOT, bench.job(COPILOT, 1, cached=False), arm="no prefix cache")
    del bench
    release(device)
    bench = settled(Bench(shape, device, graphs=False))
    for case in cases:
        if isinstance(case, StepCase) and case.batch <= 16:
            report.add(case, bench.steps(case, 1), arm="graphs off")


def settled(bench: Bench) -> Bench:
    """Spare the collector what stays, as an engine process does when its model is loaded."""
    gc.collect()
    gc.freeze()
    return bench


def release(device: torch.device) -> None:
    """Give a dropped engine's memory back before the next one is sized."""
    gc.unfreeze()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    every: list[Case] = [*STEPS, *PREFILLS, *JOBS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *(case.name for case in every)], metavar="CASE")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="one run of the two smallest steps and the shorter prefill"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-arms", action="store_true", help="leave out the arms of our own engine")
    parser.add_argument("--shape", choices=["llama-3-8b", "tiny"], default=None, help="tiny where there is no GPU")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = options.shape or ("llama-3-8b" if device.type == "cuda" else "tiny")
    shape = LLAMA_3_8B if named == "llama-3-8b" else TINY
    chosen = [case for case in every if not options.cases or case.name in options.cases]
    if options.quick:
        chosen = [case for case in chosen if case in (STEPS[0], STEPS[3], PREFILLS[0])]
    report = Report(compared=shape is LLAMA_3_8B and device.type == "cuda")
    bench = settled(Bench(shape, device))
    measure(bench, report, chosen, 1 if options.quick else options.runs)
    del bench
    release(device)
    if not options.quick and not options.no_arms:
        measure_arms(shape, device, report, chosen)
    if options.json:
        write(options.json, "gpu_engine", report.rows, ("torch", "triton", "transformers"), torch_device(device))


def torch_device(device: torch.device) -> str | None:
    """A GPU's name; None for a CPU, which the report names itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


if __name__ == "__main__":
    main()
