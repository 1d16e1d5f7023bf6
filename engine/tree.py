"""The prefix tree decides what is shared, by token ids alone. Nodes hold whole pages and never change their tokens.

Under each namespace hangs a radix tree whose edges are runs of whole KV pages. A node is held (`lock`) by contexts and
pins; holding a node holds its ancestors. What nobody holds stays as a cache and is evicted leaf by leaf, least recently
used first. A node may be split in two where a new sequence leaves it; holders of the node keep its lower half, whose
end is the same.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from myna.engine.pages import PageId, PagePool


class Node:
    """A run of whole pages. `end`: tokens from the root to the node's last token, the node included."""

    __slots__ = ("children", "end", "hits", "id", "last_used", "locks", "pages", "parent", "tokens")

    def __init__(self, node_id: int, parent: Node | None, tokens: tuple[int, ...], pages: tuple[PageId, ...]) -> None:
        self.id = node_id
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.end: int = (parent.end if parent else 0) + len(tokens)
        self.children: dict[tuple[int, ...], Node] = {}
        self.locks = 0
        self.hits = 0
        """How often a lookup found it."""
        self.last_used = 0

    def path(self) -> list[Node]:
        """The nodes from below the root down to this one."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


@dataclass(frozen=True, slots=True)
class TreeStatistics:
    """Counts since the start, in tokens: looked up, found, evicted."""

    lookup_tokens: int
    hit_tokens: int
    evicted_tokens: int


class PrefixTree:
    """The prefixes of all namespaces over one page pool."""

    def __init__(self, pool: PagePool) -> None:
        self.version = 0
        """Grows whenever a node that somebody may hold is split."""
        self._pool = pool
        self._roots: dict[str, Node] = {}
        self._next_id = 0
        self._clock = 0
        self._offers = 0
        self._evictable: list[tuple[int, int, Node]] = []
        self._evictable_pages = 0
        self._nodes = 0
        self._lookup_tokens = 0
        self._hit_tokens = 0
        self._evicted_tokens = 0

    @property
    def evictable_pages(self) -> int:
        """Pages of nodes that nobody holds."""
        return self._evictable_pages

    @property
    def statistics(self) -> TreeStatistics:
        """What was looked up, found and evicted so far."""
        return TreeStatistics(self._lookup_tokens, self._hit_tokens, self._evicted_tokens)

    @property
    def roots(self) -> Iterator[tuple[str, Node]]:
        """Each namespace with its root."""
        return iter(self._roots.items())

    def count(self, looked_up: int, hit: int, node: Node, known: int) -> None:
        """Add a lookup to the statistics that found `hit` tokens behind `known` ones, those of `node` and before among them;
        `match` itself counts nothing, since it is also asked speculatively."""
        self._lookup_tokens += looked_up
        self._hit_tokens += hit
        while node.end > known and node.parent is not None:
            node.hits += 1
            node = node.parent

    def root(self, namespace: str) -> Node:
        """The root of a namespace, made at its first use. It has no pages and is never evicted."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = self._new_node(None, (), ())
        return root

    def match(self, namespace: str, tokens: Sequence[int]) -> int:
        """Length of the longest prefix of `tokens` that the namespace holds, in tokens of whole pages. Changes nothing."""
        root = self._roots.get(namespace)
        if root is None:
            return 0
        node, inside = self._descend(root, tokens)
        return node.end + inside

    def acquire(self, namespace: str, tokens: Sequence[int]) -> Node:
        """Lock and return the node that ends the longest held prefix of `tokens`; a node that it ends inside is split."""
        node, inside = self._descend(self.root(namespace), tokens)
        if inside:
            node = self._split(node.children[self._page_key(tokens, node.end)], inside)
        self.lock(node)
        return node

    def insert(self, start: Node, tokens: Sequence[int], pages: Sequence[PageId]) -> Node:
        """Add `tokens` (whole pages) with their `pages` below `start` and lock the node that ends them.

        The tree takes over the caller's use of the pages. Where it already holds a page of the same tokens it keeps its
        own and releases the caller's.
        """
        assert len(tokens) == len(pages) * self._pool.page_size
        node, inside = self._descend(start, tokens)
        if inside:
            node = self._split(node.children[self._page_key(tokens, node.end - start.end)], inside)
        known = node.end - start.end
        self._pool.release(pages[: known // self._pool.page_size])
        if known < len(tokens):
            node = self._append(node, tuple(tokens[known:]), tuple(pages[known // self._pool.page_size :]))
        self.lock(node)
        return node

    def lock(self, node: Node) -> None:
        """Hold `node` and its ancestors."""
        self._clock += 1
        while node.parent is not None:
            if not node.locks:
                self._evictable_pages -= len(node.pages)
            node.locks += 1
            node.last_used = self._clock
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one `lock`. What nobody holds any more may be evicted."""
        self._clock += 1
        while node.parent is not None:
            assert node.locks > 0, "a node is unlocked more often than it was locked"
            node.locks -= 1
            node.last_used = self._clock
            if not node.locks:
                self._evictable_pages += len(node.pages)
                self._offer(node)
            node = node.parent

    def evict(self, pages: int) -> int:
        """Give up at least `pages` pages of what nobody holds, or all of it; returns how many were given up."""
        given = 0
        while given < pages and self._evictable:
            last_used, _, node = heapq.heappop(self._evictable)
            if node.locks or node.children or node.last_used != last_used or not node.pages:
                continue
            given += len(node.pages)
            self._evicted_tokens += len(node.tokens)
            self._remove(node)
        return given

    def drop(self, namespace: str) -> None:
        """Forget a namespace that nobody holds any more, and release its pages at once."""
        root = self._roots.pop(namespace, None)
        if root is None:
            return
        nodes = list(self._walk(root))
        assert not any(node.locks for node in nodes), "a namespace is dropped while it is in use"
        for node in reversed(nodes[1:]):
            self._remove(node)
        self._nodes -= 1

    def owned_pages(self) -> Iterator[Sequence[PageId]]:
        """The pages of each node, for `PagePool.check`."""
        for root in self._roots.values():
            for node in self._walk(root):
                yield node.pages

    def check(self, holders: Iterable[Node]) -> None:
        """Verify structure and counts against the nodes really held, with repetition. Raises AssertionError."""
        held: Counter[int] = Counter()
        for holder in holders:
            held.update(node.id for node in holder.path())
        size = self._pool.page_size
        seen: set[PageId] = set()
        evictable = 0
        nodes = [node for root in self._roots.values() for node in self._walk(root)]
        offered = {id(node) for _, _, node in self._evictable}
        for node in nodes:
            assert len(node.tokens) == len(node.pages) * size, "a node holds a part of a page"
            assert not seen.intersection(node.pages), "a page is in two nodes"
            seen.update(node.pages)
            assert node.locks == held[node.id], f"node {node.id} has {node.locks} locks and {held[node.id]} holders"
            for key, child in node.children.items():
                assert child.parent is node, "a child doesn't know its parent"
                assert child.tokens[:size] == key, "a child is filed under another page's tokens"
                assert child.end == node.end + len(child.tokens), "a node's end is wrong"
            if node.parent is not None and not node.locks:
                evictable += len(node.pages)
                assert node.children or id(node) in offered, "a free leaf can't be evicted"
        assert evictable == self._evictable_pages, "the count of evictable pages is wrong"
        assert len(nodes) == self._nodes, "the count of nodes is wrong"

    def _descend(self, start: Node, tokens: Sequence[int]) -> tuple[Node, int]:
        """The last node below `start` wholly matched, and how many tokens of its fitting child match (whole pages)."""
        size = self._pool.page_size
        node = start
        position = 0
        while True:
            child = node.children.get(tuple(tokens[position : position + size]))
            if child is None:
                return node, 0
            inside = _common_prefix(child.tokens, tokens[position : position + len(child.tokens)], size)
            if inside < len(child.tokens):
                return node, inside
            node = child
            position += inside

    def _page_key(self, tokens: Sequence[int], position: int) -> tuple[int, ...]:
        return tuple(tokens[position : position + self._pool.page_size])

    def _new_node(self, parent: Node | None, tokens: tuple[int, ...], pages: tuple[PageId, ...]) -> Node:
        self._next_id += 1
        self._nodes += 1
        return Node(self._next_id, parent, tokens, pages)

    def _append(self, parent: Node, tokens: tuple[int, ...], pages: tuple[PageId, ...]) -> Node:
        node = self._new_node(parent, tokens, pages)
        node.last_used = self._clock
        parent.children[tokens[: self._pool.page_size]] = node
        self._evictable_pages += len(pages)
        self._offer(node)
        return node

    def _split(self, node: Node, tokens: int) -> Node:
        """Cut `node` after `tokens` tokens and return the new upper half, which has the same holders."""
        assert node.parent is not None
        size = self._pool.page_size
        upper = self._new_node(node.parent, node.tokens[:tokens], node.pages[: tokens // size])
        upper.locks = node.locks
        upper.hits = node.hits
        upper.last_used = node.last_used
        node.parent.children[node.tokens[:size]] = upper
        node.tokens = node.tokens[tokens:]
        node.pages = node.pages[tokens // size :]
        node.parent = upper
        upper.children[node.tokens[:size]] = node
        self.version += 1
        return upper

    def _offer(self, node: Node) -> None:
        """Queue a node for eviction if it is a free leaf. Entries go stale and are recognised by their time."""
        if node.locks or node.children or not node.pages:
            return
        self._offers += 1
        heapq.heappush(self._evictable, (node.last_used, self._offers, node))
        if len(self._evictable) > 4 * self._nodes + 64:
            self._evictable = [
                (used, serial, item)
                for used, serial, item in self._evictable
                if item.pages and not item.locks and not item.children and item.last_used == used
            ]
            heapq.heapify(self._evictable)

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens[: self._pool.page_size]]
        self._evictable_pages -= len(node.pages)
        self._nodes -= 1
        self._pool.release(node.pages)
        node.pages = ()
        if node.parent.parent is not None:
            self._offer(node.parent)

    def _walk(self, root: Node) -> Iterator[Node]:
        stack = [root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def _common_prefix(held: tuple[int, ...], wanted: Sequence[int], size: int) -> int:
    """Tokens of whole pages of `size` at which both begin alike."""
    if tuple(wanted) == held:
        return len(held)
    common = 0
    while held[common : common + size] == tuple(wanted[common : common + size]):
        common += size
    return common
