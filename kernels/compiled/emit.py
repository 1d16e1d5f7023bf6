"""How a kernel gets at an instruction: a Python function that writes LLVM IR becomes an operation of compiled code.

    @emits(lanes, ADDRESS)
    def load(builder, address): return builder.load(...)

The rest of the package sees numba through this module only, which gives its decorators types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer, infer_global
from numba.extending import lower_builtin

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = ir.Value
F = TypeVar("F", bound=Callable[..., Any])

ADDRESS = types.int64
"""Addresses are integers, in bytes."""

LITERAL = types.IntegerLiteral
"""An argument that has to be a constant in the source; the emitter gets it as an int."""

BYTE = ir.IntType(8)


def compiled(function: F) -> F:
    """Machine code at first call, without the interpreter's lock. A division by zero is infinite, as in hardware."""
    return cast(F, njit(nogil=True, error_model="numpy")(function))


def kept(function: F) -> F:
    """As `compiled`, with the machine code kept on disk between processes."""
    return cast(F, njit(nogil=True, error_model="numpy", cache=True)(function))


def emits(result: Any, *arguments: Any, operation: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an emitter (builder, one value for each argument) -> value an operation on these numba types.

    An argument is a type, a class of types, or LITERAL; the result is a type, or the number of the argument whose type
    it has. `operation`: what stands for it in the source; by default a function of the emitter's name.
    """

    def decorate(emitter: Callable[..., Any]) -> Callable[..., Any]:
        chosen = _marker(emitter) if operation is None else operation

        class Typing(AbstractTemplate):  # type: ignore[misc]  # numba has no types
            key = chosen
            prefer_literal = True

            def generic(self, given: tuple[Any, ...], _: Any) -> Any:
                return _signature(given, arguments, result)

        def lower(context: Any, builder: Builder, typed: Any, values: Sequence[Value]) -> Any:
            literal = [expected is LITERAL for expected in arguments]
            given = [t.literal_value if one else v for t, one, v in zip(typed.args, literal, values, strict=True)]
            made = emitter(builder, *given)
            return context.get_dummy_value() if result is types.none else made

        if operation is None:
            infer(Typing)
            infer_global(chosen, types.Function(Typing))
        else:
            infer_global(chosen)(Typing)
        lower_builtin(chosen, *arguments)(lower)
        return cast(Callable[..., Any], chosen)

    return decorate


def call(builder: Builder, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
    """Call an LLVM intrinsic or a C function by name."""
    kind = ir.FunctionType(result, [value.type for value in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def pointer(builder: Builder, address: Value, kind: ir.Type = BYTE) -> Value:
    """An address as a pointer."""
    return builder.inttoptr(address, kind.as_pointer())


def _marker(emitter: Callable[..., Any]) -> Callable[..., Any]:
    def operation(*_: Any) -> Any:
        raise TypeError(f"{emitter.__name__} exists in compiled code only")

    operation.__doc__, operation.__name__, operation.__qualname__ = emitter.__doc__, emitter.__name__, emitter.__name__
    return operation


def _signature(given: tuple[Any, ...], expected: tuple[Any, ...], result: Any) -> Any:
    """The operation's signature with the constants that it was given, or None where the arguments aren't its own."""
    if len(given) != len(expected) or not all(map(_converts, given, expected)):
        return None
    chosen = [one if isinstance(other, type) else other for one, other in zip(given, expected, strict=True)]
    return signature(chosen[result] if isinstance(result, int) else result, *chosen)


def _converts(given: Any, expected: Any) -> bool:
    if isinstance(expected, type):
        return isinstance(given, expected)
    for kind in (types.Integer, types.Float):  # numba converts among these
        if isinstance(expected, kind):
            return isinstance(given, kind)
    return bool(given == expected)
