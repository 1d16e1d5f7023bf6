"""A model that takes a GPU's time and computes nothing: what is measured over it is all the rest, with real processes.

Law: a step takes what one of as many rows took on an H100 with Llama-3-8B's shape, and longer for the KV that it reads, as the
simulator has it (`simulation/h100_myna.json`). Steps follow one another, and nobody waits for one before it is read. What is
drawn means nothing; no figure of it is a GPU's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

from myna.engine.gpu_model import GpuModel
from myna.engine.interface import BatchLimits, ModelSpec
from myna.engine.plan import StepPlan
from myna.engine.sampler import Drawn, Row
from tests.benchmarks.gpu_engine import LLAMA_3_8B
from tests.benchmarks.simulation.engine import OURS, EngineModel, load

KV_BYTES = 131_072


@cache
def _h100() -> EngineModel:
    return load(OURS)


def seconds(rows: int, read: int) -> float:
    """A step of so many rows that reads so many tokens of KV."""
    return _h100().step(rows, read)


class PacedModel:
    """Implements `interface.ModelRunner`."""

    suits = GpuModel.suits
    ahead = GpuModel.ahead

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.spec = ModelSpec(
            name="paced",
            dtype="bfloat16",
            device="cpu",
            vocab_size=LLAMA_3_8B["vocab_size"],
            context_length=LLAMA_3_8B["max_position_embeddings"],
            layers=32,
            kv_heads=8,
            head_dim=128,
            eos_token_ids=frozenset({2}),
            bos_token_id=1,
            sliding_window=None,
            kv_bytes_per_token=KV_BYTES,
        )
        self._end = 0.0

    def prepare(self, limits: BatchLimits, *, graphs: bool) -> int:
        """The memory for KV that an H100 has beside the weights."""
        return 400_000 * KV_BYTES

    def allocate(self, pages: int, page_size: int) -> None:
        """Nothing is kept."""

    def copy_page(self, source: int, target: int) -> None:
        """Nothing is kept."""

    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> Paced:
        """Begin a step, behind the one that is under way."""
        read = sum(span.length for span in plan.spans)
        self._end = max(self._end, self._clock()) + seconds(len(plan.token_ids), read)
        return Paced(self._end, [Drawn(3 + row.position * 7919 % 100_000) for row in rows])


class Paced:
    """A step under way until `end`, by `time.perf_counter`."""

    def __init__(self, end: float, drawn: list[Drawn]) -> None:
        self.end = end
        self._drawn = drawn

    def read(self) -> list[Drawn]:
        """What it has drawn, once it is over."""
        time.sleep(max(self.end - time.perf_counter(), 0.0))
        return self._drawn
