"""Where the nodes of a graph stand on a page: in layers from left to right, each as near to its neighbours as its layer allows.

Law: pure, and quick: time grows with nodes and edges, not with their squares. After Sugiyama: layers by the longest path, order
within a layer by the neighbours' mean, places by isotonic regression, so that nodes of a layer never meet. What leads over
several layers is routed between their nodes. A layer of very many nodes becomes a block of several columns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 176.0, 44.0
"""Of a node's box, in pixels."""
GAP_X, GAP_Y = 64.0, 16.0
_LANE = 18.0
"""Height that an edge takes in a layer that it passes."""
_SWEEPS = 6
_ROWS = 14
"""Nodes that a layer may always have in one column."""
_MOST_PASSING = 6000
"""Places of passing edges; where a graph would need more, they go straight."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Layout:
    """`places`: the middle of each node; `routes`: for each edge the points that it goes through, ends included. Nothing lies
    outside (0, 0) to (`width`, `height`)."""

    places: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


@dataclass(slots=True)
class _Vertex:
    """A node, or the place where an edge passes a layer."""

    layer: int
    real: bool
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    y: float = 0.0

    @property
    def half(self) -> float:
        return (HEIGHT + GAP_Y) / 2 if self.real else _LANE / 2


def layout(nodes: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Places for `nodes` nodes and the `edges` between them. Edges of a cycle are drawn, and don't count."""
    layers_of = _layers(nodes, edges)
    vertices = [_Vertex(layer, True) for layer in layers_of]
    chains = _chains(vertices, layers_of, edges)
    layers: list[list[int]] = [[] for _ in range(max(layers_of, default=-1) + 1)]
    for v, vertex in enumerate(vertices):
        layers[vertex.layer].append(v)
    _order(vertices, layers)
    _place(vertices, layers)
    return _page(nodes, vertices, layers, chains)


def _layers(nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Each node's layer: one after the last of those before it; one that has none before it, right before its first use."""
    after: list[list[int]] = [[] for _ in range(nodes)]
    left = [0] * nodes
    for source, target in edges:
        after[source].append(target)
        left[target] += 1
    sources = [n for n in range(nodes) if not left[n]]
    layer = [0] * nodes
    ready = deque(sources)
    while ready:
        node = ready.popleft()
        for other in after[node]:
            layer[other] = max(layer[other], layer[node] + 1)
            left[other] -= 1
            if not left[other]:
                ready.append(other)
    for node in sources:
        if after[node]:
            layer[node] = max(0, min(layer[other] for other in after[node]) - 1)
    return layer


def _chains(vertices: list[_Vertex], layers_of: list[int], edges: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Each edge as the vertices that it goes through; adds those where it passes a layer."""
    passing = sum(max(layers_of[t] - layers_of[s] - 1, 0) for s, t in edges)
    chains: list[tuple[int, ...]] = []
    shared: dict[tuple[int, int], int] = {}
    joined: set[tuple[int, int]] = set()
    for source, target in edges:
        chain = [source]
        if passing <= _MOST_PASSING:
            for layer in range(layers_of[source] + 1, layers_of[target]):
                if (source, layer) not in shared:  # edges of one origin run together as far as they can
                    shared[source, layer] = len(vertices)
                    vertices.append(_Vertex(layer, False))
                chain.append(shared[source, layer])
        chain.append(target)
        if layers_of[source] < layers_of[target]:
            for a, b in pairwise(chain):
                if (a, b) not in joined:
                    joined.add((a, b))
                    vertices[a].after.append(b)
                    vertices[b].before.append(a)
        chains.append(tuple(chain))
    return chains


def _order(vertices: list[_Vertex], layers: list[list[int]]) -> None:
    """Order each layer by the mean place of its neighbours, forth and back."""
    rank = [0.0] * len(vertices)

    def settle(layer: list[int]) -> None:
        for place, v in enumerate(layer):
            rank[v] = place - len(layer) / 2

    for layer in layers:
        settle(layer)
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        for layer in layers if forth else reversed(layers):
            mean = {v: _mean(rank, vertices[v].before if forth else vertices[v].after, rank[v]) for v in layer}
            layer.sort(key=lambda v: mean[v])
            settle(layer)


def _mean(values: Sequence[float], of: Sequence[int], otherwise: float) -> float:
    return sum(values[v] for v in of) / len(of) if of else otherwise


def _place(vertices: list[_Vertex], layers: list[list[int]]) -> None:
    """Give each vertex its height: near its neighbours, in order, apart."""
    for layer in layers:
        _spread(vertices, layer, [0.0] * len(layer))
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        for layer in layers if forth else reversed(layers):
            wish = []
            for v in layer:
                vertex = vertices[v]
                around = (vertex.before or vertex.after) if forth else (vertex.after or vertex.before)
                wish.append(sum(vertices[o].y for o in around) / len(around) if around else vertex.y)
            _spread(vertices, layer, wish)


def _spread(vertices: list[_Vertex], layer: list[int], wish: Sequence[float]) -> None:
    """The heights nearest to `wish` (least squares) that keep the order and the distances: pool adjacent violators."""
    if _columns(vertices, layer) > 1:
        _block(vertices, layer)
        return
    offsets, offset = [], 0.0
    for i, v in enumerate(layer):
        offset += vertices[v].half + (vertices[layer[i - 1]].half if i else 0.0)
        offsets.append(offset)
    pools: list[tuple[float, int]] = []
    for target, shift in zip(wish, offsets, strict=True):
        total, count = target - shift, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            more, members = pools.pop()
            total, count = total + more, count + members
        pools.append((total, count))
    heights = [total / count for total, count in pools for _ in range(count)]
    for v, height, shift in zip(layer, heights, offsets, strict=True):
        vertices[v].y = height + shift


def _columns(vertices: list[_Vertex], layer: list[int]) -> int:
    """In how many columns a layer stands: a block of many is somewhat wider than high."""
    real = sum(vertices[v].real for v in layer)
    return 1 if real <= _ROWS else max(1, round(math.sqrt(real / 2.2)))


def _block(vertices: list[_Vertex], layer: list[int]) -> None:
    """Rows of nodes, in order; what passes goes above and below, in turn."""
    real = [v for v in layer if vertices[v].real]
    columns = _columns(vertices, layer)
    rows = math.ceil(len(real) / columns)
    top = -rows * (HEIGHT + GAP_Y) / 2
    for place, v in enumerate(real):
        vertices[v].y = top + (place // columns + 0.5) * (HEIGHT + GAP_Y)
    for place, v in enumerate(v for v in layer if not vertices[v].real):
        far = -top + (place // 2 + 1) * _LANE
        vertices[v].y = far if place % 2 else -far


def _page(nodes: int, vertices: list[_Vertex], layers: list[list[int]], chains: list[tuple[int, ...]]) -> Layout:
    left = [0.0] * len(vertices)
    widths: list[float] = []
    blocks: dict[int, tuple[float, float]] = {}
    x = 0.0
    for n, layer in enumerate(layers):
        columns = _columns(vertices, layer)
        if columns > 1:
            blocks[n] = x, x + columns * (WIDTH + GAP_Y)
        widths.append(columns * (WIDTH + GAP_Y) - GAP_Y)
        place = 0
        for v in layer:
            left[v] = x
            if columns > 1 and vertices[v].real:
                left[v] += (place % columns) * (WIDTH + GAP_Y)
                place += 1
        x += widths[-1] + GAP_X
    top = min((v.y - v.half for v in vertices), default=0.0)
    bottom = max((v.y + v.half for v in vertices), default=0.0)
    places = tuple((left[n] + WIDTH / 2, vertices[n].y - top) for n in range(nodes))

    def route(chain: tuple[int, ...]) -> tuple[Point, ...]:
        source, target = chain[0], chain[-1]
        points = [(left[source] + WIDTH, vertices[source].y - top)]
        below = (HEIGHT + GAP_Y) / 2  # in a block edges run between the rows
        if (block := blocks.get(vertices[source].layer)) is not None:
            x, y = points[0]
            points += [(x + GAP_Y, y + below), (block[1], y + below)]
        for v in chain[1:-1]:
            y = vertices[v].y - top
            points += [(left[v], y), (left[v] + widths[vertices[v].layer], y)]
        x, y = left[target], vertices[target].y - top
        if (block := blocks.get(vertices[target].layer)) is not None:
            points += [(block[0] - GAP_Y, y - below), (x - GAP_Y, y - below)]
        return (*points, (x, y))

    return Layout(places, tuple(route(c) for c in chains), max(x - GAP_X, 0.0), bottom - top)
