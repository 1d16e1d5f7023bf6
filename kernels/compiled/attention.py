"""Attention of one layer in the compiled step: rotate and write, attend chunk by chunk, combine by largest score.

A chunk is some keys and the rows that attend to all of them: one piece for each KV head, whose query heads of all rows
are its columns, so that a key is read once for all of them. Scores are laid out [keys, 16 columns]: the softmax runs
down the keys, and needs nothing across lanes. Which keys a chunk holds was decided with the plan (`layout.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from myna.kernels.compiled.elements import Elements
from myna.kernels.compiled.emit import compiled
from myna.kernels.compiled.lanes import (
    FLOAT_BYTES,
    INT_BYTES,
    LANES,
    LINE_BYTES,
    ROW_BYTES,
    copy_word,
    exp2,
    fma,
    largest,
    load,
    load_float,
    load_int,
    mean_square,
    prefetch,
    splat,
    spread,
    store,
    store_block,
    zero,
    zeros3,
    zeros4,
)
from myna.kernels.compiled.records import CHUNK, PARTIAL, offsets
from myna.kernels.compiled.team import deal, share

_PAGES, _KEYS, _ROWS, _ROW_COUNT, _COLUMN = offsets(CHUNK)
_CHUNK_BYTES = CHUNK.itemsize
_PARTIAL_BYTES = PARTIAL.itemsize
_DEPTH = 2 * LANES
"""Numbers of a value whose sums are in registers together, for a few columns."""


@compiled
def find_column(partial: int, kv_head: int, i: int) -> int:
    """The column of query head i of a KV head: see `records.PARTIAL`."""
    column: int = load_int(partial) + kv_head * load_int(partial + INT_BYTES) + i
    return column


@compiled
def weigh(scores: int, keys: int, peaks: int, sums: int) -> None:
    """Scores [keys, 16] to powers of two of their distance from each column's largest."""
    peak = other = splat(-math.inf)
    for key in range(0, keys - 1, 2):
        peak = largest(load(scores + key * ROW_BYTES), peak)
        other = largest(load(scores + (key + 1) * ROW_BYTES), other)
    peak = largest(largest(load(scores + (keys - 1) * ROW_BYTES), peak), other)
    weights = zero()
    for key in range(keys):
        weight = exp2(load(scores + key * ROW_BYTES) - peak)
        weights = weights + weight
        store(scores + key * ROW_BYTES, weight)
    store(peaks, peak)
    store(sums, weights)


def make_scores(elements: Elements) -> Callable[..., Any]:
    """`score(network, layer, head, pages, keys, columns, scores)`: keys times 16 columns of queries."""
    size, score_tile = elements.bytes, elements.scores

    @compiled
    def score(net: Any, layer: Any, head: int, pages: int, keys: int, columns: int, scores: int) -> None:
        tile_bytes = LANES * net.head_dim * size
        for key in range(0, keys, LANES):
            slot = load_int(pages + key // net.page_size * INT_BYTES) * net.page_size + key % net.page_size
            offset = head + slot * net.head_dim * size
            for line in range(0, tile_bytes, LINE_BYTES):  # the values will be wanted next
                prefetch(layer.values + offset + line)
            score_tile(layer.keys + offset, net.head_dim, columns, scores + key * ROW_BYTES)

    return score


def make_sum(elements: Elements, zeros: Callable[..., Any]) -> Callable[..., Any]:
    """`sum_values(network, values, pages, keys, scores, out)`: some columns' weighted sums of the values, to rows of
    head_dim float32. `zeros`: of a block with a vector for each column."""
    size, load_elements = elements.bytes, elements.load

    @compiled
    def sum_values(net: Any, values: int, pages: int, keys: int, scores: int, out: int) -> None:
        page_size, row_bytes = net.page_size, net.head_dim * size
        for depth in range(0, net.head_dim, _DEPTH):
            low, high = zeros(), zeros()
            for begin in range(0, keys, page_size):
                page = values + load_int(pages + begin // page_size * INT_BYTES) * page_size * row_bytes + depth * size
                for key in range(min(page_size, keys - begin)):
                    weights = scores + (begin + key) * ROW_BYTES
                    value = page + key * row_bytes
                    low = spread(low, weights, FLOAT_BYTES, load_elements(value))
                    high = spread(high, weights, FLOAT_BYTES, load_elements(value + LANES * size))
            store_block(low, out + depth * FLOAT_BYTES, net.head_dim * FLOAT_BYTES)
            store_block(high, out + (depth + LANES) * FLOAT_BYTES, net.head_dim * FLOAT_BYTES)

    return sum_values


def make_attention(elements: Elements) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`rotate`, `attend` and `combine` for a number format, each (network, ..., step, thread)."""
    size, together = elements.bytes, elements.together
    store_elements, put = elements.store, elements.put
    score = make_scores(elements)
    sum3, sum4 = make_sum(elements, zeros3), make_sum(elements, zeros4)

    @compiled
    def add_bias(row: int, bias: int, count: int) -> None:
        for i in range(0, count, LANES):
            store(row + i * FLOAT_BYTES, load(row + i * FLOAT_BYTES) + load(bias + i * FLOAT_BYTES))

    @compiled
    def normalise_head(head: int, head_dim: int, weight: int, epsilon: float) -> None:
        inverse = splat(1 / math.sqrt(mean_square(head, head_dim) + epsilon))
        for i in range(0, head_dim, LANES):
            at = head + i * FLOAT_BYTES
            store(at, load(at) * inverse * load(weight + i * FLOAT_BYTES))

    @compiled
    def turn(head: int, head_dim: int, cosines: int, sines: int, scale: float, target: int) -> None:
        """Rotate a head by its position, first half against second, and write it as elements."""
        half = head_dim // 2
        scaled = splat(scale)
        for i in range(0, half, LANES):
            cosine, sine = load(cosines + i * FLOAT_BYTES) * scaled, load(sines + i * FLOAT_BYTES) * scaled
            left, right = load(head + i * FLOAT_BYTES), load(head + (half + i) * FLOAT_BYTES)
            store_elements(target + i * size, left * cosine - right * sine)
            store_elements(target + (half + i) * size, right * cosine + left * sine)

    @compiled
    def rotate(net: Any, layer: Any, step: Any, thread: int) -> None:
        """Queries to their buffer, keys and values to the pool, by row."""
        head_dim, heads = net.head_dim, net.heads
        outputs = (heads + 2 * net.kv_heads) * head_dim
        begin, end = share(step.rows, thread, net.threads)
        for row in range(begin, end):
            source = net.qkv + row * outputs * FLOAT_BYTES
            if layer.qkv_bias:
                add_bias(source, layer.qkv_bias, outputs)
            turned = load_int(step.positions + row * INT_BYTES) * (head_dim // 2) * FLOAT_BYTES
            cosines, sines = step.cosines + turned, step.sines + turned
            slot = load_int(step.write_slots + row * INT_BYTES)
            for h in range(heads + net.kv_heads):
                head = source + h * head_dim * FLOAT_BYTES
                if h < heads:
                    if layer.query_norm:
                        normalise_head(head, head_dim, layer.query_norm, layer.head_epsilon)
                    turn(head, head_dim, cosines, sines, layer.scale, net.query + (row * heads + h) * head_dim * size)
                else:
                    if layer.key_norm:
                        normalise_head(head, head_dim, layer.key_norm, layer.head_epsilon)
                    target = layer.keys + ((h - heads) * net.slots + slot) * head_dim * size
                    turn(head, head_dim, cosines, sines, 1.0, target)
            for h in range(net.kv_heads):
                head = source + (heads + net.kv_heads + h) * head_dim * FLOAT_BYTES
                target = layer.values + (h * net.slots + slot) * head_dim * size
                for i in range(0, head_dim, LANES):
                    store_elements(target + i * size, load(head + i * FLOAT_BYTES))

    @compiled
    def lay_columns(net: Any, rows: int, kv_head: int, first: int, count: int, columns: int) -> None:
        """Queries `first` and on of a chunk, as the columns of [head_dim / together, 16, together]."""
        group = net.heads // net.kv_heads
        for c in range(count):
            row = load_int(rows + (first + c) // group * INT_BYTES)
            head = row * net.heads + kv_head * group + (first + c) % group
            source = net.query + head * net.head_dim * size
            for i in range(net.head_dim // together):
                copy_word(columns + i * ROW_BYTES + c * FLOAT_BYTES, source + i * FLOAT_BYTES)

    @compiled
    def attend_to(net: Any, layer: Any, step: Any, chunk: int, kv_head: int, own: int) -> None:
        """One chunk, one KV head."""
        pages, keys = load_int(chunk + _PAGES), load_int(chunk + _KEYS)
        rows, count = load_int(chunk + _ROWS), load_int(chunk + _ROW_COUNT) * (net.heads // net.kv_heads)
        results = load_int(chunk + _COLUMN) + kv_head * ((count + LANES - 1) // LANES * LANES)
        columns, scores = net.columns + own, net.scores + own
        head = kv_head * net.slots * net.head_dim * size
        for first in range(0, count, LANES):
            held = min(count - first, LANES)
            lay_columns(net, rows, kv_head, first, held, columns)
            score(net, layer, head, pages, keys, columns, scores)
            at = (results + first) * FLOAT_BYTES
            weigh(scores, keys, step.peaks + at, step.sums + at)
            out = step.parts + (results + first) * net.head_dim * FLOAT_BYTES
            if held == 3:  # three query heads to a KV head, as small models have it
                sum3(net, layer.values + head, pages, keys, scores, out)
            else:
                for c in range(0, held, 4):
                    beside = c * FLOAT_BYTES
                    sum4(net, layer.values + head, pages, keys, scores + beside, out + beside * net.head_dim)

    @compiled
    def attend(net: Any, layer: Any, step: Any, index: int, team: int, thread: int) -> None:
        """All chunks and KV heads, each to the next thread that is free. `index`: the layer's number."""
        pieces = step.chunk_count * net.kv_heads
        before = index * (pieces + net.threads)  # each thread asks once in vain
        piece = deal(team) - before
        while piece < pieces:
            chunk = step.chunks + piece // net.kv_heads * _CHUNK_BYTES
            attend_to(net, layer, step, chunk, piece % net.kv_heads, thread * net.private_bytes)
            piece = deal(team) - before

    @compiled
    def combine_head(net: Any, step: Any, row: int, head: int, begin: int, end: int) -> None:
        """One head of one row, from its chunks."""
        group = net.heads // net.kv_heads
        peak, weight = splat(-math.inf), zero()
        for i in range(begin, end):
            column = find_column(step.partials + i * _PARTIAL_BYTES, head // group, head % group)
            peak = largest(splat(load_float(step.peaks + column * FLOAT_BYTES)), peak)
        for i in range(begin, end):
            column = find_column(step.partials + i * _PARTIAL_BYTES, head // group, head % group)
            share = exp2(splat(load_float(step.peaks + column * FLOAT_BYTES)) - peak)
            weight = fma(share, splat(load_float(step.sums + column * FLOAT_BYTES)), weight)
        for depth in range(0, net.head_dim, LANES):
            result = zero()
            for i in range(begin, end):
                column = find_column(step.partials + i * _PARTIAL_BYTES, head // group, head % group)
                share = exp2(splat(load_float(step.peaks + column * FLOAT_BYTES)) - peak)
                part = load(step.parts + (column * net.head_dim + depth) * FLOAT_BYTES)
                result = fma(share, part, result)
            put(net.attended, net.heads * net.head_dim, row, head * net.head_dim + depth, result / weight)

    @compiled
    def combine(net: Any, step: Any, thread: int) -> None:
        """The operand of the output projection, by row and head."""
        begin, end = share(step.rows * net.heads, thread, net.threads)
        for pair in range(begin, end):
            row = pair // net.heads
            first, last = load_int(step.bounds + row * INT_BYTES), load_int(step.bounds + (row + 1) * INT_BYTES)
            combine_head(net, step, row, pair % net.heads, first, last)

    return rotate, attend, combine
