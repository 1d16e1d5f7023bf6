"""The last page of a prefix that is kept, where it isn't full: the tree holds whole pages alone.

Law: a stub belongs to its pin until the first context that goes on there takes it, and writes behind it. It is never copied: who
comes second computes less than a page again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from myna.engine.pages import PageId, PagePool
from myna.engine.tree import Node


@dataclass(frozen=True, slots=True, eq=False)
class Stub:
    """`tokens`, less than a page, that follow `node`; their KV lies in `page`."""

    node: Node
    tokens: tuple[int, ...]
    page: PageId

    def common(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` it has; none where they leave it."""
        length = min(len(self.tokens), len(tokens))
        return length if self.tokens[:length] == tuple(tokens[:length]) else 0


class Stubs:
    """All stubs over one pool. Whoever keeps one holds its node."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._stubs: dict[int, list[Stub]] = {}

    def keep(self, stub: Stub) -> None:
        """Use a stub's page from now on."""
        self._pool.retain([stub.page])
        self._stubs.setdefault(stub.node.id, []).append(stub)

    def let_go(self, stub: Stub) -> None:
        """Use it no longer, unless somebody has taken it."""
        if stub in self._stubs.get(stub.node.id, ()):
            self._strike(stub)
            self._pool.release([stub.page])

    def find(self, node: Node, tokens: Sequence[int]) -> Stub | None:
        """The stub behind a node that has most of `tokens`, which go on as far as it does or end in it."""
        fitting = (s for s in self._stubs.get(node.id, ()) if s.common(tokens))
        return max(fitting, key=lambda stub: stub.common(tokens), default=None)

    def take(self, stub: Stub) -> PageId:
        """Its page, of which the caller is the user from now on."""
        self._strike(stub)
        return stub.page

    def pages(self) -> Iterator[Sequence[PageId]]:
        """Those of each stub, for `PagePool.check`."""
        return ((stub.page,) for stubs in self._stubs.values() for stub in stubs)

    def _strike(self, stub: Stub) -> None:
        stubs = self._stubs[stub.node.id]
        stubs.remove(stub)
        if not stubs:
            del self._stubs[stub.node.id]
