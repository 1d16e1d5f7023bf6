"""One decode step, whole: every thread of the team runs the same function and they meet between its phases.

A phase is work that needs nothing of itself; its pieces are dealt to the threads in equal shares. What is small enough
(the norm of a few rows) each thread computes for itself rather than meet once more. The residual stays in float32.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from myna.kernels.compiled.attention import make_attention
from myna.kernels.compiled.elements import FLOAT, HALF, Elements
from myna.kernels.compiled.emit import compiled, kept
from myna.kernels.compiled.lanes import (
    FLOAT_BYTES,
    INT_BYTES,
    LANES,
    ROW_BYTES,
    flush_subnormals,
    largest,
    load,
    load_int,
    mean_square,
    numbered,
    silu,
    splat,
    store,
    where_larger,
    zero,
)
from myna.kernels.compiled.records import MOST_ROWS
from myna.kernels.compiled.team import await_step, begin_step, meet, share


def make_step(elements: Elements) -> Callable[..., Any]:
    """The step for a number format: `step(network, layers, step, team, thread)` over `records`."""
    size, product, put, load_elements = elements.bytes, elements.product, elements.put, elements.load
    block_bytes = LANES * size
    enter, leave = elements.enter, elements.leave
    rotate, attend, combine = make_attention(elements)

    @compiled
    def embed(net: Any, step: Any, thread: int) -> None:
        begin, end = share(step.rows, thread, net.threads)
        for row in range(begin, end):
            source = net.embedding + load_int(step.token_ids + row * INT_BYTES) * net.hidden * size
            for i in range(0, net.hidden, LANES):
                store(net.residual + (row * net.hidden + i) * FLOAT_BYTES, load_elements(source + i * size))

    @compiled
    def normalise(net: Any, operand: int, source: int, target: int, epsilon: float) -> None:
        """Residual row `source`, over its root mean square, as row `target` of an operand."""
        address = net.residual + source * net.hidden * FLOAT_BYTES
        inverse = splat(1 / math.sqrt(mean_square(address, net.hidden) + epsilon))
        for i in range(0, net.hidden, LANES):
            put(operand, net.hidden, target, i, load(address + i * FLOAT_BYTES) * inverse)

    @compiled
    def normalise_all(net: Any, operand: int, rows: int, epsilon: float) -> None:
        for row in range(rows):
            normalise(net, operand, row, row, epsilon)

    @compiled
    def project(
        net: Any, operand: int, rows: int, depth: int, weight: int, outputs: int, out: int, thread: int
    ) -> None:
        """rows x weight, to rows of `outputs` float32."""
        begin, end = share(outputs // LANES, thread, net.threads)
        for block in range(begin, end):
            product(
                operand,
                rows,
                depth,
                weight + block * depth * block_bytes,
                out + block * ROW_BYTES,
                outputs * FLOAT_BYTES,
            )

    @compiled
    def classify(net: Any, step: Any, operand: int, thread: int) -> None:
        """The logits, and the largest of them so far."""
        begin, end = share(net.vocabulary // LANES, thread, net.threads)
        count, stride = step.logit_count, net.vocabulary * FLOAT_BYTES
        own = thread * count * ROW_BYTES
        for row in range(count):
            store(step.best + own + row * ROW_BYTES, splat(-math.inf))
            store(step.best_ids + own + row * ROW_BYTES, zero())
        for block in range(begin, end):
            out = step.logits + block * ROW_BYTES
            product(operand, count, net.hidden, net.head + block * net.hidden * block_bytes, out, stride)
            ids = numbered() + splat(float(block * LANES))
            for row in range(count):
                value, at = load(out + row * stride), own + row * ROW_BYTES
                best = load(step.best + at)
                store(step.best_ids + at, where_larger(value, best, ids, load(step.best_ids + at)))
                store(step.best + at, largest(value, best) + value * zero())  # one that is no number spoils the row

    @compiled
    def project_onto(net: Any, operand: int, rows: int, depth: int, weight: int, scratch: int, thread: int) -> None:
        """rows x weight, added to the residual."""
        begin, end = share(net.hidden // LANES, thread, net.threads)
        for block in range(begin, end):
            product(operand, rows, depth, weight + block * depth * block_bytes, scratch, ROW_BYTES)
            target = net.residual + block * ROW_BYTES
            for row in range(rows):
                address = target + row * net.hidden * FLOAT_BYTES
                store(address, load(address) + load(scratch + row * ROW_BYTES))

    @compiled
    def gate(net: Any, operand: int, rows: int, weight: int, scratch: int, thread: int) -> None:
        """silu(rows x gate) * (rows x up): their blocks alternate."""
        begin, end = share(net.inner // LANES, thread, net.threads)
        bytes_each = net.hidden * block_bytes
        other = scratch + MOST_ROWS * ROW_BYTES
        for block in range(begin, end):
            product(operand, rows, net.hidden, weight + 2 * block * bytes_each, scratch, ROW_BYTES)
            product(operand, rows, net.hidden, weight + (2 * block + 1) * bytes_each, other, ROW_BYTES)
            for row in range(rows):
                value = silu(load(scratch + row * ROW_BYTES)) * load(other + row * ROW_BYTES)
                put(net.activated, net.inner, row, block * LANES, value)

    @compiled
    def whole(network: Any, layers: Any, steps: Any, team: int, thread: int) -> None:
        net, step = network[0], steps[0]
        own = thread * net.private_bytes
        operand, scratch = net.operand + own, net.scratch + own
        rows, width = step.rows, net.heads * net.head_dim
        outputs = width + 2 * net.kv_heads * net.head_dim
        enter(net.tiles)
        flush_subnormals(1)
        embed(net, step, thread)
        meet(team, net.threads)
        for i in range(len(layers)):
            layer = layers[i]
            normalise_all(net, operand, rows, layer.attention_epsilon)
            project(net, operand, rows, net.hidden, layer.qkv, outputs, net.qkv, thread)
            meet(team, net.threads)
            rotate(net, layer, step, thread)
            meet(team, net.threads)
            attend(net, layer, step, i, team, thread)
            meet(team, net.threads)
            combine(net, step, thread)
            meet(team, net.threads)
            project_onto(net, net.attended, rows, width, layer.output, scratch, thread)
            meet(team, net.threads)
            normalise_all(net, operand, rows, layer.mlp_epsilon)
            gate(net, operand, rows, layer.gate_up, scratch, thread)
            meet(team, net.threads)
            project_onto(net, net.activated, rows, net.inner, layer.down, scratch, thread)
            meet(team, net.threads)
        for i in range(step.logit_count):
            normalise(net, operand, load_int(step.logit_rows + i * INT_BYTES), i, net.epsilon)
        classify(net, step, operand, thread)
        leave()
        flush_subnormals(0)
        meet(team, net.threads)

    return whole


def make_member(elements: Elements) -> Callable[..., Any]:
    """What a thread of the team runs: `member(network, layers, steps, team, thread)`.

    Thread 0 runs one step and returns; the others run every step until the team is dissolved.
    """
    step = (_keep_half if elements is HALF else _keep_float)(_sources())

    @compiled
    def member(network: Any, layers: Any, steps: Any, team: int, thread: int) -> None:
        if thread == 0:
            begin_step(team)
            step(network, layers, steps, team, thread)
            return
        number = 1
        while await_step(team, number):
            step(network, layers, steps, team, thread)
            number += 1

    return member


# numba finds kept code by a function's file and by the values that the function encloses, and looks at no file that it
# calls. So the two functions that are kept reach everything by globals, and enclose only a number for all the sources.
_whole_half, _whole_float = make_step(HALF), make_step(FLOAT)


def _keep_half(sources: int) -> Callable[..., Any]:
    def half(network: Any, layers: Any, steps: Any, team: int, thread: int) -> int:
        _whole_half(network, layers, steps, team, thread)
        return sources

    return kept(half)


def _keep_float(sources: int) -> Callable[..., Any]:
    def single(network: Any, layers: Any, steps: Any, team: int, thread: int) -> int:
        _whole_float(network, layers, steps, team, thread)
        return sources

    return kept(single)


def _sources() -> int:
    """A number that changes whenever a source of this package does."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))
