"""The simplest way to run steps: one at a time, each over before `begin` returns. So it is on a CPU, and in tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from myna.engine.interface import BatchLimits, StepUnderWay, Suits
from myna.engine.plan import StepPlan
from myna.engine.sampler import DrawnAlready, Row, sample


class ImmediateRunner(ABC):
    """A runner whose steps are over when `begin` returns: what runs on a CPU. The pool is for others."""

    suits = Suits()
    ahead = 0
    kv_bytes = 2**30
    """A share of the host's memory that hurts nobody."""

    def prepare(self, limits: BatchLimits, *, graphs: bool) -> int:
        """Nothing to get ready."""
        return self.kv_bytes

    @abstractmethod
    def forward(self, plan: StepPlan) -> Tensor:
        """Run one step. Returns logits, float32 `[len(plan.logit_rows), vocab_size]`, on the model's device."""

    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        """Run the step and draw."""
        return DrawnAlready(sample(self.forward(plan), rows))
