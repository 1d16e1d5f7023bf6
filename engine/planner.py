"""Turns a schedule into a step plan: every shared run of KV is one span, read once for all who share it. No torch here.

The layout of the shared part depends only on who runs and which nodes they hold. While that stays the same, which is so
for most decode steps, it is kept, and a step costs one span for each sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from myna.engine.batch import Chunk
from myna.engine.context import Context, ContextId
from myna.engine.plan import Span, StepPlan
from myna.engine.tree import Node, PrefixTree

# A shared run pays when reading it once saves more than the extra work item and the merge of its partial results cost:
# from about 128 tokens on, for any number of sharers. A shorter run is read by each of its users with what follows it.
SMALL_RUN = 128


@dataclass(frozen=True, slots=True)
class _Tail:
    """Where a sequence's own span begins, and the pages of it that lie in tree nodes that nobody else reads."""

    start: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    shared: list[Span]
    tails: list[_Tail]


class Planner:
    """Makes plans over one tree. Keeps the last layout and, for each context, its tail's pages as last seen."""

    def __init__(self, tree: PrefixTree, small_run: int = SMALL_RUN) -> None:
        self._tree = tree
        self._small_run = small_run
        self._key: tuple[int, list[tuple[ContextId, int, int]]] = (-1, [])
        self._layout = _Layout([], [])
        self._own_pages: list[tuple[int, ...]] = []
        self._number = 0
        self._expected: list[int] = []
        """The positions of a plan that would continue the last one."""

    def plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        """The plan of a step that computes `chunks`, in this order. Their contexts' pages are already reserved."""
        contexts = [chunk.program.context for chunk in chunks]
        parts = [(context.id, context.node.id, chunk.tokens) for context, chunk in zip(contexts, chunks, strict=True)]
        key = (self._tree.version, parts)
        same = key == self._key
        if not same:
            self._layout = _lay_out(chunks, self._small_run)
            self._own_pages = [tail.pages for tail in self._layout.tails]
            self._key = key
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans = list(self._layout.shared)
        logit_rows: list[int] = []
        fed: dict[int, int] = {}
        for index, chunk in enumerate(chunks):
            context = contexts[index]
            first, row = context.computed, len(tokens)
            if first < len(context.tokens):
                tokens += context.tokens[first : first + chunk.tokens]
            else:
                assert chunk.tokens == context.unread == 1, "only the token drawn last can be computed unread"
                fed[row] = chunk.program.place
                tokens.append(0)
            positions += range(first, first + chunk.tokens)
            slots += context.slots(chunk.tokens)
            tail = self._layout.tails[index]
            length = first + chunk.tokens - tail.start
            rows = range(row, row + chunk.tokens)
            spans.append(Span(self._pages(index, tail, context), tail.start, length, rows, own=True))
            if chunk.draws:
                logit_rows.append(row + chunk.tokens - 1)
        # Whoever's tokens all came one by one and from where the last step left off: a decode step like the one before.
        continues = self._number if same and len(tokens) == len(chunks) and positions == self._expected else None
        self._expected = [position + 1 for position in positions] if len(tokens) == len(chunks) else []
        self._number += 1
        return StepPlan(tokens, positions, slots, spans, logit_rows, fed, self._number, continues)

    def _pages(self, index: int, tail: _Tail, context: Context) -> tuple[int, ...]:
        """The own span's pages; the tuple is kept while the tail doesn't change."""
        pages = self._own_pages[index]
        held = len(tail.pages)
        if len(pages) != held + len(context.tail) or pages[-1] != context.tail[-1]:
            pages = self._own_pages[index] = (*tail.pages, *context.tail)
        return pages


def _lay_out(chunks: Sequence[Chunk], small_run: int) -> _Layout:
    """Walk down the tree with all sequences at once: a span ends where their ways part."""
    rows = _rows(chunks)
    paths = [chunk.program.context.node.path() for chunk in chunks]
    shared: list[Span] = []
    tails: list[_Tail] = [_Tail(0, ())] * len(chunks)
    groups = [_Group(list(range(len(chunks))), 0, 0, 0, ())]
    while groups:
        group = _follow(groups.pop(), paths)
        if group.end - group.start >= small_run and group.pages and len(group.members) > 1:
            queries = tuple(row for member in group.members for row in rows[member])
            shared.append(Span(group.pages, group.start, group.end - group.start, queries, own=False))
            group = _Group(group.members, group.depth, group.end, group.end, ())
        for node, members in _part(group, paths):
            if node is None or len(members) == 1:
                for member in members:
                    rest = tuple(page for below in paths[member][group.depth :] for page in below.pages)
                    tails[member] = _Tail(group.start, group.pages + rest)
            else:
                groups.append(_Group(members, group.depth + 1, group.start, node.end, group.pages + node.pages))
    return _Layout(shared, tails)


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences that share the first `depth` nodes of their paths. `pages` hold the positions from `start` to `end`,
    which no span covers yet."""

    members: list[int]
    depth: int
    start: int
    end: int
    pages: tuple[int, ...]


def _follow(group: _Group, paths: Sequence[Sequence[Node]]) -> _Group:
    """The group at the node after which its members no longer go the same way."""
    depth, end = group.depth, group.end
    pages: list[int] = list(group.pages)
    while len(parts := _part(_Group(group.members, depth, group.start, end, ()), paths)) == 1:
        node = parts[0][0]
        if node is None:
            break
        pages += node.pages
        depth, end = depth + 1, node.end
    return _Group(group.members, depth, group.start, end, tuple(pages))


def _part(group: _Group, paths: Sequence[Sequence[Node]]) -> list[tuple[Node | None, list[int]]]:
    """The members by the node that comes next on their path, or None for those whose path ends."""
    parts: dict[int | None, tuple[Node | None, list[int]]] = {}
    for member in group.members:
        path = paths[member]
        node = path[group.depth] if group.depth < len(path) else None
        parts.setdefault(node.id if node else None, (node, []))[1].append(member)
    return list(parts.values())


def _rows(chunks: Sequence[Chunk]) -> list[range]:
    rows: list[range] = []
    row = 0
    for chunk in chunks:
        rows.append(range(row, row + chunk.tokens))
        row += chunk.tokens
    return rows
