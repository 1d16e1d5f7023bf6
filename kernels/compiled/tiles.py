"""AMX: eight tiles of 16 rows x 64 bytes, and the product of two of them in bfloat16, added up in float32.

A tile holds 16 x 32 bfloat16 of the left operand, or 32 x 16 of the right one as 16 rows of pairs (`elements.py`), or 16 x 16
float32 of the result. Which tile serves for what, and how many of its rows count, is set by a configuration of 64
bytes for each thread, before its first tile.
"""

from __future__ import annotations

import ctypes

import torch
from llvmlite import ir
from numba import types

from myna.kernels.compiled.emit import ADDRESS, BYTE, LITERAL, Builder, Value, call, emits, pointer

TILE_ROWS = 16
TILE_DEPTH = 32
"""Rows of the left operand, and numbers of each that are multiplied at once."""

TILE_BYTES = 1024

_PERMISSION_CALL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), once for a process."""

_VOID = ir.VoidType()


def available() -> bool:
    """Whether this machine multiplies bfloat16 tiles, and the kernel lets this process."""
    if not torch.cpu._is_amx_tile_supported():
        return False
    return bool(ctypes.CDLL(None).syscall(_PERMISSION_CALL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def configuration(rows: int) -> bytes:
    """Tiles 0 to 4 with `rows` rows, 5 to 7 with 16; all are 64 bytes wide."""
    counts = [rows] * 5 + [TILE_ROWS] * 3
    widths = b"".join((64).to_bytes(2, "little") for _ in counts)
    return bytes([1]).ljust(16, b"\0") + widths.ljust(32, b"\0") + bytes(counts).ljust(16, b"\0")


@emits(types.none, ADDRESS)
def configure(builder: Builder, address: Value) -> None:
    """Take a configuration of 64 bytes; all tiles are zeroed."""
    call(builder, "llvm.x86.ldtilecfg", _VOID, [pointer(builder, address)])


@emits(types.none)
def release(builder: Builder) -> None:
    """Give the tiles up, so that the kernel needs not save them."""
    call(builder, "llvm.x86.tilerelease", _VOID, [])


@emits(types.none, LITERAL)
def clear(builder: Builder, tile: int) -> None:
    """Zero a tile."""
    call(builder, "llvm.x86.tilezero", _VOID, [BYTE(tile)])


@emits(types.none, LITERAL, ADDRESS, ADDRESS)
def load_tile(builder: Builder, tile: int, address: Value, stride: Value) -> None:
    """Fill a tile from rows `stride` bytes apart."""
    call(builder, "llvm.x86.tileloadd64", _VOID, [BYTE(tile), pointer(builder, address), stride])


@emits(types.none, LITERAL, ADDRESS, ADDRESS)
def store_tile(builder: Builder, tile: int, address: Value, stride: Value) -> None:
    """Write a tile's rows `stride` bytes apart."""
    call(builder, "llvm.x86.tilestored64", _VOID, [BYTE(tile), pointer(builder, address), stride])


@emits(types.none, LITERAL, LITERAL, LITERAL)
def multiply(builder: Builder, result: int, left: int, right: int) -> None:
    """Add the product of two tiles to a third."""
    call(builder, "llvm.x86.tdpbf16ps", _VOID, [BYTE(result), BYTE(left), BYTE(right)])
