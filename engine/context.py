"""A context is a sequence of tokens with their KV: filled, generated into, forked, freed. It owns nothing twice.

Its KV lies in two parts: a path of prefix-tree nodes, held by a lock on the deepest one, and a tail of pages of its own
behind it. `publish` moves the tail's whole pages into the tree, after which others share them. A fork shares the path,
and also the last, partly filled page, which whoever writes first copies. Dropping the KV never loses a context: its
tokens stay and are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NewType

from myna.engine.errors import ContextFreed, OutOfPages
from myna.engine.pages import PageId, PagePool
from myna.engine.stubs import Stubs
from myna.engine.tree import Node, PrefixTree

ContextId = NewType("ContextId", int)


class Context:
    """`tokens`: the token ids known; KV exists for the first `computed` of them. Positions count from 0.

    `unread`: tokens behind those that steps under way draw. Their KV may be computed before anybody knows them.
    """

    __slots__ = ("_private", "_store", "computed", "freed", "id", "namespace", "node", "tail", "tokens", "unread")

    def __init__(self, context_id: ContextId, store: ContextStore, namespace: str, private: bool, node: Node) -> None:
        self.id = context_id
        self.namespace = namespace
        self.tokens: list[int] = []
        self.unread = 0
        self.computed = 0
        self.node = node
        self.tail: list[PageId] = []
        self.freed = False
        self._private = private
        self._store = store

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed."""
        return len(self.tokens) + self.unread - self.computed

    @property
    def caches(self) -> bool:
        """Whether the context matches and feeds the prefix cache that others of its namespace use."""
        return not self._private

    def slots(self, count: int) -> list[int]:
        """The KV slots, `page * page_size + offset`, of the next `count` positions, which are reserved."""
        size = self._store.pool.page_size
        page, offset = divmod(self.computed - self.node.end, size)
        slots: list[int] = []
        while len(slots) < count:
            first = self.tail[page] * size
            slots += range(first + offset, first + min(size, offset + count - len(slots)))
            page, offset = page + 1, 0
        return slots

    def fill(self, tokens: Iterable[int]) -> None:
        """Append tokens; their KV is computed by the steps to come."""
        self._require_alive()
        self.tokens.extend(tokens)

    def matchable(self) -> int:
        """How long a prefix of this context is already in the tree, in tokens. The last token never counts: its logits
        are wanted."""
        return self._store.tree.match(self.namespace, self.tokens[: len(self.tokens) - 1])

    def match(self) -> int:
        """Take over what the tree holds of this context beyond its own KV, and a stub behind that; returns the tokens gained.

        Does nothing while the context has pages of its own.
        """
        self._require_alive()
        if self.tail or not self.pending:
            return 0
        tree, stubs = self._store.tree, self._store.stubs
        known = self.tokens[: len(self.tokens) - 1]
        node = tree.acquire(self.namespace, known)
        left = known[node.end :]
        stub = stubs.find(node, left)
        end = node.end if stub is None else node.end + stub.common(left)
        if end <= self.computed:
            tree.unlock(node)
            return 0
        gained = end - self.computed
        tree.unlock(self.node)
        self.node = node
        self.computed = end
        if stub is not None:
            self.tail = [stubs.take(stub)]
        return gained

    def missing_pages(self, tokens: int) -> int:
        """Pages to allocate before the next `tokens` tokens can be written, the copy of a shared page included."""
        pool = self._store.pool
        missing = pool.pages_for(self.computed + tokens - self.node.end) - len(self.tail)
        return max(missing, 0) + (1 if tokens and self._writes_shared_page() else 0)

    def reserve(self, tokens: int, room: int = 0) -> None:
        """Make the next `tokens` positions writable. `room`: tokens that the context may have in the end.

        Evicts from the tree what is needed. Raises OutOfPages, with nothing changed, if that isn't enough.
        """
        self._require_alive()
        missing = self.missing_pages(tokens)
        if not missing:
            return
        store = self._store
        store.make_free(missing)
        if tokens and self._writes_shared_page():
            missing -= 1
            self._copy_shared_page()
        last = self.tail[-1] if self.tail else (self.node.pages[-1] if self.node.pages else None)
        wanted = store.pool.pages_for(max(room - self.node.end, 0)) - len(self.tail)
        self.tail.extend(store.pool.allocate(missing, after=last, room=wanted))

    def advance(self, tokens: int) -> None:
        """The next `tokens` tokens have been computed."""
        self.computed += tokens
        assert self.computed <= len(self.tokens) + self.unread

    def publish(self) -> None:
        """Give the tail's whole computed pages to the tree."""
        self._require_alive()
        store = self._store
        size = store.pool.page_size
        pages = (min(self.computed, len(self.tokens)) - self.node.end) // size
        if pages <= 0:
            return
        start = self.node.end
        node = store.tree.insert(self.node, self.tokens[start : start + pages * size], self.tail[:pages])
        store.tree.unlock(self.node)
        self.node = node
        del self.tail[:pages]

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on, also those that nobody has read yet."""
        self.rewind(length)
        self.unread = 0
        del self.tokens[length:]

    def rewind(self, length: int) -> None:
        """Forget the KV from position `length` on, or from the beginning of the tree node that holds it."""
        self._require_alive()
        if self.computed <= length:
            return
        store = self._store
        node = self.node
        while node.end > length:
            assert node.parent is not None
            node = node.parent
        if node is not self.node:
            self._release_tail(0)
            store.tree.lock(node)
            store.tree.unlock(self.node)
            self.node = node
            self.computed = node.end
            return
        self.computed = length
        self._release_tail(store.pool.pages_for(length - node.end))

    def fork(self) -> Context:
        """A new context with the same tokens that shares this one's KV."""
        self._require_alive()
        self.publish()
        return self._store.adopt(self)

    def drop(self) -> None:
        """Give up the KV but keep the tokens. Whole pages stay in the tree for as long as nobody needs their room."""
        self._require_alive()
        self.publish()
        self._let_go()

    def free(self) -> None:
        """Give up tokens and KV. Any further use raises ContextFreed; freeing twice does nothing."""
        if self.freed:
            return
        if self.caches:
            self.publish()
        self._let_go()
        self.freed = True
        self.tokens = []
        self._store.forget(self)

    def _let_go(self) -> None:
        self._release_tail(0)
        tree = self._store.tree
        tree.unlock(self.node)
        self.node = tree.root(self.namespace)
        self.computed = 0

    def _release_tail(self, keep: int) -> None:
        self._store.pool.release(self.tail[keep:])
        del self.tail[keep:]

    def _writes_shared_page(self) -> bool:
        page = (self.computed - self.node.end) // self._store.pool.page_size
        return page < len(self.tail) and self._store.pool.shared(self.tail[page])

    def _copy_shared_page(self) -> None:
        store = self._store
        page = (self.computed - self.node.end) // store.pool.page_size
        source = self.tail[page]
        (target,) = store.pool.allocate(1)
        store.copy_page(source, target)
        self.tail[page] = target
        store.pool.release([source])

    def _require_alive(self) -> None:
        if self.freed:
            raise ContextFreed(f"context {self.id} has been freed")


class ContextStore:
    """All living contexts over one pool and one tree. `copy_page(source, target)` copies a KV page in the model."""

    def __init__(self, pool: PagePool, tree: PrefixTree, copy_page: Callable[[int, int], None]) -> None:
        self.pool = pool
        self.tree = tree
        self.stubs = Stubs(pool)
        self.copy_page = copy_page
        self._contexts: dict[ContextId, Context] = {}
        self._private_users: dict[str, int] = {}
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[Context]:
        return iter(list(self._contexts.values()))

    def open(self, namespace: str, *, cache_prefix: bool = True) -> Context:
        """A new empty context. Without `cache_prefix` it and its forks have a tree of their own, forgotten with them."""
        private = not cache_prefix
        if private:
            # NUL can't begin a tenant's name, so no private namespace is ever asked for from outside.
            namespace = f"\0{self._next_id}"
        return self._register(namespace, private, self.tree.root(namespace))

    def adopt(self, parent: Context) -> Context:
        """A new context with the parent's tokens and KV. Called by `Context.fork` alone."""
        child = self._register(parent.namespace, not parent.caches, parent.node)
        self.tree.lock(parent.node)
        self.pool.retain(parent.tail)
        child.tokens = list(parent.tokens)
        child.tail = list(parent.tail)
        child.computed = parent.computed
        return child

    def get(self, context_id: ContextId) -> Context:
        """The living context of that id. Raises ContextFreed."""
        context = self._contexts.get(context_id)
        if context is None:
            raise ContextFreed(f"context {context_id} has been freed")
        return context

    def make_free(self, pages: int) -> None:
        """Evict until `pages` pages are free. Raises OutOfPages, with the tree as it was, if that can't be had."""
        lacking = pages - self.pool.free
        if lacking <= 0:
            return
        if lacking > self.tree.evictable_pages:
            raise OutOfPages(f"{pages} KV pages are wanted, {self.pool.free} are free and the rest is in use")
        self.tree.evict(lacking)

    def forget(self, context: Context) -> None:
        """Strike a freed context off. Called by `Context.free` alone."""
        del self._contexts[context.id]
        if context.namespace in self._private_users:
            self._private_users[context.namespace] -= 1
            if not self._private_users[context.namespace]:
                del self._private_users[context.namespace]
                self.tree.drop(context.namespace)

    def check(self, pins: Sequence[Node] = ()) -> None:
        """Verify that every page and every lock is accounted for by contexts, tree and pins. Raises AssertionError."""
        size = self.pool.page_size
        for context in self._contexts.values():
            assert not context.freed, "a freed context is still listed"
            known = len(context.tokens) + context.unread
            assert context.node.end <= context.computed <= known, "a context's lengths disagree"
            assert context.computed <= context.node.end + len(context.tail) * size, "KV lies outside the pages"
            prefix = [token for node in context.node.path() for token in node.tokens]
            assert prefix == context.tokens[: context.node.end], "a context holds another one's prefix"
        self.tree.check([*(context.node for context in self._contexts.values()), *pins])
        tails = (context.tail for context in self._contexts.values())
        self.pool.check([*tails, *self.tree.owned_pages(), *self.stubs.pages()])

    def _register(self, namespace: str, private: bool, node: Node) -> Context:
        context = Context(ContextId(self._next_id), self, namespace, private, node)
        self._next_id += 1
        self._contexts[context.id] = context
        if private:
            self._private_users[namespace] = self._private_users.get(namespace, 0) + 1
        return context
