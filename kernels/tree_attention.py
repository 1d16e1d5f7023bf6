"""Tree attention over paged KV in Triton: one launch for every level of sharing, one that merges by log-sum-exp.

Decode, chunked prefill and mixed batches are the same kernel; `reference.py` says what it computes, `engine/work.py`
what it is given, `tree_launch.py` launches it. Programs of a fixed grid take the units that were dealt to them, so that
a CUDA graph can be replayed while the plan changes. Row m of a unit is token m // G, query head `head * G + m % G`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A kernel's arguments are Triton's own types; compile-time constants are in capitals.
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-1.0e30)
"""A running maximum before any key: finite, so that a tile without visible keys gives exp2(-inf) = 0 and no NaN."""

# As in engine/work.py.
_UNIT_FIELDS = tl.constexpr(11)
_LARGE = tl.constexpr(1)
_DIRECT = tl.constexpr(2)
_IN_A_ROW = tl.constexpr(4)


@triton.jit
def _tile_page(pages_ptr, page_begin, keys, tile, PAGE: tl.constexpr, KEYS: tl.constexpr):
    """The page of a tile; where pages are smaller, that of each of its keys."""
    if PAGE >= KEYS:
        page = tl.load(pages_ptr + page_begin + tile * KEYS // PAGE, mask=tile * KEYS < keys, other=0)
    else:
        key = tile * KEYS + tl.arange(0, KEYS)
        page = tl.load(pages_ptr + page_begin + key // PAGE, mask=key < keys, other=0)
    return page


@triton.jit
def _load_tile(
    source, page, head, tile, keys, stride_page, stride_token, stride_head,
    PAGE: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """[KEYS, BLOCK_D] keys or values of one head. By TMA, what lies after the unit's last key is loaded too."""
    if TMA:
        row = page * (stride_page // stride_token) + head * (stride_head // stride_token) + tile * KEYS % PAGE
        loaded = source.load([row, 0])
    else:
        offs_n = tl.arange(0, KEYS)
        offs_d = tl.arange(0, BLOCK_D)
        key = tile * KEYS + offs_n
        slot = page.to(tl.int64) * stride_page + (key % PAGE).to(tl.int64) * stride_token + head * stride_head
        mask = key[:, None] < keys
        if BLOCK_D != D:
            mask = mask & (offs_d[None, :] < D)
        loaded = tl.load(source + slot[:, None] + offs_d[None, :], mask=mask, other=0.0)
    return loaded


@triton.jit
def _attend(
    query_ptr, keys_src, values_src, output_ptr, partial_ptr, log_sum_ptr, sinks_ptr,
    pages_ptr, rows_ptr, parts_ptr, positions_ptr,
    page_begin, keys, position, rows_begin, tokens, head, parts_begin, flags, page, first_row, clear,
    scale, cap, window, stride_query, stride_output, stride_page, stride_token, stride_head,
    ROWS: tl.constexpr, KEYS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One unit: `keys` keys of one head, from position `position` on, for `tokens` * G rows."""
    offs_m = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    token = offs_m // G
    query_head = head * G + offs_m % G
    valid = token < tokens
    # What a unit says itself needs no load: keys and queries are asked for at once.
    in_a_row = (flags & _IN_A_ROW) != 0
    row = tl.load(rows_ptr + rows_begin + token, mask=token < tl.where(in_a_row, 0, tokens), other=0)
    row = tl.where(in_a_row, first_row + token, row)
    direct = (flags & _DIRECT) != 0
    part = tl.load(parts_ptr + parts_begin + token, mask=token < tl.where(direct, 0, tokens), other=0) * G + offs_m % G
    at = tl.load(positions_ptr + row, mask=valid, other=0)
    used = valid[:, None] & (offs_d[None, :] < D)
    query = tl.load(
        query_ptr + row.to(tl.int64)[:, None] * stride_query + query_head[:, None] * D + offs_d[None, :],
        mask=used, other=0.0,
    )  # fmt: skip
    end = tl.minimum(at - position + 1, keys)  # keys of the unit that a row sees: before `end`, from `begin` on
    begin = at - position + 1 - window

    highest = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, BLOCK_D], tl.float32)
    tiles = tl.cdiv(keys, KEYS)
    if PAGE < KEYS:
        page = _tile_page(pages_ptr, page_begin, keys, 0, PAGE, KEYS)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        # The next page is asked for one tile ahead: only so are keys and values loaded STAGES ahead.
        next_page = _tile_page(pages_ptr, page_begin, keys, tile + 1, PAGE, KEYS)
        k = _load_tile(
            keys_src, page, head, tile, keys, stride_page, stride_token, stride_head, PAGE, KEYS, D, BLOCK_D, TMA
        )
        v = _load_tile(
            values_src, page, head, tile, keys, stride_page, stride_token, stride_head, PAGE, KEYS, D, BLOCK_D, TMA
        )
        page = next_page
        if UPCAST:
            scores = tl.dot(query.to(tl.float32), k.to(tl.float32).T, input_precision="ieee")
        else:
            scores = tl.dot(query, k.T, input_precision="ieee")
        if SOFTCAP:
            scores = cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores * scale)))
            factor = 1.0
        else:
            factor = scale
        key = tile * KEYS + tl.arange(0, KEYS)
        if WINDOW:
            seen = (key[None, :] < end[:, None]) & (key[None, :] >= begin[:, None])
            scores = tl.where(seen, scores, -float("inf"))
        elif tile * KEYS + KEYS > clear:
            scores = tl.where(key[None, :] < end[:, None], scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1) * factor)
        shrink = tl.exp2(highest - new_highest)
        weights = tl.exp2(scores * factor - new_highest[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None]
        if UPCAST:
            sums = tl.dot(weights.to(v.dtype).to(tl.float32), v.to(tl.float32), sums, input_precision="ieee")
        else:
            sums = tl.dot(weights.to(v.dtype), v, sums, input_precision="ieee")
        highest = new_highest

    if direct:
        if SINKS:
            sink = tl.load(sinks_ptr + query_head, mask=valid, other=0.0).to(tl.float32) * _LOG2_E
            total += tl.exp2(sink - highest)
        result = sums / tl.where(total > 0, total, 1.0)[:, None]
        place = row.to(tl.int64)[:, None] * stride_output + query_head[:, None] * D + offs_d[None, :]
        tl.store(output_ptr + place, result.to(output_ptr.dtype.element_ty), mask=used)
    else:
        counted = tl.where(total > 0, total, 1.0)
        result = sums / counted[:, None]
        log_sum = tl.where(total > 0, highest + tl.log2(counted), -float("inf"))
        tl.store(partial_ptr + part.to(tl.int64)[:, None] * D + offs_d[None, :], result, mask=used)
        tl.store(log_sum_ptr + part, log_sum, mask=valid)


@triton.jit
def _unit(units_ptr, unit, last):
    """The fields of a unit; after the last, any unit's."""
    field_ptr = units_ptr + tl.maximum(tl.minimum(unit, last - 1), 0) * _UNIT_FIELDS
    return (
        tl.load(field_ptr),
        tl.load(field_ptr + 1),
        tl.load(field_ptr + 2),
        tl.load(field_ptr + 3),
        tl.load(field_ptr + 4),
        tl.load(field_ptr + 5),
        tl.load(field_ptr + 6),
        tl.load(field_ptr + 7),
        tl.load(field_ptr + 8),
        tl.load(field_ptr + 9),
        tl.load(field_ptr + 10),
    )


@triton.jit
def tree_attention_kernel(
    query_ptr, keys_src, values_src, output_ptr, partial_ptr, log_sum_ptr, sinks_ptr,
    slot_begin_ptr, units_ptr, pages_ptr, rows_ptr, parts_ptr, positions_ptr,
    scale, cap, window, stride_query, stride_output, stride_page, stride_token, stride_head,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr,
    SMALL_ROWS: tl.constexpr, LARGE_ROWS: tl.constexpr, STAGES: tl.constexpr,
    TMA: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program s does the units of slot s. Outputs of direct units go to `output_ptr`, others to the partial results."""
    slot = tl.program_id(0)
    last = tl.load(slot_begin_ptr + slot + 1)
    first = tl.load(slot_begin_ptr + slot)
    page_begin, keys, position, rows_begin, tokens, head, parts_begin, flags, page, first_row, clear = _unit(
        units_ptr, first, last
    )
    if PDL:  # the plan was there long before; queries, keys and values are the previous kernel's
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for unit in tl.range(first, last, num_stages=1):
        # The next unit is asked for before this one is done.
        page_begin_, keys_, position_, rows_begin_, tokens_, head_, parts_begin_, flags_, page_, first_row_, clear_ = (
            _unit(units_ptr, unit + 1, last)
        )
        if (flags & _LARGE) != 0:
            _attend(
                query_ptr, keys_src, values_src, output_ptr, partial_ptr, log_sum_ptr, sinks_ptr,
                pages_ptr, rows_ptr, parts_ptr, positions_ptr,
                page_begin, keys, position, rows_begin, tokens, head, parts_begin, flags, page, first_row, clear,
                scale, cap, window, stride_query, stride_output, stride_page, stride_token, stride_head,
                LARGE_ROWS, KEYS, G, D, BLOCK_D, PAGE, STAGES, TMA, WINDOW, SOFTCAP, SINKS, UPCAST,
            )  # fmt: skip
        else:
            _attend(
                query_ptr, keys_src, values_src, output_ptr, partial_ptr, log_sum_ptr, sinks_ptr,
                pages_ptr, rows_ptr, parts_ptr, positions_ptr,
                page_begin, keys, position, rows_begin, tokens, head, parts_begin, flags, page, first_row, clear,
                scale, cap, window, stride_query, stride_output, stride_page, stride_token, stride_head,
                SMALL_ROWS, KEYS, G, D, BLOCK_D, PAGE, STAGES, TMA, WINDOW, SOFTCAP, SINKS, UPCAST,
            )  # fmt: skip
        page_begin, keys, position, rows_begin, tokens = page_begin_, keys_, position_, rows_begin_, tokens_
        head, parts_begin, flags, page, first_row, clear = head_, parts_begin_, flags_, page_, first_row_, clear_


@triton.jit
def merge_kernel(
    output_ptr, partial_ptr, log_sum_ptr, sinks_ptr, merged_ptr, merge_begin_ptr, stride_output,
    KV_HEADS: tl.constexpr, G: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr, SINKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (i, j) joins the partial results of pair i, a row and a KV head, for HEADS of its G heads."""
    offs_p = tl.arange(0, PARTS)
    offs_g = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    offs_d = tl.arange(0, BLOCK_D)
    pair = tl.load(merged_ptr + tl.program_id(0))
    first = tl.load(merge_begin_ptr + tl.program_id(0))
    last = tl.load(merge_begin_ptr + tl.program_id(0) + 1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if first < last:
        highest = tl.full([HEADS], _LOWEST, tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        sums = tl.zeros([HEADS, BLOCK_D], tl.float32)
        for base in tl.range(first, last, PARTS, num_stages=2):
            part = (base + offs_p)[:, None] * G + offs_g[None, :]
            valid = ((base + offs_p)[:, None] < last) & (offs_g[None, :] < G)
            log_sum = tl.load(log_sum_ptr + part, mask=valid, other=-float("inf"))
            partial = tl.load(
                partial_ptr + part.to(tl.int64)[:, :, None] * D + offs_d[None, None, :],
                mask=valid[:, :, None] & (offs_d[None, None, :] < D), other=0.0,
            )  # fmt: skip
            new_highest = tl.maximum(highest, tl.max(log_sum, 0))
            weights = tl.exp2(log_sum - new_highest[None, :])
            shrink = tl.exp2(highest - new_highest)
            total = total * shrink + tl.sum(weights, 0)
            sums = sums * shrink[:, None] + tl.sum(partial * weights[:, :, None], 0)
            highest = new_highest
        query_head = pair % KV_HEADS * G + offs_g
        if SINKS:
            sink = tl.load(sinks_ptr + query_head, mask=offs_g < G, other=0.0).to(tl.float32) * _LOG2_E
            total += tl.exp2(sink - highest)
        result = sums / tl.where(total > 0, total, 1.0)[:, None]
        place = (pair // KV_HEADS).to(tl.int64) * stride_output + query_head[:, None] * D + offs_d[None, :]
        used = (offs_g[:, None] < G) & (offs_d[None, :] < D)
        tl.store(output_ptr + place, result.to(output_ptr.dtype.element_ty), mask=used)
