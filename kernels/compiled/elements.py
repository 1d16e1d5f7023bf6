"""The two number formats of the compiled step: how weights meet operands, and how both lie in memory.

In bfloat16 a tile unit multiplies 16 x 32 x 16 numbers at once; an operand lies row by row. In float32 sixteen rows are
multiplied by sixteen columns in registers; an operand lies in groups of 16 rows, each [depth, 16], so that the 16
factors of a step are one cache line. Either way a weight [out, in] is cut into blocks of 16 outputs, each of which is
read from its beginning to its end; the product of a block has 16 columns of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myna.kernels.compiled import tiles
from myna.kernels.compiled.emit import compiled
from myna.kernels.compiled.lanes import (
    FLOAT_BYTES,
    HALF_BYTES,
    LANES,
    ROW_BYTES,
    load,
    load_half,
    prefetch,
    spread,
    store,
    store_block,
    store_column,
    store_half,
    zeros16,
)
from myna.kernels.compiled.tiles import TILE_BYTES, TILE_DEPTH, clear, load_tile, multiply, store_tile

_AHEAD = 4096
"""Bytes of a float32 weight that are on their way: 6.4 GB/s without, 10.5 with, of one thread's 12.5."""


@dataclass(frozen=True)
class Elements:
    """One format. The functions are compiled; `rows` is a multiple of 16, or less than 16 where `product` allows it.

    `load(address)`, `store(address, lanes)`: sixteen numbers in a row.
    `put(operand, depth, row, column, lanes)`: sixteen numbers of one row of an operand.
    `product(operand, rows, depth, block, out, stride)`: rows times a block of 16 outputs, to float32 rows of `out`.
    `scores(keys, head_dim, columns, out)`: 16 keys times 16 columns of queries, to [16 keys, 16] float32.
    `enter(tiles)`, `leave()`: before and after a thread's part of a step; `tiles` is the address of `tiles.configuration`.
    `pack(weight)`: [out, in] in blocks. `together`: neighbours of a column of queries that stay neighbours.
    """

    dtype: torch.dtype
    bytes: int
    together: int
    load: Callable[..., Any]
    store: Callable[..., Any]
    put: Callable[..., Any]
    product: Callable[..., Any]
    scores: Callable[..., Any]
    pack: Callable[[Tensor], Tensor]
    enter: Callable[..., Any]
    leave: Callable[..., Any]


@compiled
def _put_half(operand: int, depth: int, row: int, column: int, value: Any) -> None:
    store_half(operand + (row * depth + column) * HALF_BYTES, value)


@compiled
def _put_float(operand: int, depth: int, row: int, column: int, value: Any) -> None:
    group = operand + row // LANES * depth * ROW_BYTES
    store_column(group + column * ROW_BYTES + row % LANES * FLOAT_BYTES, ROW_BYTES, value)


@compiled
def _product_half(operand: int, rows: int, depth: int, block: int, out: int, stride: int) -> None:
    groups = (rows + LANES - 1) // LANES
    row_bytes = depth * HALF_BYTES
    group_bytes = LANES * row_bytes
    clear(0)
    clear(1)
    clear(2)
    clear(3)
    for step in range(depth // TILE_DEPTH):
        left = operand + step * TILE_DEPTH * HALF_BYTES
        load_tile(5, block + step * TILE_BYTES, ROW_BYTES)
        load_tile(4, left, row_bytes)
        multiply(0, 4, 5)
        if groups > 1:
            load_tile(4, left + group_bytes, row_bytes)
            multiply(1, 4, 5)
        if groups > 2:
            load_tile(4, left + 2 * group_bytes, row_bytes)
            multiply(2, 4, 5)
        if groups > 3:
            load_tile(4, left + 3 * group_bytes, row_bytes)
            multiply(3, 4, 5)
    store_tile(0, out, stride)
    if groups > 1:
        store_tile(1, out + LANES * stride, stride)
    if groups > 2:
        store_tile(2, out + 2 * LANES * stride, stride)
    if groups > 3:
        store_tile(3, out + 3 * LANES * stride, stride)


@compiled
def _product_float(operand: int, rows: int, depth: int, block: int, out: int, stride: int) -> None:
    for group in range((rows + LANES - 1) // LANES):
        left = operand + group * depth * ROW_BYTES
        result = zeros16()
        for k in range(depth):
            if group == 0:
                prefetch(block + k * ROW_BYTES + _AHEAD)
            result = spread(result, left + k * ROW_BYTES, FLOAT_BYTES, load(block + k * ROW_BYTES))
        store_block(result, out + group * LANES * stride, stride)


@compiled
def _scores_half(keys: int, head_dim: int, columns: int, out: int) -> None:
    clear(6)
    for step in range(head_dim // TILE_DEPTH):
        load_tile(7, keys + step * TILE_DEPTH * HALF_BYTES, head_dim * HALF_BYTES)
        load_tile(5, columns + step * TILE_BYTES, ROW_BYTES)
        multiply(6, 7, 5)
    store_tile(6, out, ROW_BYTES)


@compiled
def _scores_float(keys: int, head_dim: int, columns: int, out: int) -> None:
    result = zeros16()
    for d in range(head_dim):
        result = spread(result, keys + d * FLOAT_BYTES, head_dim * FLOAT_BYTES, load(columns + d * ROW_BYTES))
    store_block(result, out, ROW_BYTES)


@compiled
def _enter(_tiles: int) -> None:
    pass


@compiled
def _leave() -> None:
    pass


def _blocks(weight: Tensor, together: int) -> Tensor:
    """[out, in] as [out / 16, in / together, 16, together], zeros after the last output."""
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -outputs % LANES))
    return padded.view(-1, LANES, inputs // together, together).transpose(1, 2).contiguous()


HALF = Elements(
    dtype=torch.bfloat16,
    bytes=HALF_BYTES,
    together=2,
    load=load_half,
    store=store_half,
    put=_put_half,
    product=_product_half,
    scores=_scores_half,
    pack=lambda weight: _blocks(weight, 2),
    enter=tiles.configure,
    leave=tiles.release,
)

FLOAT = Elements(
    dtype=torch.float32,
    bytes=FLOAT_BYTES,
    together=1,
    load=load,
    store=store,
    put=_put_float,
    product=_product_float,
    scores=_scores_float,
    pack=lambda weight: _blocks(weight, 1),
    enter=_enter,
    leave=_leave,
)


def elements_for(dtype: torch.dtype) -> Elements | None:
    """The format of a dtype on this machine; None where the compiled step has nothing for it."""
    if dtype == torch.bfloat16 and tiles.available():
        return HALF
    if dtype == torch.float32 and torch.cpu._is_avx512_supported():
        return FLOAT
    return None
