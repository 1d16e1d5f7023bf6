"""The graph of a session as a picture over HTTP: where its calls stand on the page, and, cheaper, how far each of them is.

Law: who looks costs the scheduler a question in so many seconds at most, however many look; a large graph is asked for
less often.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from msgspec import Struct

from myna.actors.gateway.http import Answer, Incoming, Json
from myna.actors.gateway.tenancy import Tenancy
from myna.sdk.graphs.layout import HEIGHT, WIDTH, layout
from myna.sdk.graphs.model import Graph, of_view
from myna.sdk.graphs.svg import path

_FRESH = 0.4
"""Seconds for which a graph is believed, and as many more as it has thousands of calls."""
_MOST_KEPT = 64
"""Graphs of a tenant that are remembered."""


class NodeShown(Struct):
    """A call, or a variable that is set by hand (`kind`); `x`, `y`: its middle."""

    kind: str
    id: str
    label: str
    x: float
    y: float
    outputs: list[str]


class EdgeShown(Struct):
    """A variable from one node into another, both by their place in the list; `path` is the line's `d` in SVG."""

    source: int
    target: int
    variable: str
    path: str


class Picture(Struct):
    """A graph's nodes and edges on a page of `width` by `height`; boxes are `box_width` by `box_height`. `shape` is another when
    nodes or edges were added."""

    session: str
    name: str
    shape: str
    width: float
    height: float
    nodes: list[NodeShown]
    edges: list[EdgeShown]
    left_out: int
    box_width: float = WIDTH
    box_height: float = HEIGHT


class NodeGoing(Struct):
    """A call that goes on: at which worker, seconds in its state, tokens made; tokens of its context, computed and found
    there."""

    node: int
    worker: str
    seconds: float | None
    produced: int = 0
    tokens: int = 0
    computed: int = 0
    cached: int = 0


class Progress(Struct):
    """How far a graph is: for each state the nodes in it, by their place in the picture of that `shape`. `again`: seconds after
    which it is worth asking again."""

    shape: str
    states: dict[str, list[int]]
    going: list[NodeGoing]
    again: float


@dataclass(slots=True)
class _Kept:
    graph: Graph
    at: float


@dataclass(slots=True)
class _Looks:
    """What was last seen of a tenant's sessions."""

    graphs: dict[str, _Kept] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


_LOOKS: WeakKeyDictionary[Tenancy, _Looks] = WeakKeyDictionary()


async def picture(incoming: Incoming) -> Answer:
    """The graph of a session, drawn."""
    looks = _LOOKS.setdefault(incoming.tenancy, _Looks())
    graph = await _graph(incoming, looks)
    kept = looks.pictures.get(graph.session)
    if kept is None or kept.shape != _shape(graph):
        kept = looks.pictures[graph.session] = await asyncio.to_thread(_drawn, graph)
        _bound(looks.pictures)
    return Json(kept)


async def progress(incoming: Incoming) -> Answer:
    """How far each call of a session is."""
    looks = _LOOKS.setdefault(incoming.tenancy, _Looks())
    graph = await _graph(incoming, looks)
    states: dict[str, list[int]] = {}
    going = []
    for place, node in enumerate(graph.nodes):
        states.setdefault(node.state.value, []).append(place)
        if node.worker and not node.state.ended:
            sight = incoming.tenancy.history.call((incoming.tenancy.tenant, graph.session, node.id))
            seen = () if sight is None else (sight.produced, sight.tokens, sight.computed, sight.cached)
            going.append(NodeGoing(place, node.worker, node.seconds, *seen))
    return Json(Progress(_shape(graph), states, going, max(1.0, 2 * _fresh(graph))))


async def _graph(incoming: Incoming, looks: _Looks) -> Graph:
    """Raises `SessionClosed`, `BusError`."""
    id_, tenancy = incoming.path["session"], incoming.tenancy
    now = asyncio.get_running_loop().time
    async with looks.asking:
        kept = looks.graphs.get(id_)
        if kept is None or now() - kept.at > _fresh(kept.graph):
            view = await tenancy.graph(id_)
            history, tenant = tenancy.history, tenancy.tenant

            def phase(call: str) -> str | None:
                sight = history.call((tenant, view.session, call))
                return None if sight is None else sight.phase.value

            kept = looks.graphs[id_] = _Kept(of_view(view, phase), now())
            _bound(looks.graphs)
    return kept.graph


def _fresh(graph: Graph) -> float:
    return _FRESH + len(graph.nodes) / 1000


def _shape(graph: Graph) -> str:
    """Graphs only grow: their size tells whether one is still the same."""
    return f"{len(graph.nodes)}-{len(graph.edges)}"


def _bound(kept: dict[str, _Kept] | dict[str, Picture]) -> None:
    while len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]


def _drawn(graph: Graph) -> Picture:
    placed = layout(len(graph.nodes), [(e.source, e.target) for e in graph.edges])
    nodes = [
        NodeShown(n.kind.value, n.id, n.label, round(x, 1), round(y, 1), list(n.outputs))
        for n, (x, y) in zip(graph.nodes, placed.places, strict=True)
    ]
    edges = [
        EdgeShown(e.source, e.target, e.variable, path(route))
        for e, route in zip(graph.edges, placed.routes, strict=True)
    ]
    size = (round(placed.width, 1), round(placed.height, 1))
    return Picture(graph.session, graph.name, _shape(graph), *size, nodes, edges, graph.left_out)
