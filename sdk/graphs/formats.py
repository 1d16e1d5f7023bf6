"""A graph for other programs: Graphviz's language, and JSON. Pictures are in `svg`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from myna.sdk.graphs.model import Graph, Kind
from myna.sdk.graphs.svg import draw


def dot(graph: Graph) -> str:
    """Graphviz's DOT: calls are boxes, variables that are set by hand ellipses."""
    lines = [f"digraph {_quoted(graph.name or graph.session)} {{", "  rankdir=LR;"]
    for n, node in enumerate(graph.nodes):
        shape = "box" if node.kind is Kind.CALL else "ellipse"
        lines.append(f"  n{n} [shape={shape}, label={_quoted(node.label, node.state.value)}];")
    lines += [f"  n{e.source} -> n{e.target} [label={_quoted(e.variable)}];" for e in graph.edges]
    return "\n".join([*lines, "}", ""])


def as_json(graph: Graph) -> str:
    """Nodes and edges; an edge names its nodes by their place in the list."""
    nodes = [
        {
            "kind": node.kind.value,
            "id": node.id,
            "label": node.label,
            "state": node.state.value,
            "outputs": list(node.outputs),
            "worker": node.worker,
            "seconds": node.seconds,
        }
        for node in graph.nodes
    ]
    edges = [{"source": e.source, "target": e.target, "variable": e.variable} for e in graph.edges]
    told = {"session": graph.session, "name": graph.name, "nodes": nodes, "edges": edges, "left_out": graph.left_out}
    return json.dumps(told, indent=1)


FORMATS: Mapping[str, Callable[[Graph], str]] = {"svg": draw, "dot": dot, "json": as_json}
"""By the ending of a file's name."""


def _quoted(*lines: str) -> str:
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines]
    return '"' + "\\n".join(escaped) + '"'
