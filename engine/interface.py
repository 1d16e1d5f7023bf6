"""The engine core's side of the joint to a model: what it needs to know and to call. Knows tensors by type only.

Whatever runs the layers (torch on a CPU, Triton on a GPU) stands behind `ModelRunner`; batching, contexts and sampling
see nothing else of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from myna.engine.plan import StepPlan
    from myna.engine.sampler import Drawn, Row


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a loaded model is. `context_length` is in tokens, `kv_bytes_per_token` counts all layers, keys and values,
    and all devices, where it is divided among several; `kv_heads` are those of one.

    `dtype` and `device` are torch's names ("float32", "cuda:0"). `eos_token_ids` may be empty. `bos_token_id` and
    `sliding_window` (tokens) are None where the model has none.
    """

    name: str
    dtype: str
    device: str
    vocab_size: int
    context_length: int
    layers: int
    kv_heads: int
    head_dim: int
    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    sliding_window: int | None
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_sequences` programs run at a time; a step computes `step_tokens` of prompts beside a token of each output.

    `mixed_tokens` of prompts while there are outputs, whose next tokens wait for the step to end; None: `step_tokens`. Without
    outputs, several prompts have `joint_tokens`, and one that is longer `step_tokens`; None: all have these. And
    `ahead_tokens` make a tile: what outputs leave of one, a step computes for next to nothing more, and does so of prompts that
    nobody waits for; 0: rows are no cheaper in company; None: no bound. A step for nobody alone begins when nobody has been
    served for `calm` seconds: who comes next may be on the way. And a step has `leading_tokens`, the outputs' among them, where
    these go before the prompts and that pays (`budget.pays`); None: no such bound. A step more costs as much as `step_price`
    tokens of prompts: to save fewer, nobody waits for another to compute what both begin with.
    """

    max_sequences: int = 64
    step_tokens: int = 1024
    mixed_tokens: int | None = None
    joint_tokens: int | None = None
    ahead_tokens: int | None = None
    leading_tokens: int | None = None
    calm: float = 0.0
    step_price: int = 0

    def __post_init__(self) -> None:
        parts = (self.mixed_tokens, self.joint_tokens, self.ahead_tokens, self.leading_tokens)
        if min(self.max_sequences, self.step_tokens, *(part or 1 for part in parts)) < 1:
            raise ValueError("a batch needs room for at least one sequence and one token")

    @property
    def in_company(self) -> bool:
        """Whether tokens that join a step are cheaper than in a step of their own."""
        return self.ahead_tokens != 0


@dataclass(frozen=True, slots=True)
class Suits:
    """What suits a model on its device: the size of a KV page in tokens, and the limits of a batch."""

    page_size: int = 16
    limits: BatchLimits = BatchLimits()


class StepUnderWay(Protocol):
    """A step that has begun, perhaps not ended."""

    def read(self) -> list[Drawn]:
        """What it has drawn for each row, once that is known. Called once, in the order in which steps began."""


class ModelRunner(Protocol):
    """One model with its KV pool. Not thread-safe; the engine alone calls it.

    Steps take effect in the order in which they begin, copies of pages among them. `ahead`: steps that may be under way
    while another one begins; where it isn't 0, a plan's `fed` rows take tokens that the step before has drawn.
    """

    spec: ModelSpec
    suits: Suits
    ahead: int

    def prepare(self, limits: BatchLimits, *, graphs: bool) -> int:
        """Get ready for steps up to these limits, before `allocate`. Returns the bytes that there are for KV.

        `graphs`: whether steps may be captured once and replayed, where the device knows that.
        """

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the KV pool: `pages` pages of `page_size` tokens, zeroed once. Called once, before any forward step."""

    def copy_page(self, source: int, target: int) -> None:
        """Copy a KV page, all layers: the copy of copy-on-write."""

    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        """Begin a step that draws a token for each of `rows`, one for each of the plan's logit rows."""
