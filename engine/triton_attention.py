"""Attention on a GPU: the interface of `attention.py` over the Triton kernels, plans cut into work once for each kind of layer.

A layer's pool is [2, pages, Hkv, page_size, D], so that the tokens of a page and head follow one another: keys, then
values. Pages of 64 tokens are best: they are loaded by the GPU's copy engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from myna.engine.attention import LayerShape
from myna.engine.plan import StepPlan
from myna.engine.work import Tiling, make_work
from myna.kernels.tree_launch import Shape, WorkBuffer, choose_shape, tree_attention

_SLACK = 1.5
"""By how much a buffer is larger than the work that it was made for, so that growing sequences find room."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers that do the same work."""

    shape: Shape
    window: int | None


class TritonAttention:
    """Tree attention by Triton. Two steps may be in flight: a third reuses the first one's buffers."""

    def __init__(
        self, layers: Sequence[LayerShape], dtype: torch.dtype, device: torch.device, *, interpreted: bool = False
    ) -> None:
        """`interpreted`: for Triton's interpreter, without a GPU."""
        self._layers = tuple(layers)
        self._dtype = dtype
        self._device = device
        self._interpreted = interpreted
        self._hopper = not interpreted and torch.cuda.get_device_capability(device)[0] >= 9
        self._processors = 4 if interpreted else torch.cuda.get_device_properties(device).multi_processor_count
        self._page_size = 0
        self._pools: list[Tensor] = []
        self._buffers: tuple[dict[_Kind, WorkBuffer], ...] = ({}, {})
        self._turns = cycle(self._buffers)

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the pool of `pages` pages of `page_size` tokens, zeroed: the kernel needs finite numbers everywhere."""
        self._page_size = page_size
        self._pools = [
            torch.zeros((2, pages, layer.kv_heads, page_size, layer.head_dim), dtype=self._dtype, device=self._device)
            for layer in self._layers
        ]

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in all layers."""
        for pool in self._pools:
            pool[:, target] = pool[:, source]

    def compile(self, plan: StepPlan) -> TritonStep:
        """Turn a plan into a step; its work is made when a layer first asks."""
        return TritonStep(self, plan, next(self._turns))

    def kind(self, layer: int, heads: int, window: int | None) -> _Kind:
        """The kernel of a layer with so many query heads. Raises ValueError for sizes that no kernel is made for."""
        given = self._layers[layer]
        shape = choose_shape(
            given.kv_heads, heads // given.kv_heads, given.head_dim, self._page_size, self._dtype, hopper=self._hopper
        )
        return _Kind(shape, window)

    def load(self, kind: _Kind, plan: StepPlan, buffers: dict[_Kind, WorkBuffer]) -> WorkBuffer:
        """Send a plan's work to the device, in a larger buffer if it has outgrown the one there is."""
        work = make_work(plan, Tiling.of(kind.shape, kind.shape.programs * self._processors), kind.window)
        buffer = buffers.get(kind)
        if buffer is None or not buffer.holds(work):
            buffer = buffers[kind] = WorkBuffer(WorkBuffer.capacity([work], _SLACK), kind.shape, self._device)
        buffer.load(work)
        return buffer

    def pool(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, [pages, page_size, Hkv, D]."""
        keys, values = self._pools[layer].transpose(2, 3)
        return keys, values

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self._page_size

    @property
    def interpreted(self) -> bool:
        """Whether the kernels run in Triton's interpreter."""
        return self._interpreted


class TritonStep:
    """A compiled step over the pools of a `TritonAttention`."""

    def __init__(self, attention: TritonAttention, plan: StepPlan, buffers: dict[_Kind, WorkBuffer]) -> None:
        self._attention = attention
        self._plan = plan
        self._buffers = buffers
        self._loaded: dict[_Kind, WorkBuffer] = {}
        self._place: tuple[Tensor, Tensor] | None = None

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Store the step's keys and values [Hkv, T, D], then attend with `query` [Hq, T, D]. Returns [T, Hq, D]."""
        keys, values = self._attention.pool(layer)
        page, offset = self._written(key.device)
        keys[page, offset] = key.transpose(0, 1)
        values[page, offset] = value.transpose(0, 1)
        kind = self._attention.kind(layer, query.shape[0], window)
        if kind not in self._loaded:
            self._loaded[kind] = self._attention.load(kind, self._plan, self._buffers)
        rows = query.transpose(0, 1).contiguous()
        return tree_attention(
            rows,
            keys,
            values,
            torch.empty_like(rows),
            self._loaded[kind],
            kind.shape,
            scaling=scaling,
            window=window,
            softcap=softcap,
            sinks=sinks,
            upcast=self._attention.interpreted,
        )

    def _written(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Page and offset of each new token."""
        if self._place is None:
            slots = torch.tensor(self._plan.write_slots, dtype=torch.int64, device=device)
            size = self._attention.page_size
            self._place = slots // size, slots % size
        return self._place
