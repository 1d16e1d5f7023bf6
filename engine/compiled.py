"""Decode steps in one compiled function: the plan as arrays in, logits out. Same weights, same KV pool as the rest.

It takes steps in which every sequence has one row, which is what decoding is; anything else is left to torch. Admitted
by structure (`fuse.py` looks first), and by what the machine has; `kernels/compiled` does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from myna.engine.decoder_weights import DecoderWeights, LayerWeights, Sizes
from myna.engine.plan import Span, StepPlan
from myna.kernels.compiled import tiles
from myna.kernels.compiled.elements import Elements, elements_for
from myna.kernels.compiled.lanes import LANES, LOG2_E
from myna.kernels.compiled.records import LAYER, MOST_KEYS, MOST_ROWS, NETWORK, STEP
from myna.kernels.compiled.step import make_member
from myna.kernels.compiled.team import Team

Ints = npt.NDArray[np.int64]
Greedy = tuple[Tensor, Tensor]
"""The largest logit of each row, float32 [rows], and its number, int64."""

_SHORTEST_CHUNK = 128
_PIECES = 8
"""Pieces of attention for each thread, if they aren't too short."""


class Pool(Protocol):
    """The KV pool of a `TorchAttention`: a tensor [2 * Hkv, slots, D] for each layer."""

    @property
    def pools(self) -> Sequence[Tensor]:
        """Keys, then values."""

    @property
    def page_size(self) -> int:
        """Tokens of a page."""

    def overtaken(self) -> None:
        """The pool was written by somebody else."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one step's attention is cut: `records.CHUNK` and `records.PARTIAL` with indices in place of addresses."""

    chunks: list[tuple[int, int, int, int, int]]
    pages: list[int]
    rows: list[int]
    partials: list[tuple[int, int]]
    bounds: list[int]
    columns: int


def lay_out(spans: Sequence[Span], rows: int, page_size: int, sizes: Sizes, threads: int) -> Layout:
    """Cut spans into chunks of whole pages, those with many rows first, since they take longest."""
    keys = sum(span.length for span in spans) * sizes.kv_heads // (_PIECES * threads)
    longest = max(min(max(keys, _SHORTEST_CHUNK), MOST_KEYS) // page_size, 1) * page_size
    chunks: list[tuple[int, int, int, int, int]] = []
    pages: list[int] = []
    queries: list[int] = []
    found: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    column = 0
    for span in sorted(spans, key=lambda span: -len(span.queries)):
        stride = -(-len(span.queries) * sizes.group // LANES) * LANES
        for begin in range(0, span.length, longest):
            length = min(longest, span.length - begin)
            chunks.append((len(pages) + begin // page_size, length, len(queries), len(span.queries), column))
            for i, row in enumerate(span.queries):
                found[row].append((column + i * sizes.group, stride))
            column += sizes.kv_heads * stride
        pages += span.pages
        queries += span.queries
    bounds = [0]
    for parts in found:
        bounds.append(bounds[-1] + len(parts))
    return Layout(chunks, pages, queries, [part for parts in found for part in parts], bounds, column)


class CompiledDecoder:
    """A network's decode steps. Not thread-safe, as its pool isn't."""

    def __init__(self, weights: DecoderWeights, elements: Elements, pool: Pool, threads: int) -> None:
        self._sizes = weights.sizes
        self._pool = pool
        self._rotary = _RotaryTable(weights.rotary, weights.sizes.head_dim)
        self._kept: list[Any] = []
        self._buffers = _Buffers()
        self._network = np.zeros(1, NETWORK)
        self._layers = np.zeros(len(weights.layers), LAYER)
        self._step = np.zeros(1, STEP)
        self._fill_network(weights, elements, threads)
        for record, layer in zip(self._layers, weights.layers, strict=True):
            self._fill_layer(record, layer, elements)
        self._pools: Sequence[Tensor] = ()
        self._member = _member(elements.dtype)
        self._team = Team(threads, partial(self._member, self._network, self._layers, self._step))

    def takes(self, plan: StepPlan) -> bool:
        """Whether a step is all decoding, and in a pool whose pages can be walked."""
        page_size = self._pool.page_size
        return (
            len(plan.positions) <= MOST_ROWS
            and page_size % LANES == 0
            and page_size <= MOST_KEYS
            and all(len(span.queries) == 1 for span in plan.spans if span.own)
        )

    def forward(self, plan: StepPlan) -> tuple[Tensor, Greedy | None]:
        """Run a step that it takes. Returns logits, float32 [len(plan.logit_rows), vocabulary], and their largest."""
        if self._pools is not self._pool.pools:
            self._attach(self._pool.pools)
        rows, count = len(plan.positions), len(plan.logit_rows)
        step, vocabulary = self._step[0], int(self._network[0]["vocabulary"])
        logits = torch.empty(max(-(-count // LANES) * LANES, min(rows, LANES)), vocabulary)
        best = np.empty((2, self._team.threads, count, LANES), np.float32)
        step["rows"], step["logit_count"], step["logits"] = rows, count, logits.data_ptr()
        step["best"], step["best_ids"] = (part.ctypes.data for part in best)
        inputs = (plan.token_ids, plan.write_slots, plan.positions, plan.logit_rows)
        held = [np.array(list(numbers), np.int64) for numbers in inputs]
        step["token_ids"], step["write_slots"], step["positions"], step["logit_rows"] = (a.ctypes.data for a in held)
        step["cosines"], step["sines"] = self._rotary.addresses(max(plan.positions) + 1)
        held += self._place(lay_out(plan.spans, rows, self._pool.page_size, self._sizes, self._team.threads))
        self._buffers.fill("tiles", np.frombuffer(tiles.configuration(min(rows, LANES)), np.uint8))
        self._member(self._network, self._layers, self._step, self._team.address, 0)
        self._pool.overtaken()
        return logits[:count, : self._sizes.vocabulary], _greedy(best) if vocabulary == self._sizes.vocabulary else None

    def _place(self, layout: Layout) -> list[Ints]:
        """Put a layout into the step's record. Returns the arrays that it points to."""
        step = self._step[0]
        pages, rows, bounds = (np.array(numbers, np.int64) for numbers in (layout.pages, layout.rows, layout.bounds))
        chunks, partials = np.array(layout.chunks, np.int64), np.array(layout.partials, np.int64)
        chunks[:, 0] = pages.ctypes.data + chunks[:, 0] * 8
        chunks[:, 2] = rows.ctypes.data + chunks[:, 2] * 8
        step["chunks"], step["chunk_count"] = chunks.ctypes.data, len(chunks)
        step["partials"], step["bounds"] = partials.ctypes.data, bounds.ctypes.data
        step["parts"] = self._buffers.room("parts", layout.columns * self._sizes.head_dim)
        step["peaks"] = self._buffers.room("peaks", layout.columns)
        step["sums"] = self._buffers.room("sums", layout.columns)
        return [pages, rows, bounds, chunks, partials]

    def _attach(self, pools: Sequence[Tensor]) -> None:
        """Point the layers at a pool."""
        self._pools = pools
        self._network[0]["page_size"], self._network[0]["slots"] = self._pool.page_size, pools[0].shape[1]
        for record, pool in zip(self._layers, pools, strict=True):
            assert pool.is_contiguous(), "the compiled step walks the pool by address"
            keys, values = pool.chunk(2)
            record["keys"], record["values"] = keys.data_ptr(), values.data_ptr()

    def _fill_network(self, weights: DecoderWeights, elements: Elements, threads: int) -> None:
        net, sizes = self._network[0], weights.sizes
        width = sizes.heads * sizes.head_dim
        net["threads"], net["vocabulary"] = threads, -(-sizes.vocabulary // LANES) * LANES
        for name in ("hidden", "inner", "heads", "kv_heads", "head_dim"):
            net[name] = getattr(sizes, name)
        net["embedding"] = self._keep(weights.embedding.contiguous())
        net["head"] = self._keep(elements.pack(weights.head))
        net["epsilon"] = weights.epsilon
        room = self._buffers.room
        net["residual"] = room("residual", MOST_ROWS * sizes.hidden)
        net["qkv"] = room("qkv", MOST_ROWS * (width + 2 * sizes.kv_heads * sizes.head_dim))
        net["query"] = room("query", MOST_ROWS * width)
        net["attended"] = room("attended", MOST_ROWS * width)
        net["activated"] = room("activated", MOST_ROWS * sizes.inner)
        net["tiles"] = room("tiles", LANES)
        parts = {
            "operand": MOST_ROWS * sizes.hidden,
            "scratch": 2 * MOST_ROWS * LANES,
            "columns": sizes.head_dim * LANES,
            "scores": MOST_KEYS * LANES,
        }
        address = room("private", threads * sum(parts.values()))
        net["private_bytes"] = 4 * sum(parts.values())
        for name, floats in parts.items():
            net[name] = address
            address += 4 * floats

    def _fill_layer(self, record: Any, layer: LayerWeights, elements: Elements) -> None:
        gate, up = elements.pack(layer.gate), elements.pack(layer.up)
        record["qkv"] = self._keep(elements.pack(layer.qkv))
        record["output"] = self._keep(elements.pack(layer.output))
        record["gate_up"] = self._keep(torch.stack([gate, up], dim=1))
        record["down"] = self._keep(elements.pack(layer.down))
        for name in ("qkv_bias", "query_norm", "key_norm"):
            vector = getattr(layer, name)
            record[name] = 0 if vector is None else self._keep(vector.float().contiguous())
        for name in ("attention_epsilon", "mlp_epsilon", "head_epsilon"):
            record[name] = getattr(layer, name)
        record["scale"] = self._sizes.scaling * LOG2_E

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def compile_decoder(weights: DecoderWeights, pool: Pool) -> CompiledDecoder | None:
    """The compiled decode step of a network, or None where sizes or machine don't suit it."""
    elements = elements_for(weights.embedding.dtype)
    if elements is None or not weights.sizes.regular:
        return None
    return CompiledDecoder(weights, elements, pool, torch.get_num_threads())


@lru_cache
def _member(dtype: torch.dtype) -> Any:
    """The compiled function for a number format, one for all networks."""
    elements = elements_for(dtype)
    assert elements is not None, "asked before"
    return make_member(elements)


def _greedy(best: npt.NDArray[np.float32]) -> Greedy:
    """The largest logit of each row, and its number; the first of equals. `best`: see `records.STEP`."""
    values, ids = torch.from_numpy(best).transpose(1, 2).flatten(2)
    largest = values.amax(dim=-1)
    first = torch.where(values == largest[:, None], ids, torch.inf).amin(dim=-1)
    return largest, first.nan_to_num(posinf=0.0).long()


class _RotaryTable:
    """Cosines and sines by position [positions, head_dim / 2], made as far as they are needed."""

    def __init__(self, rotary: Any, head_dim: int) -> None:
        self._rotary = rotary
        self._half = head_dim // 2
        self._cosines = self._sines = torch.empty(0, self._half)

    def addresses(self, positions: int) -> tuple[int, int]:
        """Of both tables, with so many positions at least."""
        if len(self._cosines) < positions:
            like = torch.empty(0)
            cosines, sines = self._rotary(like, torch.arange(max(1024, 2 * positions))[None])
            self._cosines, self._sines = (table[0, :, : self._half].float().contiguous() for table in (cosines, sines))
        return self._cosines.data_ptr(), self._sines.data_ptr()


@dataclass(slots=True)
class _Buffers:
    """Float32 memory by name, which only grows."""

    _held: dict[str, Tensor] = field(default_factory=dict)

    def room(self, name: str, floats: int) -> int:
        """The address of so many."""
        held = self._held.get(name)
        if held is None or len(held) < floats:
            held = self._held[name] = torch.zeros(floats)
        return held.data_ptr()

    def fill(self, name: str, content: npt.NDArray[np.uint8]) -> None:
        """Write bytes at the beginning."""
        self._held[name].numpy().view(np.uint8)[: len(content)] = content
