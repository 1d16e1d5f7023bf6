"""Threads that work on one step together: they meet at barriers, and sleep when there is nothing to meet for.

A thread that waits spins a little and then sleeps in the kernel (futex), so that on a busy machine it leaves its core to
whoever is late. Everything that they share is in one record of int64, each word on a cache line of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from myna.kernels.compiled.emit import ADDRESS, Builder, Value, call, compiled, emits, pointer

_LINE = 64
_ARRIVED, _SLEEPING, _STARTED, _STOPPED, _DEALT = (word * _LINE for word in range(5))
"""Threads that have come to any barrier so far; sleepers; steps begun; whether to end; pieces dealt in this step."""

_SPINS = 2000
"""Turns of waiting before sleep: about 50 microseconds, ten times what threads that run are apart."""

_FUTEX_CALL, _WAIT, _WAKE = 202, 128, 129
"""Linux on x86-64: futex(2), FUTEX_WAIT and FUTEX_WAKE among the threads of one process."""

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


@emits(types.int64, ADDRESS, types.int64)
def atomic_add(builder: Builder, address: Value, value: Value) -> Value:
    """Add to a shared word. Returns what it was."""
    return builder.atomic_rmw("add", pointer(builder, address, _INT64), value, "seq_cst")


@emits(types.int64, ADDRESS)
def atomic_load(builder: Builder, address: Value) -> Value:
    """A shared word."""
    return builder.load_atomic(pointer(builder, address, _INT64), "seq_cst", 8)


@emits(types.none)
def pause(builder: Builder) -> None:
    """Tell the core that it is waiting."""
    call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


@emits(types.none, ADDRESS, types.int64)
def _sleep_while(builder: Builder, address: Value, value: Value) -> None:
    """Sleep while the low half of a word is `value`; may return early."""
    _futex(builder, address, _WAIT, builder.and_(value, _INT64(0xFFFFFFFF)))


@emits(types.none, ADDRESS)
def _wake_all(builder: Builder, address: Value) -> None:
    _futex(builder, address, _WAKE, _INT64(0x7FFFFFFF))


def _futex(builder: Builder, address: Value, action: int, value: Value) -> None:
    kind = ir.FunctionType(_INT64, [_INT64], var_arg=True)
    function = builder.module.globals.get("syscall") or ir.Function(builder.module, kind, "syscall")
    builder.call(function, [_INT64(_FUTEX_CALL), address, _INT64(action), value, _INT64(0)])


@compiled
def _wait_until(team: int, word: int, wanted: int) -> None:
    """Return once a word has reached `wanted`."""
    for _ in range(_SPINS):
        if atomic_load(team + word) >= wanted:
            return
        pause()
    while True:
        atomic_add(team + _SLEEPING, 1)
        seen = atomic_load(team + word)
        if seen < wanted:
            _sleep_while(team + word, seen)
        atomic_add(team + _SLEEPING, -1)
        if atomic_load(team + word) >= wanted:
            return


@compiled
def _advance(team: int, word: int) -> int:
    """Count a word up by one and wake who sleeps. Returns its new value."""
    value: int = atomic_add(team + word, 1) + 1
    if atomic_load(team + _SLEEPING) > 0:
        _wake_all(team + word)
    return value


@compiled
def meet(team: int, threads: int) -> None:
    """A barrier: return when all threads of the team have come as often as this one."""
    value = atomic_add(team + _ARRIVED, 1) + 1
    wanted = (value + threads - 1) // threads * threads
    if value == wanted:
        if atomic_load(team + _SLEEPING) > 0:
            _wake_all(team + _ARRIVED)
    else:
        _wait_until(team, _ARRIVED, wanted)


@compiled
def await_step(team: int, step: int) -> bool:
    """Wait until step number `step` (from 1) begins. False: the team is dissolved."""
    _wait_until(team, _STARTED, step)
    running: bool = atomic_load(team + _STOPPED) == 0
    return running


@compiled
def share(count: int, thread: int, threads: int) -> tuple[int, int]:
    """Begin and end of a thread's part of `count` equal pieces."""
    return count * thread // threads, count * (thread + 1) // threads


@compiled
def deal(team: int) -> int:
    """The number of the next piece, from 0 in each step: for pieces that differ in size."""
    piece: int = atomic_add(team + _DEALT, 1)
    return piece


@compiled
def begin_step(team: int) -> None:
    """Let the others begin the next step."""
    atomic_add(team + _DEALT, -atomic_load(team + _DEALT))
    _advance(team, _STARTED)


@compiled
def dissolve(team: int) -> None:
    """Let the others end."""
    atomic_add(team + _STOPPED, 1)
    _advance(team, _STARTED)


class Team:
    """`threads` - 1 threads that run `member(address, thread)`, thread = 1 and up, until the team is closed."""

    def __init__(self, threads: int, member: Callable[[int, int], Any]) -> None:
        self.threads = threads
        self._words = np.zeros(8 * _LINE // 8, np.int64)
        self.address = -(-self._words.ctypes.data // _LINE) * _LINE
        members = [
            threading.Thread(target=member, args=(self.address, thread), name=f"myna-decode-{thread}", daemon=True)
            for thread in range(1, threads)
        ]
        for thread in members:
            thread.start()
        self.close = weakref.finalize(self, _end, self._words, self.address, members)


def _end(_words: Any, address: int, members: list[threading.Thread]) -> None:
    """End the threads, while their words are still there."""
    dissolve(address)
    for thread in members:
        thread.join()
