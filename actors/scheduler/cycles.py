"""Calls that wait for their own results: found by peeling off all that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from myna.actors.scheduler.nodes import CallNode


def on_cycles(edges: dict[CallNode, list[CallNode]]) -> dict[CallNode, list[CallNode]]:
    """What is left of a graph when everything that is on no cycle, and between none, has been peeled off."""
    for _ in range(2):
        edges = _reversed(_peel(edges))
    return edges


def _peel(edges: dict[CallNode, list[CallNode]]) -> dict[CallNode, list[CallNode]]:
    """Take away, as long as there are any, the nodes without incoming edges."""
    incoming = dict.fromkeys(edges, 0)
    for targets in edges.values():
        for target in targets:
            incoming[target] += 1
    bare = [node for node, count in incoming.items() if count == 0]
    while bare:
        node = bare.pop()
        del incoming[node]
        for target in edges[node]:
            incoming[target] -= 1
            if incoming[target] == 0:
                bare.append(target)
    return {node: [t for t in edges[node] if t in incoming] for node in incoming}


def _reversed(edges: dict[CallNode, list[CallNode]]) -> dict[CallNode, list[CallNode]]:
    result: dict[CallNode, list[CallNode]] = {node: [] for node in edges}
    for node, targets in edges.items():
        for target in targets:
            result[target].append(node)
    return result


def walk_cycle(start: CallNode, edges: dict[CallNode, list[CallNode]], most: int = 12) -> list[CallNode]:
    """A way along `edges` from `start` until it meets itself."""
    path = [start]
    while len(path) < most:
        path.append(edges[path[-1]][0])
        if path[-1] in path[:-1]:
            break
    return path
