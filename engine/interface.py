"""The engine core's side of the joint to a model: what it needs to know and to call. Knows tensors by type only.

Whatever runs the layers (torch on a CPU, Triton on a GPU) stands behind `ModelRunner`; batching, contexts and sampling
see nothing else of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from myna.engine.plan import StepPlan


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a loaded model is. `context_length` is in tokens, `kv_bytes_per_token` counts all layers, keys and values.

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


class ModelRunner(Protocol):
    """One model with its KV pool. Not thread-safe; the engine alone calls it."""

    spec: ModelSpec

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the KV pool: `pages` pages of `page_size` tokens, zeroed once. Called once, before any forward step."""

    def copy_page(self, source: int, target: int) -> None:
        """Copy a KV page, all layers: the copy of copy-on-write."""

    def forward(self, plan: StepPlan) -> torch.Tensor:
        """Run one step. Returns logits, float32 `[len(plan.logit_rows), vocab_size]`, on the model's device."""
