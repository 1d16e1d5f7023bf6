"""A model is a Hugging Face decoder, run unchanged on packed batches over a paged KV pool.

One forward step takes all running sequences' new tokens as one row `[1, T]` with explicit positions; what belongs to
whom is the attention's business alone. Only the rows whose logits are wanted reach the output matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from myna.engine.attention import Attention, AttentionStep, LayerShape, TorchAttention
from myna.engine.immediate import ImmediateRunner
from myna.engine.interface import BatchLimits, ModelSpec, StepUnderWay, Suits
from myna.engine.plan import StepPlan
from myna.engine.sampler import DrawnAlready, Row, begin
from myna.engine.split import split


class Network(Protocol):
    """What turns a packed row of tokens into logits, calling `step` once in every layer."""

    def __call__(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor, step: AttentionStep) -> Tensor:
        """`token_ids`, `positions` int64 [T], `logit_rows` int64 [R]. Returns logits [R, vocabulary] in any dtype."""


Logits: TypeAlias = tuple[Tensor, tuple[Tensor, Tensor] | None]
"""Logits, float32 [rows, vocabulary], and each row's largest and its number, where they are known."""


class Shortcut(Protocol):
    """Another way to run some steps of a network, over the same pool."""

    def takes(self, plan: StepPlan) -> bool:
        """Whether it knows how to run this one."""

    def forward(self, plan: StepPlan) -> Logits:
        """Logits of a step that it takes."""


class HuggingFaceNetwork:
    """A transformers model as a `Network`: its own modules, its own forward."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor, step: AttentionStep) -> Tensor:
        """Run the model's own forward with the step as an extra argument."""
        output = self._network(
            input_ids=token_ids[None],
            position_ids=positions[None].long(),
            use_cache=False,
            logits_to_keep=logit_rows.long(),
            myna_step=step,
        )
        logits: Tensor = output.logits[0]
        return logits


class Model(ImmediateRunner):
    """A decoder with its KV pool; implements `interface.ModelRunner`. Made by `admission.admit`, not by hand."""

    spec: ModelSpec
    suits = Suits(limits=BatchLimits(ahead_tokens=0, calm=0.1, step_price=90))
    """Any part of a prompt costs a step as much as some 90 tokens, beside outputs as alone."""

    def __init__(self, network: Network, attention: Attention, spec: ModelSpec) -> None:
        self.spec = spec
        self.attention = attention
        self.shortcut: Shortcut | None = None
        self._network = network
        self._device = torch.device(spec.device)

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the KV pool: `pages` pages of `page_size` tokens, zeroed."""
        self.attention.allocate(pages, page_size)

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copy a KV page in all layers."""
        self.attention.copy_page(source, target)

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> Tensor:
        """Run one step. Returns logits, float32 [len(plan.logit_rows), vocabulary], on the model's device."""
        if self.shortcut is not None:
            return self._shortened(self.shortcut, plan)[0]
        return self._plain(plan)

    @torch.inference_mode()
    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        """Run the step and draw."""
        if self.shortcut is None or not rows:
            return super().begin(plan, rows)
        logits, greedy = self._shortened(self.shortcut, plan)
        return DrawnAlready(begin(logits, rows, greedy).read())

    def release(self) -> None:
        """Nothing is captured on a CPU."""

    def follow(self, plan: StepPlan) -> StepUnderWay:
        """Run a step as one of the leader's followers (`engine/parallel`), which draw nothing."""
        self.forward(plan)
        return DrawnAlready([])

    def _shortened(self, shortcut: Shortcut, plan: StepPlan) -> Logits:
        """The decoding rows the short way, all others the long one."""
        if shortcut.takes(plan):
            return shortcut.forward(plan)
        decoding, rest = split(plan)
        if not decoding.places or not rest.plan.positions or not shortcut.takes(decoding.plan):
            return self._plain(plan), None
        logits = torch.empty(len(plan.logit_rows), self.spec.vocab_size)
        logits[decoding.places] = shortcut.forward(decoding.plan)[0]
        logits[rest.places] = self._plain(rest.plan)
        return logits, None

    def _plain(self, plan: StepPlan) -> Tensor:
        step = self.attention.compile(plan)
        token_ids, positions, rows = (
            torch.tensor(numbers, dtype=torch.int64, device=self._device)
            for numbers in (plan.token_ids, plan.positions, plan.logit_rows)
        )
        return self._network(token_ids, positions, rows, step).float()


def describe(
    config: Any,
    generation_config: Any,
    *,
    name: str,
    layers: Sequence[LayerShape],
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    parts: int = 1,
) -> ModelSpec:
    """The facts that the engine needs, from a transformers configuration and the traced layers, those of one of `parts` ranks."""
    windows = {layer.window for layer in layers}
    return ModelSpec(
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        vocab_size=vocab_size,
        context_length=int(config.max_position_embeddings),
        layers=len(layers),
        kv_heads=layers[0].kv_heads,
        head_dim=layers[0].head_dim,
        eos_token_ids=_eos_token_ids(config) | _eos_token_ids(generation_config),
        bos_token_id=config.bos_token_id,
        sliding_window=None if None in windows else max(window for window in windows if window is not None),
        kv_bytes_per_token=sum(2 * layer.kv_heads * layer.head_dim for layer in layers) * dtype.itemsize * parts,
    )


def torch_attention(layers: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> Attention:
    """The attention implementation for a device, chosen once."""
    return TorchAttention(layers, dtype, device)


def _eos_token_ids(config: Any) -> frozenset[int]:
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
