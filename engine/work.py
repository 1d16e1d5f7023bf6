"""Work for the attention kernel: a step plan cut into units, dealt to the slots of the GPU so that all finish together.

A unit is (query rows of one block) x (a run of one span's keys) x (one KV head); a slot is a resident program of the
kernel's fixed grid, which takes its units one after another. Blocks of many rows are cut as little as possible, since
every cut of theirs costs partial results; blocks of few rows cost nearly nothing to cut and fill up the slots evenly.
Plain arrays, no torch: `kernels/tree_attention.py` documents how it reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from myna.engine.plan import Span, StepPlan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNIT_FIELDS = 11
LARGE = 1
DIRECT = 2
IN_A_ROW = 4

_CHUNK_SIZES = (0.26, 0.34, 0.51, 0.76, 0.9, 1.0, 1.1, 1.22, 1.35, 1.5, 1.75, 2.0)
"""Sizes of a large unit that are tried, as shares of a slot's fair load."""


class KernelShape(Protocol):
    """A kernel and its tiles (`myna.kernels.tree_launch.Shape` is one, and says what the fields mean)."""

    @property
    def kv_heads(self) -> int: ...  # noqa: D102
    @property
    def group(self) -> int: ...  # noqa: D102
    @property
    def page_size(self) -> int: ...  # noqa: D102
    @property
    def small_rows(self) -> int: ...  # noqa: D102
    @property
    def large_rows(self) -> int: ...  # noqa: D102
    @property
    def keys(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the kernel tiles. Rows are query heads x tokens; `keys` is the KV tokens of a tile; `slots` the grid.

    The costs are what a slot spends, in units of one small tile: on a tile of a large block, and once on each unit.
    """

    group: int
    """Query heads for each KV head."""
    kv_heads: int
    page_size: int
    slots: int
    small_rows: int = 16
    large_rows: int = 64
    keys: int = 64
    large_tile_cost: float = 0.9
    small_unit_cost: float = 3.0
    large_unit_cost: float = 6.0

    def __post_init__(self) -> None:
        if self.group > self.large_rows:
            raise ValueError(
                f"{self.group} query heads for a KV head are more than a tile of {self.large_rows} rows holds"
            )
        if self.keys % self.page_size and self.page_size % self.keys:
            raise ValueError(f"pages of {self.page_size} tokens and tiles of {self.keys} keys don't fit in one another")

    @classmethod
    def of(cls, shape: KernelShape, slots: int) -> Tiling:
        """The tiling of a kernel on `slots` resident programs."""
        return cls(shape.group, shape.kv_heads, shape.page_size, slots, shape.small_rows, shape.large_rows, shape.keys)

    @property
    def grain(self) -> int:
        """Keys by which spans are cut."""
        return max(self.keys, self.page_size)


@dataclass(frozen=True, slots=True)
class Work:
    """One step's units, int32 arrays.

    `slot_begin` [slots + 1]: slot s takes units `slot_begin[s]` to `slot_begin[s + 1]`.
    `units` [U, 11]: index of the first page in `pages`, keys, position of the first key, index of the first row in
    `rows`, tokens, KV head, index of the first partial result in `parts`, flags, the first page itself, the first row
    itself, how many keys at the front all the rows see (unless a window hides them). Flags: `LARGE`, `DIRECT`,
    `IN_A_ROW` (the rows follow one another, so that `rows` needn't be read).
    `pages`: page ids of all spans, joined. `rows`: packed rows of all blocks, joined. `positions` [T].
    `parts`: for every token of a unit that isn't direct, the slot of its partial result.
    `merged` [M]: the pairs row * kv_heads + head that have partial results, ascending; `merge_begin` [M + 1]: pair m has the
    partial results `merge_begin[m]` to the next.
    A direct unit is all that its rows attend to: it writes the output, and its rows have no partial results.
    """

    slot_begin: NDArray[np.int32]
    units: NDArray[np.int32]
    pages: NDArray[np.int32]
    rows: NDArray[np.int32]
    parts: NDArray[np.int32]
    positions: NDArray[np.int32]
    merged: NDArray[np.int32]
    merge_begin: NDArray[np.int32]

    @property
    def partials(self) -> int:
        """Partial results that are written and merged."""
        return len(self.parts)


def make_work(plan: StepPlan, tiling: Tiling, window: int | None = None, *, room: int = 0) -> Work:
    """Cut a plan's spans into units and deal them. `window`: keys that a row sees, itself included; None: all.

    `room`: pages that own spans may come to need; they have so many entries more in `pages`.
    """
    blocks = _blocks(plan, tiling, window, room)
    large, small = _deal(blocks, tiling)
    pieces = _Pieces.join(large, small)
    # Half of the slots begin with large units and half with small ones: on each multiprocessor, some compute while others
    # wait for memory.
    later = (pieces.slot >= tiling.slots // 2) == blocks.large[pieces.block]
    pieces = pieces.take(np.lexsort((later, pieces.slot)))
    slot_begin = np.searchsorted(pieces.slot, np.arange(tiling.slots + 1))
    lengths = blocks.tokens[pieces.block]
    parts_begin, parts, merged, merge_begin, direct = _partials(
        blocks, pieces, lengths, len(plan.positions), tiling.kv_heads
    )
    first = blocks.low[pieces.block] + pieces.begin * tiling.grain
    end = np.minimum(blocks.low[pieces.block] + pieces.end * tiling.grain, blocks.high[pieces.block])
    units = np.empty((len(pieces.block), UNIT_FIELDS), dtype=np.int32)
    units[:, 0] = blocks.page_begin[pieces.block] + first // tiling.page_size
    units[:, 1] = end - first
    units[:, 2] = blocks.start[pieces.block] + first
    units[:, 3] = blocks.rows_begin[pieces.block]
    units[:, 4] = lengths
    units[:, 5] = pieces.head
    units[:, 6] = parts_begin
    first_row, last_row = blocks.rows[units[:, 3]], blocks.rows[units[:, 3] + lengths - 1]
    units[:, 7] = (
        LARGE * blocks.large[pieces.block] + DIRECT * direct + IN_A_ROW * (last_row - first_row == lengths - 1)
    )
    units[:, 8] = blocks.pages[units[:, 0]]
    units[:, 9] = first_row
    units[:, 10] = np.clip(blocks.lowest[pieces.block] + 1 - units[:, 2], 0, units[:, 1])
    return Work(
        slot_begin=slot_begin.astype(np.int32),
        units=units,
        pages=blocks.pages,
        rows=blocks.rows.astype(np.int32),
        parts=parts.astype(np.int32),
        positions=np.asarray(plan.positions, dtype=np.int32),
        merged=merged.astype(np.int32),
        merge_begin=merge_begin.astype(np.int32),
    )


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Query rows of one span that share a tile. Keys `low` to `high` of the span are visible to at least one of them."""

    span: Ints
    page_begin: Ints
    start: Ints
    low: Ints
    high: Ints
    lowest: Ints
    """The lowest position of the rows."""
    rows_begin: Ints
    tokens: Ints
    large: NDArray[np.bool_]
    rows: Ints
    pages: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Runs of keys of blocks: grains `begin` to `end`, for one head, in one slot."""

    block: Ints
    head: Ints
    begin: Ints
    end: Ints
    slot: Ints

    @classmethod
    def join(cls, one: _Pieces, other: _Pieces) -> _Pieces:
        return cls(
            np.concatenate([one.block, other.block]),
            np.concatenate([one.head, other.head]),
            np.concatenate([one.begin, other.begin]),
            np.concatenate([one.end, other.end]),
            np.concatenate([one.slot, other.slot]),
        )

    def take(self, order: Ints) -> _Pieces:
        return _Pieces(self.block[order], self.head[order], self.begin[order], self.end[order], self.slot[order])


def _blocks(plan: StepPlan, tiling: Tiling, window: int | None, room: int) -> _Blocks:
    positions = plan.positions
    table: list[tuple[int, int, int, int, int, int, int, int, bool]] = []
    rows: list[int] = []
    pages: list[NDArray[np.int32]] = []
    page_begin = 0
    small_tokens = tiling.small_rows // tiling.group
    spare = np.zeros(room, dtype=np.int32)
    for index, span in enumerate(plan.spans):
        queries = span.queries
        count = len(queries)
        if not count or not span.length:
            continue
        size = count if count <= small_tokens else tiling.large_rows // tiling.group
        for begin in range(0, count, size):
            end = min(begin + size, count)
            low, high, lowest = _visible(span, positions, begin, end, tiling.page_size, window)
            if high > low:
                large = end - begin > small_tokens
                table.append((index, page_begin, span.start, low, high, lowest, len(rows), end - begin, large))
                rows += queries[begin:end]
        pages.append(_page_array(span.pages))
        page_begin += len(span.pages)
        if room and span.own:
            pages.append(spare)
            page_begin += room
    columns = np.array(table, dtype=np.int64).reshape(-1, 9).T
    return _Blocks(
        span=columns[0],
        page_begin=columns[1],
        start=columns[2],
        low=columns[3],
        high=columns[4],
        lowest=columns[5],
        rows_begin=columns[6],
        tokens=columns[7],
        large=columns[8].astype(np.bool_),
        rows=np.array(rows, dtype=np.int64),
        pages=np.concatenate(pages) if pages else np.empty(0, dtype=np.int32),
    )


def _visible(
    span: Span, positions: Sequence[int], begin: int, end: int, page_size: int, window: int | None
) -> tuple[int, int, int]:
    """The keys of the span, from a page's first, that rows `begin` to `end` of its queries may see; lowest position."""
    if not span.own and window is None:
        return 0, span.length, span.start + span.length
    if span.own or end - begin == 1:  # tokens of one sequence, one after the other
        lowest, highest = positions[span.queries[begin]], positions[span.queries[end - 1]]
    else:
        at = [positions[row] for row in span.queries[begin:end]]
        lowest, highest = min(at), max(at)
    high = min(span.length, highest + 1 - span.start)
    low = 0 if window is None else max(0, lowest + 1 - window - span.start)
    return low // page_size * page_size, high, lowest


@lru_cache(maxsize=8192)
def _page_array(pages: tuple[int, ...]) -> NDArray[np.int32]:
    return np.array(pages, dtype=np.int32)


def _deal(blocks: _Blocks, tiling: Tiling) -> tuple[_Pieces, _Pieces]:
    grains = -(-(blocks.high - blocks.low) // tiling.grain)
    tiles = tiling.grain // tiling.keys
    small = np.flatnonzero(~blocks.large)
    small_cost = tiling.kv_heads * (grains[small].sum() * tiles + len(small) * tiling.small_unit_cost)
    large, loads = _deal_large(blocks, grains, small_cost, tiling)
    return large, _fill_small(small, grains, loads, tiling)


def _deal_large(blocks: _Blocks, grains: Ints, small_cost: float, tiling: Tiling) -> tuple[_Pieces, Floats]:
    """Cut the large blocks into units of the size that lets the slots finish soonest, and deal these."""
    index = np.flatnonzero(blocks.large)
    if not len(index):
        return _Pieces(*(np.empty(0, dtype=np.int64) for _ in range(5))), np.zeros(tiling.slots)
    grain_cost = tiling.large_tile_cost * (tiling.grain // tiling.keys)
    cost = grains[index] * grain_cost
    fair = (cost.sum() * tiling.kv_heads + small_cost) / tiling.slots + tiling.large_unit_cost
    enough = len(index) * tiling.kv_heads >= 6 * tiling.slots
    best: tuple[float, Ints, Floats] | None = None
    for size in _CHUNK_SIZES[-1:] if enough else _CHUNK_SIZES:
        chunks = np.ceil(cost / (size * fair)).astype(np.int64)
        chunks = np.minimum(np.maximum(chunks, 1), grains[index])
        costs = np.repeat(cost / chunks + tiling.large_unit_cost, chunks * tiling.kv_heads)
        loads = _loads(costs, tiling.slots)[1]
        ends = max(float(loads.max()), float(loads.sum() + small_cost) / tiling.slots)
        if best is None or ends < best[0]:
            best = (ends, chunks, loads)
    assert best is not None
    chunks = best[1]
    which = np.repeat(np.arange(len(index)), chunks)
    number = _count_up(chunks)
    begin = number * grains[index][which] // chunks[which]
    end = (number + 1) * grains[index][which] // chunks[which]
    block = np.repeat(index[which], tiling.kv_heads)
    head = np.tile(np.arange(tiling.kv_heads), len(which))
    begin, end = np.repeat(begin, tiling.kv_heads), np.repeat(end, tiling.kv_heads)
    # Row blocks that read the same keys are neighbours, run at the same time, and find each other's keys in the L2.
    order = np.lexsort((block, head, begin, blocks.span[block], begin - end))
    block, head, begin, end = block[order], head[order], begin[order], end[order]
    slot, loads = _loads((end - begin) * grain_cost + tiling.large_unit_cost, tiling.slots)
    return _Pieces(block, head, begin, end, slot), loads


def _loads(costs: Floats, slots: int) -> tuple[Ints, Floats]:
    """Deal units, largest first, always a wave of them to the slots with the smallest loads. Slot of each, loads."""
    order = np.argsort(-costs, kind="stable")
    slot = np.empty(len(costs), dtype=np.int64)
    loads = np.zeros(slots)
    for begin in range(0, len(order), slots):
        wave = order[begin : begin + slots]
        into = np.argsort(loads, kind="stable")[: len(wave)]
        slot[wave] = into
        loads[into] += costs[wave]
    return slot, loads


def _fill_small(index: Ints, grains: Ints, loads: Floats, tiling: Tiling) -> _Pieces:
    """Lay all small blocks end to end and cut the line where a slot is full."""
    block = np.repeat(index, tiling.kv_heads)
    head = np.tile(np.arange(tiling.kv_heads), len(index))
    length = grains[block]
    tiles = tiling.grain // tiling.keys
    line = np.concatenate([[0], np.cumsum(length)])
    cost_line = np.concatenate([[0.0], np.cumsum(length * tiles + tiling.small_unit_cost)])
    full = np.cumsum(_room(loads, float(cost_line[-1])))
    item = np.minimum(np.searchsorted(cost_line, full, side="right") - 1, max(len(block) - 1, 0))
    if not len(block):
        return _Pieces(*(np.empty(0, dtype=np.int64) for _ in range(5)))
    inside = np.rint((full - cost_line[item] - tiling.small_unit_cost) / tiles).astype(np.int64)
    cuts = line[item] + np.clip(inside, 0, length[item])
    cuts[-1] = line[-1]
    points = np.sort(np.concatenate([line, cuts]))
    points = points[np.append(True, np.diff(points) > 0)]
    begin, end = points[:-1], points[1:]
    item = np.searchsorted(line, begin, side="right") - 1
    return _Pieces(
        block[item], head[item], begin - line[item], end - line[item], np.searchsorted(cuts, begin, side="right")
    )


def _room(loads: Floats, cost: float) -> Floats:
    """What each slot takes of `cost` more, so that the fullest is as empty as can be."""
    ascending = np.sort(loads)
    count = np.arange(1, len(loads) + 1)
    levels = (np.cumsum(ascending) + cost) / count  # the level, if the `count` emptiest slots took everything
    reach = np.append(ascending[1:], np.inf)
    level = levels[np.argmax(levels <= reach)]
    room: Floats = np.maximum(level - loads, 0.0)
    return room


def _partials(
    blocks: _Blocks, pieces: _Pieces, lengths: Ints, rows: int, heads: int
) -> tuple[Ints, Ints, Ints, Ints, NDArray[np.bool_]]:
    """Where each unit's partial results go: `parts_begin` of each unit, `parts`, `merged`, `merge_begin`; who needs none."""
    if len(pieces.block) == heads * len(blocks.tokens) and np.bincount(blocks.rows, minlength=1).max() <= 1:
        # Each row lies in one block, and no block is cut.
        none = np.empty(0, dtype=np.int64)
        return (
            np.zeros(len(lengths), dtype=np.int64),
            none,
            none,
            np.zeros(1, dtype=np.int64),
            np.full(len(lengths), True),
        )
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = blocks.rows[blocks.rows_begin[pieces.block][owner] + _count_up(lengths)] * heads + pieces.head[owner]
    shared = np.bincount(place, minlength=rows * heads)[place] > 1
    direct = np.bincount(owner, weights=shared, minlength=len(lengths)) == 0
    place = place[~direct[owner]]
    counts = np.bincount(place, minlength=rows * heads)
    merged = np.flatnonzero(counts)
    merge_begin = np.concatenate([[0], np.cumsum(counts[merged])])
    parts = np.empty(len(place), dtype=np.int64)
    parts[np.argsort(place, kind="stable")] = np.arange(len(place))
    kept = np.where(direct, 0, lengths)
    return np.cumsum(kept) - kept, parts, merged, merge_begin, direct


def _count_up(lengths: Ints) -> Ints:
    """0, 1, ... for each length, joined."""
    total = int(lengths.sum())
    return np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
