"""Attention on a GPU: the interface of `attention.py` over the Triton kernels, plans cut into work once for each kind of layer.

A layer's pool is [2, pages, Hkv, page_size, D], so that the tokens of a page and head follow one another: keys, then
values. Pages of 64 tokens are best: they are loaded by the GPU's copy engine. One page more than asked for takes what the
padding of a batch writes. A step is either made for one plan (`compile`), or a frame of fixed addresses and sizes that
one plan after another is loaded into, so that a CUDA graph over it can be replayed (`frame`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from myna.engine.attention import LayerShape, Scoring
from myna.engine.device import send
from myna.engine.growing import GrowingWork
from myna.engine.plan import Span, StepPlan
from myna.engine.work import UNIT_FIELDS, Tiling, Work, make_work
from myna.kernels.fused import HeadNorms, rotary_store, rotate
from myna.kernels.tree_launch import Partials, Shape, WorkBuffer, choose_shape, tree_attention

_SLACK = 1.5
"""By how much a buffer is larger than the work that it was made for, so that growing sequences find room."""

_LEVELS = 4
"""Levels of sharing of all tokens of a largest step for which memory is set aside."""

FRESH = 2048
"""Beginnings of prompts of which nothing is cached are computed by cuDNN in multiples of this: it plans each size once, for
50 ms, and is faster than ours from here on (kernels/NOTES.md)."""
_FRESH_HEAD = 128


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers that do the same work. `fresh`: what cuDNN does of it is left out. `ends`: only rows with logits are done."""

    shape: Shape
    window: int | None
    fresh: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines by position, [context, D], both halves alike."""

    cos: Tensor
    sin: Tensor


class TritonAttention:
    """Tree attention by Triton, in stream order: a step's buffers are the next one's."""

    def __init__(
        self, layers: Sequence[LayerShape], dtype: torch.dtype, device: torch.device, *, interpreted: bool = False
    ) -> None:
        """`interpreted`: for Triton's interpreter, without a GPU."""
        self.interpreted = interpreted
        self.page_size = 0
        self.pages = 0
        self._layers = tuple(layers)
        self._dtype = dtype
        self._device = device
        self._hopper = not interpreted and torch.cuda.get_device_capability(device)[0] >= 9
        self._processors = 4 if interpreted else torch.cuda.get_device_properties(device).multi_processor_count
        self._pools: list[Tensor] = []
        self._buffers: dict[_Kind, WorkBuffer] = {}
        self._shapes: dict[tuple[int, int], Shape] = {}
        self._partials: dict[int, Partials] = {}
        self._loose_partials: dict[int, Partials] = {}

    def allocate(self, pages: int, page_size: int) -> None:
        """Make the pool of `pages` pages of `page_size` tokens, zeroed: the kernel needs finite numbers everywhere."""
        self.page_size = page_size
        self.pages = pages
        self._pools = []  # the old ones go first
        self._buffers = {}
        self._loose_partials = {}
        self._shapes = {}
        self._pools = [
            torch.zeros(
                (2, pages + 1, layer.kv_heads, page_size, layer.head_dim), dtype=self._dtype, device=self._device
            )
            for layer in self._layers
        ]

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page in all layers."""
        for pool in self._pools:
            pool[:, target] = pool[:, source]

    def compile(self, plan: StepPlan, slots: Tensor | None = None) -> TritonStep:
        """Turn a plan into a step of its own; its work is made when a layer first asks. `slots`: the plan's, int32 [T]."""
        if slots is None:
            slots = send(plan.write_slots, torch.int32, self._device)
        return TritonStep(self, slots, _Compiled(self, plan), _fresh_prompts(plan), len(plan.logit_rows))

    def frame(self, tokens: int, ends: int, slots: Tensor) -> Frame:
        """A step of `tokens` tokens, `ends` of them with logits, padding included, at fixed addresses.

        `slots` int32 [tokens]: where each writes.
        """
        return Frame(self, tokens, ends, slots)

    def shape(self, layer: int, heads: int) -> Shape:
        """The kernel of a layer with so many query heads. Raises ValueError for sizes that no kernel is made for."""
        found = self._shapes.get((layer, heads))
        if found is None:
            given = self._layers[layer]
            sizes = given.kv_heads, heads // given.kv_heads, given.head_dim, self.page_size
            found = self._shapes[layer, heads] = choose_shape(*sizes, self._dtype, hopper=self._hopper)
        return found

    def work(self, kind: _Kind, plan: StepPlan) -> Work:
        """A plan's work for layers of a kind."""
        return make_work(plan, self.tiling(kind), kind.window)

    def tiling(self, kind: _Kind) -> Tiling:
        """How work for layers of a kind is cut."""
        return Tiling.of(kind.shape, kind.shape.programs * self._processors)

    def buffer(self, kind: _Kind, work: Work) -> WorkBuffer:
        """The buffer for steps of their own, with a work loaded; a larger one if it has outgrown the one there was."""
        if kind not in self._buffers or not self._buffers[kind].holds(work):
            self._buffers.pop(kind, None)
            limits = WorkBuffer.capacity([work], _SLACK)
            self._buffers[kind] = WorkBuffer(limits, kind.shape, self._device, self._room_for(kind.shape, work))
        found = self._buffers[kind]
        found.load(work, alone=True)
        return found

    def partial_bytes(self, tokens: int) -> int:
        """What the partial results of so many tokens may take, for the layers that have run so far."""
        sizes = [shape.kv_heads * shape.group * (shape.head_dim + 1) for shape in self._shapes.values()]
        return _LEVELS * tokens * max(sizes, default=0) * 4

    def _room_for(self, shape: Shape, work: Work) -> Partials:
        """Memory for a work's partial results, which all steps of their own share."""
        size, entries = shape.head_dim, max(work.partials, 1) * shape.group
        for partials in (self._partials.get(size), self._loose_partials.get(size)):
            if partials is not None and partials.entries >= entries:
                return partials
        del partials  # what there was goes first, and whatever holds it
        self._loose_partials.pop(size, None)
        self._buffers = {kind: each for kind, each in self._buffers.items() if kind.shape.head_dim != size}
        found = self._loose_partials[size] = Partials(entries, size, self._device)
        return found

    def fixed_buffer(self, kind: _Kind, tokens: int) -> WorkBuffer:
        """A buffer that holds nearly every work of so many tokens (see `Frame.load`)."""
        limits = _limits(self.tiling(kind), tokens, self.pages)
        size, entries = kind.shape.head_dim, limits["parts"] * kind.shape.group
        partials = self._partials.get(size)
        if partials is None or partials.entries < entries:
            partials = self._partials[size] = Partials(entries, size, self._device)
        return WorkBuffer(limits, kind.shape, self._device, partials)

    def pool(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, [pages, page_size, Hkv, D]."""
        keys, values = self._pools[layer].transpose(2, 3)
        return keys, values


class _Compiled:
    """The works of one plan, each loaded when it is first asked for."""

    def __init__(self, attention: TritonAttention, plan: StepPlan) -> None:
        self._attention = attention
        self._plan = plan
        self._loaded: dict[_Kind, WorkBuffer] = {}

    def get(self, kind: _Kind) -> WorkBuffer:
        found = self._loaded.get(kind)
        if found is None:
            plan = _ends(self._plan) if kind.ends else _without_fresh(self._plan) if kind.fresh else self._plan
            found = self._loaded[kind] = self._attention.buffer(kind, self._attention.work(kind, plan))
        return found


@dataclass
class Frame:
    """A step of fixed size. Which kinds of layers there are shows when it first runs: from then on it can be captured."""

    attention: TritonAttention
    tokens: int
    ends: int
    slots: Tensor
    buffers: dict[_Kind, WorkBuffer] = field(default_factory=dict)
    works: dict[_Kind, GrowingWork] = field(default_factory=dict)

    def get(self, kind: _Kind) -> WorkBuffer:
        """The buffer of a kind of layers."""
        found = self.buffers.get(kind)
        if found is None:
            found = self.buffers[kind] = self.attention.fixed_buffer(kind, self.ends if kind.ends else self.tokens)
            self.works[kind] = GrowingWork(self.attention.tiling(kind), kind.window)
            found.load(self.attention.work(kind, StepPlan((), (), (), (), ())))
        return found

    def load(self, plan: StepPlan) -> bool:
        """Send a plan's work to the device. False, with nothing sent, if it doesn't fit: a tree of unusual shape."""
        works = {kind: growing.of(_ends(plan) if kind.ends else plan) for kind, growing in self.works.items()}
        if not all(self.buffers[kind].holds(work) for kind, work in works.items()):
            return False
        for kind, work in works.items():
            self.buffers[kind].load(work)
        return True

    def step(self) -> TritonStep:
        """The step over whatever is loaded."""
        return TritonStep(self.attention, self.slots, self, (), self.ends)


class TritonStep:
    """A step over the pools of a `TritonAttention`. `fresh`: rows (begin, end) that are the beginning of a prompt.

    `ends`: how many rows have logits; whatever else the last layer makes of the others is read by nobody.
    """

    def __init__(
        self,
        attention: TritonAttention,
        slots: Tensor,
        works: _Compiled | Frame,
        fresh: Sequence[tuple[int, int]],
        ends: int,
    ) -> None:
        self.spares_rows = ends < len(slots)
        self._attention = attention
        self._slots = slots
        self._works = works
        self._fresh = tuple(fresh)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store the step's keys and values [Hkv, T, D], then attend with `query` [Hq, T, D]. Returns [T, Hq, D]."""
        keys, values = self._attention.pool(layer)
        slots, size = self._slots.long(), self._attention.page_size
        page, offset = slots // size, slots % size
        keys[page, offset] = key.transpose(0, 1)
        values[page, offset] = value.transpose(0, 1)
        rows = [part.transpose(0, 1).contiguous() for part in (query, key, value)]
        return self._attend(layer, rows[0], rows[1], rows[2], scoring)

    def turn_and_attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        rotary: Rotary,
        norms: HeadNorms | None,
        scoring: Scoring,
    ) -> Tensor:
        """As `attend`, for rows [T, H, D] that are still to be normed and turned, which happens in place."""
        keys, values = self._attention.pool(layer)
        rotary_store(
            query, key, value, rotary.cos, rotary.sin, positions, self._slots, keys, values,
            norms=norms, keep=bool(self._fresh),
        )  # fmt: skip
        return self._attend(layer, query, key, value, scoring)

    def turn_and_attend_ends(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        rows: Tensor,
        rotary: Rotary,
        norms: HeadNorms | None,
        scoring: Scoring,
    ) -> Tensor:
        """As `turn_and_attend`, but only the rows with logits, which `rows` [R] are, have queries: [R, Hq, D]."""
        keys, values = self._attention.pool(layer)
        cos, sin = rotary.cos, rotary.sin
        rotary_store(key[:, :0], key, value, cos, sin, positions, self._slots, keys, values, norms=norms)
        rotate(query, cos, sin, positions[rows], norms=norms)
        shape = self._attention.shape(layer, query.shape[1])
        return self._tree_attention(
            layer, query, torch.empty_like(query), _Kind(shape, scoring.window, ends=True), scoring
        )

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Attend with `query` [T, Hq, D]; what cuDNN can do better goes there. Returns [T, Hq, D]."""
        shape = self._attention.shape(layer, query.shape[1])
        plain = scoring.softcap is None and scoring.sinks is None and scoring.window is None
        fresh = self._fresh if plain and shape.tma and shape.head_dim <= _FRESH_HEAD else ()
        if fresh == ((0, len(query)),):
            return _fresh_attention(query, key, value, scoring.scaling)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for begin, end in fresh:
            output[begin:end] = _fresh_attention(query[begin:end], key[begin:end], value[begin:end], scoring.scaling)
        return self._tree_attention(layer, query, output, _Kind(shape, scoring.window, bool(fresh)), scoring)

    def _tree_attention(self, layer: int, query: Tensor, output: Tensor, kind: _Kind, scoring: Scoring) -> Tensor:
        keys, values = self._attention.pool(layer)
        return tree_attention(
            query, keys, values, output, self._works.get(kind), kind.shape,
            scaling=scoring.scaling, window=scoring.window, softcap=scoring.softcap, sinks=scoring.sinks,
            upcast=self._attention.interpreted,
        )  # fmt: skip


def _fresh_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of one prompt by cuDNN: [T, H, D], [T, Hkv, D] twice -> [T, H, D]."""
    q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return output[0].transpose(0, 1).contiguous()


def _fresh_length(span: Span) -> int:
    """How many tokens of a span cuDNN computes: the beginning of a prompt that this step begins."""
    if not span.own or span.start or len(span.queries) != span.length:
        return 0
    return span.length // FRESH * FRESH


def _fresh_prompts(plan: StepPlan) -> list[tuple[int, int]]:
    found = ((span.queries[0], _fresh_length(span)) for span in plan.spans if span.queries)
    return [(begin, begin + length) for begin, length in found if length]


def _without_fresh(plan: StepPlan) -> StepPlan:
    """The plan without the rows that cuDNN computes."""
    return replace(plan, spans=[replace(span, queries=span.queries[_fresh_length(span) :]) for span in plan.spans])


def _ends(plan: StepPlan) -> StepPlan:
    """What the rows with logits attend to, as a plan of these rows alone."""
    place = {row: index for index, row in enumerate(plan.logit_rows)}
    spans = [replace(span, queries=sorted(place[row] for row in span.queries if row in place)) for span in plan.spans]
    positions = [plan.positions[row] for row in plan.logit_rows]
    return StepPlan((), positions, (), spans, ())


def _limits(tiling: Tiling, tokens: int, pages: int) -> dict[str, int]:
    """Sizes of a work of `tokens` tokens that only a tree of many small nodes exceeds."""
    cuts = 5 * tiling.slots
    units = cuts + tiling.kv_heads * (3 * tokens + 16)
    a_block = max(tiling.large_rows // tiling.group, 1)
    return {
        "slot_begin": tiling.slots + 1,
        "units": units * UNIT_FIELDS,
        "pages": pages + 4 * tokens,
        "rows": 16 * tokens,
        "parts": cuts * min(tokens, a_block) + 8 * tokens * tiling.kv_heads,
        "positions": tokens,
        "merged": tokens * tiling.kv_heads,
        "merge_begin": tokens * tiling.kv_heads + 1,
    }
