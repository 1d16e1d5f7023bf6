"""Decoding sequences' own KV, kept side by side between steps, so that one kernel call serves a whole batch.

A decode step has one query row a sequence and a tail of KV of its own length: one call each is mostly overhead, and
gathering all tails into one padded block at every step copies more than it saves. So the block stays: a step appends
the new token of each sequence that also ran in the step before, and gathers only the newcomers. It is a copy: the pool
remains the truth. A row is trusted only if the step just before held it one token shorter on the same pages, since
only then can nothing else have written them (`forget` covers copied pages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_GRAIN = 64
"""Room is made for a multiple of this many tokens, at least as many beyond the longest tail."""

_MAX_PADDING = 2
"""The block may be this many times larger than what it holds; longer tails are left to the ordinary path."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The own span of a sequence that decodes: its query row, its pages, their slots, and the tokens in it."""

    row: int
    pages: tuple[int, ...]
    slots: slice | Tensor
    length: int


@dataclass(slots=True)
class TailPlan:
    """One step over the block. Block row b belongs to batch row `rows[b]`; a hole's row is 0, and its result unused."""

    tails: dict[int, Tail]
    capacity: int
    rows: Tensor
    held: Tensor
    """Block rows that belong to a sequence, ascending."""
    batch_rows: Tensor
    """The batch rows of `held`."""
    newcomers: list[tuple[int, Tail]]
    appended: Tensor
    """Places in the block, row * capacity + token, of the tokens that this step adds to known rows."""
    appended_rows: Tensor
    mask: Tensor
    """[block rows, 1, 1, tokens], 0 or -inf."""
    identity: bool
    """Whether block rows are the batch's rows in order."""
    served: set[int] = field(default_factory=set)


class TailBlocks:
    """The blocks of all layers, [2 * Hkv, rows * capacity, D] each, laid out as the pool is, and who is in which row."""

    def __init__(self) -> None:
        self._last: TailPlan | None = None
        self._blocks: dict[int, Tensor] = {}
        self._capacity = 0
        self._room = 0

    def forget(self, page: int) -> None:
        """A page was written other than by a step: whoever holds it has to be gathered again."""
        if self._last is not None:
            self._last.tails = {b: tail for b, tail in self._last.tails.items() if page not in tail.pages}

    def distrust(self) -> None:
        """The pool was written by others: all have to be gathered again."""
        self._last = None

    def plan(self, tails: Sequence[Tail], batch: int, dtype: torch.dtype, layers: set[int]) -> TailPlan | None:
        """Arrange one step of `batch` rows. None where fewer than two tails are of comparable length.

        `layers` are those that will be served; a step that didn't reach them all leaves nothing to trust.
        """
        chosen = _comparable(tails)
        if len(chosen) < 2:
            self._last = None
            return None
        known = self._known(layers)
        longest = max(tail.length for tail in chosen)
        places = {b: t for t in chosen if (b := _matching(t, known)) is not None}
        if longest > self._capacity or len(chosen) > self._room or _is_sparse(places, len(chosen)):
            places = {}
            if longest > self._capacity or len(chosen) > self._room:
                self._make_room(len(chosen), longest)
        self._last = self._arrange(chosen, places, batch, dtype)
        return self._last

    def _known(self, layers: set[int]) -> dict[int, tuple[int, Tail]]:
        last = self._last
        if last is None or last.served != layers:
            return {}
        return {_slot(tail, tail.length - 1): (b, tail) for b, tail in last.tails.items()}

    def _make_room(self, rows: int, longest: int) -> None:
        self._capacity = (longest // _GRAIN + 2) * _GRAIN
        self._room = max(rows, self._room)
        self._blocks.clear()

    def _arrange(self, chosen: Sequence[Tail], places: dict[int, Tail], batch: int, dtype: torch.dtype) -> TailPlan:
        settled = {tail.row for tail in places.values()}
        appended = list(places.items())
        free = (b for b in range(self._room) if b not in places)
        newcomers = [(next(free), tail) for tail in chosen if tail.row not in settled]
        tails = dict(sorted([*appended, *newcomers], key=lambda place: place[0]))
        count, longest = max(tails) + 1, max(tail.length for tail in chosen)
        rows = [tails[b].row if b in tails else 0 for b in range(count)]
        lengths = torch.tensor([tails[b].length if b in tails else 1 for b in range(count)])
        hidden = torch.arange(longest)[None] >= lengths[:, None]
        return TailPlan(
            tails=tails,
            capacity=self._capacity,
            rows=torch.tensor(rows),
            held=torch.tensor(list(tails)),
            batch_rows=torch.tensor([tail.row for tail in tails.values()]),
            newcomers=newcomers,
            appended=torch.tensor([b * self._capacity + tail.length - 1 for b, tail in appended], dtype=torch.int64),
            appended_rows=torch.tensor([tail.row for _, tail in appended], dtype=torch.int64),
            mask=torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None, None],
            identity=rows == list(range(batch)) and len(tails) == batch,
        )

    def attend(
        self, layer: int, plan: TailPlan, query: Tensor, fresh: Tensor, pool: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Serve one layer. `query` [Hq, T, D]; `fresh` [2 * Hkv, T, D], the step's keys and values; `pool`
        [2 * Hkv, slots, D], where they are already written. Returns output [n, Hq, D] and log-sum-exp [n, Hq] of the
        rows `plan.batch_rows`, in that order.
        """
        block = self._blocks.get(layer)
        if block is None:
            shape = (pool.shape[0], self._room * self._capacity, pool.shape[2])
            block = self._blocks[layer] = pool.new_zeros(shape)
        for b, tail in plan.newcomers:
            _copy_tail(block, b * plan.capacity, pool, tail)
        if len(plan.appended_rows) == fresh.shape[1] and plan.identity:
            block.index_copy_(1, plan.appended, fresh)
        elif len(plan.appended_rows):
            block.index_copy_(1, plan.appended, fresh.index_select(1, plan.appended_rows))
        plan.served.add(layer)
        return _padded_attention(block, plan, query, scaling)


def _padded_attention(block: Tensor, plan: TailPlan, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """One fused call over the block: the query heads of a KV head become its rows."""
    count, longest = plan.mask.shape[0], plan.mask.shape[-1]
    kv_heads, size = block.shape[0] // 2, block.shape[2]
    chosen = query if plan.identity else query.index_select(1, plan.rows)
    grouped = torch.unflatten(chosen, 0, (kv_heads, -1)).permute(2, 0, 1, 3)  # [rows, Hkv, G, D]
    pairs = block.view(2, kv_heads, -1, plan.capacity, size)[:, :, :count, :longest].transpose(1, 2)
    mask = plan.mask.expand(count, 1, grouped.shape[2], longest)
    output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        grouped, pairs[0], pairs[1], 0.0, False, attn_mask=mask, scale=scaling
    )
    output, log_sum = output.flatten(1, 2), log_sum.flatten(1, 2)
    if len(plan.held) == count:
        return output, log_sum
    return output.index_select(0, plan.held), log_sum.index_select(0, plan.held)


def _copy_tail(block: Tensor, place: int, pool: Tensor, tail: Tail) -> None:
    if isinstance(tail.slots, slice):
        source = pool[:, tail.slots.start : tail.slots.start + tail.length]
    else:
        source = pool.index_select(1, tail.slots[: tail.length])
    block[:, place : place + tail.length] = source


def _comparable(tails: Sequence[Tail]) -> Sequence[Tail]:
    """The tails less the longest, until padding the others to one length wastes little."""
    ordered = sorted(tails, key=lambda tail: tail.length)
    total = sum(tail.length for tail in ordered)
    while ordered and ordered[-1].length * len(ordered) > _MAX_PADDING * total:
        total -= ordered.pop().length
    kept = {tail.row for tail in ordered}
    return [tail for tail in tails if tail.row in kept]


def _matching(tail: Tail, known: dict[int, tuple[int, Tail]]) -> int | None:
    """The block row that holds this tail without its newest token: found by the slot of the token before."""
    found = known.get(_slot(tail, tail.length - 2)) if tail.length > 1 else None
    if found is None:
        return None
    b, before = found
    grown = before.length + 1 == tail.length and tail.pages[: len(before.pages)] == before.pages
    return b if grown else None


def _slot(tail: Tail, token: int) -> int:
    return tail.slots.start + token if isinstance(tail.slots, slice) else int(tail.slots[token])


def _is_sparse(places: dict[int, Tail], count: int) -> bool:
    """Whether known rows lie so far apart that holes would cost more than gathering anew."""
    return bool(places) and max(places) + 1 > count + max(1, count // 4)
