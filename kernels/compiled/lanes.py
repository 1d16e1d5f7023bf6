"""Sixteen float32 side by side, and blocks of them: the only vectors of the compiled kernels.

All memory is reached by address, as in C: nothing here checks a bound. LLVM turns sixteen floats into one 512-bit
register, or into several smaller ones. bfloat16 is read by a shift and written with rounding to the nearest, ties to
even. A block is a few vectors that stay in registers while a loop adds to them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from myna.kernels.compiled.emit import ADDRESS, BYTE, LITERAL, Builder, Value, call, compiled, emits, pointer

LANES = 16
LINE_BYTES = 64
INT_BYTES = 8
FLOAT_BYTES = 4
HALF_BYTES = 2
ROW_BYTES = LANES * FLOAT_BYTES
"""Of sixteen float32."""

_INT32 = ir.IntType(32)
_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_WORDS = ir.VectorType(_INT32, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)

_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO = 0x8000, 0x40

LOG2_E = 1.4426950408889634
_EXP2_TERMS = [0.6931471805599453**n for n in range(8)]
"""Powers of ln 2; divided by n! they are the series of 2 ** x."""


class _Lanes(types.Type):  # type: ignore[misc]  # numba has no types
    def __init__(self) -> None:
        super().__init__(name="Lanes")


class _Block(types.Type):  # type: ignore[misc]  # numba has no types
    def __init__(self, count: int) -> None:
        super().__init__(name=f"Block{count}")
        self.count = count


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]  # numba has no types
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(_Block)
class _BlockModel(models.PrimitiveModel):  # type: ignore[misc]  # numba has no types
    def __init__(self, manager: Any, kind: _Block) -> None:
        super().__init__(manager, kind, ir.ArrayType(_FLOATS, kind.count))


_lanes = _Lanes()


@emits(_lanes, ADDRESS)
def load(builder: Builder, address: Value) -> Value:
    """Sixteen float32."""
    return builder.load(pointer(builder, address, _FLOATS), align=FLOAT_BYTES)


@emits(types.none, ADDRESS, _lanes)
def store(builder: Builder, address: Value, value: Value) -> None:
    """Sixteen float32."""
    builder.store(value, pointer(builder, address, _FLOATS), align=FLOAT_BYTES)


@emits(_lanes, ADDRESS)
def load_half(builder: Builder, address: Value) -> Value:
    """Sixteen bfloat16, widened."""
    halves = builder.load(pointer(builder, address, _HALVES), align=HALF_BYTES)
    return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), _words(16)), _FLOATS)


@emits(types.none, ADDRESS, _lanes)
def store_half(builder: Builder, address: Value, value: Value) -> None:
    """Sixteen bfloat16, rounded."""
    bits = builder.bitcast(value, _WORDS)
    odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
    rounded = builder.add(builder.add(bits, _words(0x7FFF)), odd)
    halves = builder.trunc(builder.lshr(rounded, _words(16)), _HALVES)
    builder.store(halves, pointer(builder, address, _HALVES), align=HALF_BYTES)


@emits(types.none, ADDRESS, ADDRESS, _lanes)
def store_column(builder: Builder, address: Value, stride: Value, value: Value) -> None:
    """Sixteen float32, `stride` bytes apart."""
    for i in range(LANES):
        builder.store(builder.extract_element(value, _INT32(i)), pointer(builder, address, _FLOAT))
        address = builder.add(address, stride)


@emits(types.float32, ADDRESS)
def load_float(builder: Builder, address: Value) -> Value:
    """One float32."""
    return builder.load(pointer(builder, address, _FLOAT))


@emits(types.none, ADDRESS, types.float32)
def store_float(builder: Builder, address: Value, value: Value) -> None:
    """One float32."""
    builder.store(value, pointer(builder, address, _FLOAT))


@emits(types.int64, ADDRESS)
def load_int(builder: Builder, address: Value) -> Value:
    """One int64."""
    return builder.load(pointer(builder, address, ir.IntType(64)))


@emits(types.none, LITERAL)
def flush_subnormals(builder: Builder, on: int) -> None:
    """Take numbers below 2 ** -126 for zero in this thread (1), or not (0). Each of them costs a hundred cycles, and the
    weights of keys that hardly count are full of them."""
    place = cgutils.alloca_once(builder, _INT32)
    address = builder.bitcast(place, BYTE.as_pointer())
    call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [address])
    both = _INT32(_FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO)
    word = builder.load(place)
    builder.store(builder.or_(word, both) if on else builder.and_(word, builder.not_(both)), place)
    call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [address])


@emits(types.none, ADDRESS)
def prefetch(builder: Builder, address: Value) -> None:
    """Have a cache line brought to the second level."""
    hints = [_INT32(0), _INT32(2), _INT32(1)]
    call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [pointer(builder, address), *hints])


@emits(types.none, ADDRESS, ADDRESS)
def copy_word(builder: Builder, target: Value, source: Value) -> None:
    """Four bytes."""
    builder.store(builder.load(pointer(builder, source, _INT32)), pointer(builder, target, _INT32))


@emits(_lanes)
def zero(_: Builder) -> Value:
    """Zeros."""
    return _floats(0.0)


@emits(_lanes)
def numbered(_: Builder) -> Value:
    """0 to 15."""
    return ir.Constant(_FLOATS, [float(lane) for lane in range(LANES)])


@emits(_lanes, types.float32)
def splat(builder: Builder, value: Value) -> Value:
    """The same number in all lanes."""
    return _splat(builder, value)


@emits(_lanes, _lanes, _lanes, operation=operator.add)
def _add(builder: Builder, left: Value, right: Value) -> Value:
    return builder.fadd(left, right)


@emits(_lanes, _lanes, _lanes, operation=operator.sub)
def _subtract(builder: Builder, left: Value, right: Value) -> Value:
    return builder.fsub(left, right)


@emits(_lanes, _lanes, _lanes, operation=operator.mul)
def _multiply(builder: Builder, left: Value, right: Value) -> Value:
    return builder.fmul(left, right)


@emits(_lanes, _lanes, _lanes, operation=operator.truediv)
def _divide(builder: Builder, left: Value, right: Value) -> Value:
    return builder.fdiv(left, right)


@emits(_lanes, _lanes, _lanes, _lanes)
def fma(builder: Builder, left: Value, right: Value, add: Value) -> Value:
    """left * right + add, rounded once."""
    return _fma(builder, left, right, add)


@emits(_lanes, _lanes, _lanes)
def largest(builder: Builder, left: Value, right: Value) -> Value:
    """The larger of each two; `right` where one isn't a number."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


@emits(_lanes, _lanes, _lanes, _lanes, _lanes)
def where_larger(builder: Builder, left: Value, right: Value, yes: Value, no: Value) -> Value:
    """`yes` in the lanes where left > right, else `no`."""
    return builder.select(builder.fcmp_ordered(">", left, right), yes, no)


@emits(types.float32, _lanes)
def total(builder: Builder, value: Value) -> Value:
    """The sum of the lanes, by halves."""
    return _fold(builder, value, builder.fadd)


@emits(_lanes, _lanes)
def exp2(builder: Builder, value: Value) -> Value:
    """2 ** value, to 2e-7 of it, for -126 <= value <= 127; the bound's beyond that. No number stays none."""
    low, high = _floats(-126.0), _floats(127.0)
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
    whole = call(builder, "llvm.rint.v16f32", _FLOATS, [value])
    rest = builder.fsub(value, whole)
    factorial, terms = 1.0, []
    for n, power in enumerate(_EXP2_TERMS):
        factorial *= max(n, 1)
        terms.append(_floats(power / factorial))
    result = terms.pop()
    while terms:
        result = _fma(builder, result, rest, terms.pop())
    exponent = builder.shl(builder.add(builder.fptosi(whole, _WORDS), _words(127)), _words(23))
    return builder.fmul(result, builder.bitcast(exponent, _FLOATS))


@compiled
def mean_square(address: int, count: int) -> float:
    """Of `count` float32, a multiple of 16."""
    squares = zero()
    for i in range(0, count, LANES):
        value = load(address + i * FLOAT_BYTES)
        squares = fma(value, value, squares)
    mean: float = total(squares) / count
    return mean


@compiled
def silu(value: Any) -> Any:
    """value * sigmoid(value)."""
    one = splat(1.0)
    return value / (one + exp2(value * splat(-LOG2_E)))


def _make_zeros(count: int) -> Callable[..., Any]:
    @emits(_Block(count))
    def zeros(_: Builder) -> Value:
        return ir.Constant(ir.ArrayType(_FLOATS, count), None)

    return zeros


zeros3 = _make_zeros(3)
zeros4 = _make_zeros(4)
zeros16 = _make_zeros(16)


@emits(0, _Block, ADDRESS, ADDRESS, _lanes)
def spread(builder: Builder, block: Value, address: Value, stride: Value, value: Value) -> Value:
    """An outer product added: to vector i of the block, `value` times the float32 at `address + i * stride`."""
    for i in range(block.type.count):
        factor = _splat(builder, builder.load(pointer(builder, address, _FLOAT)))
        added = _fma(builder, factor, value, builder.extract_value(block, i))
        block = builder.insert_value(block, added, i)
        address = builder.add(address, stride)
    return block


@emits(_lanes, _Block, LITERAL)
def row(builder: Builder, block: Value, index: int) -> Value:
    """One vector of a block."""
    return builder.extract_value(block, index)


@emits(types.none, _Block, ADDRESS, ADDRESS)
def store_block(builder: Builder, block: Value, address: Value, stride: Value) -> None:
    """Write vector i of a block to `address + i * stride`."""
    for i in range(block.type.count):
        builder.store(builder.extract_value(block, i), pointer(builder, address, _FLOATS), align=FLOAT_BYTES)
        address = builder.add(address, stride)


def _fma(builder: Builder, left: Value, right: Value, add: Value) -> Value:
    return call(builder, "llvm.fma.v16f32", _FLOATS, [left, right, add])


def _splat(builder: Builder, value: Value) -> Value:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(_WORDS, [0] * LANES))


def _fold(builder: Builder, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    size = LANES
    while size > 1:
        size //= 2
        halves = [ir.Constant(ir.VectorType(_INT32, size), list(range(at, at + size))) for at in (0, size)]
        low, high = (builder.shuffle_vector(value, value, half) for half in halves)
        value = combine(low, high)
    return builder.extract_element(value, _INT32(0))


def _words(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * LANES)


def _floats(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * LANES)
