"""The one attention interface: a step's plan is compiled once, then every layer writes its keys and values and attends.

An `Attention` owns the KV pool, in whatever layout suits it; nobody else touches it. Today there is one implementation,
in torch (`TorchAttention`); a Triton one takes its place on a GPU, behind the same two protocols. The function at the
end is what Hugging Face models call: the step reaches it as an extra keyword argument of the model's forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from myna.engine.plan import StepPlan
from myna.kernels import cpu
from myna.kernels.tails import TailBlocks, TailPlan

NAME = "myna"
"""The name under which the attention function is registered with transformers."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of a token (a key and a value of `head_dim` numbers per KV head), and how it attends.

    `window`: keys that a query sees, itself included; None: all. `softcap`: bound of the scores. `sinks`: whether the
    layer passes a learned score per head that takes part in the softmax and has no value.
    """

    kv_heads: int
    head_dim: int
    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer makes weights of queries and keys: fields as in `LayerShape`, but `sinks` are the scores, [Hq]."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class AttentionStep(Protocol):
    """One step, ready to be used by every layer in turn."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store the step's keys and values [Hkv, T, D], then attend with `query` [Hq, T, D]. Returns [T, Hq, D]."""


class Attention(Protocol):
    """An implementation of attention over a paged KV pool that it owns."""

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the pool, zeroed; what was there is lost."""

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in all layers."""

    def compile(self, plan: StepPlan) -> AttentionStep:
        """Turn a plan into what the layers use."""


class TorchAttention:
    """Tree attention in plain torch. The pool of a layer is one tensor [2 * Hkv, slots, D]: keys, then values."""

    def __init__(self, layers: Sequence[LayerShape], dtype: torch.dtype, device: torch.device) -> None:
        self._layers = tuple(layers)
        self._dtype = dtype
        self._device = device
        self._page_size = 0
        self._pools: list[Tensor] = []
        self._blocks = TailBlocks()
        self._plain = {i for i, layer in enumerate(layers) if layer.window is None and layer.softcap is None}

    @property
    def pools(self) -> Sequence[Tensor]:
        """The pool of each layer."""
        return self._pools

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self._page_size

    def overtaken(self) -> None:
        """The pool was written by somebody else: nothing kept beside it can be trusted."""
        self._blocks.distrust()

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the pool of `pages` pages of `page_size` tokens, zeroed."""
        self._page_size = page_size
        self._blocks = TailBlocks()
        self._pools = [
            torch.zeros((2 * layer.kv_heads, pages * page_size, layer.head_dim), dtype=self._dtype, device=self._device)
            for layer in self._layers
        ]

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in all layers."""
        size = self._page_size
        for pool in self._pools:
            pool[:, target * size : (target + 1) * size] = pool[:, source * size : (source + 1) * size]
        self._blocks.forget(target)

    def compile(self, plan: StepPlan) -> TorchStep:
        """Turn a plan into index lists; the parts are made once for each window that the layers use."""
        tails = None
        if self._plain:
            decoding = cpu.decoding_tails(plan.spans, self._page_size)
            tails = self._blocks.plan(decoding, len(plan.positions), self._dtype, self._plain)
        return TorchStep(plan, self._pools, self._page_size, self._blocks, tails, self._plain)


class TorchStep:
    """A compiled step over the pools of a `TorchAttention`.

    Layers in `plain` (no window, no softcap) take the tails of decoding sequences from the blocks, where there are any.
    """

    def __init__(
        self,
        plan: StepPlan,
        pools: Sequence[Tensor],
        page_size: int,
        blocks: TailBlocks,
        tails: TailPlan | None,
        plain: set[int],
    ) -> None:
        self._plan = plan
        self._pools = pools
        self._page_size = page_size
        self._blocks = blocks
        self._tails = tails
        self._plain = plain
        self._slots = torch.tensor(plan.write_slots, dtype=torch.int64)
        self._parts: dict[tuple[int | None, bool], cpu.TreePlan] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store the step's keys and values [Hkv, T, D], then attend with `query` [Hq, T, D]. Returns [T, Hq, D]."""
        pool = self._pools[layer]
        fresh = torch.cat([key, value])
        pool.index_copy_(1, self._slots, fresh)
        given, tails = None, self._tails
        if tails is not None and layer in self._plain:
            output, log_sum = self._blocks.attend(layer, tails, query, fresh, pool, scoring.scaling)
            rows = slice(None) if tails.identity else tails.batch_rows
            given = cpu.Given(rows, output, log_sum)
        parts = self._for_window(scoring.window, given is not None)
        keys, values = pool.chunk(2)
        return cpu.tree_attention(
            query, keys, values, parts,
            scaling=scoring.scaling, softcap=scoring.softcap, sinks=scoring.sinks, given=given,
        )  # fmt: skip

    def _for_window(self, window: int | None, without_tails: bool) -> cpu.TreePlan:
        parts = self._parts.get((window, without_tails))
        if parts is None:
            plan, spans = self._plan, self._plan.spans
            if without_tails and self._tails is not None:
                served = {tail.row for tail in self._tails.tails.values()}
                spans = [span for span in spans if not (span.own and span.queries[0] in served)]
            parts = cpu.compile_plan(spans, plan.positions, self._page_size, window)
            self._parts[window, without_tails] = parts
        return parts


def forward_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    myna_step: AttentionStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a Hugging Face attention module calls. `query` [1, Hq, T, D]; returns [1, T, Hq, D] and no weights."""
    if myna_step is None:
        raise TypeError("the model doesn't pass keyword arguments on to its attention")
    if attention_mask is not None:
        raise TypeError("the model makes an attention mask of its own")
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # a plain int, which torch's stubs take for a tensor
    output = myna_step.attend(layer, query[0], key[0], value[0], scoring)
    return output[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """The plan says who sees what."""


def register() -> None:
    """Make the attention known to transformers. Harmless to repeat."""
    AttentionInterface.register(NAME, forward_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
