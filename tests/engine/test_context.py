from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from myna.engine.context import Context, ContextStore
from myna.engine.errors import ContextFreed, OutOfPages
from myna.engine.pages import PagePool
from myna.engine.tree import Node, PrefixTree

PAGE = 4


class Memory:
    """A KV pool whose "KV" of a position is the prefix of tokens up to it: what attention would have to find there."""

    def __init__(self, pages: int) -> None:
        self.kv: dict[int, tuple[int, ...]] = {}
        self.pool = PagePool(pages, PAGE)
        self.tree = PrefixTree(self.pool)
        self.store = ContextStore(self.pool, self.tree, self.copy_page)

    def copy_page(self, source: int, target: int) -> None:
        for offset in range(PAGE):
            if source * PAGE + offset in self.kv:
                self.kv[target * PAGE + offset] = self.kv[source * PAGE + offset]

    def compute(self, context: Context, count: int) -> None:
        context.reserve(count)
        for number, slot in enumerate(context.slots(count), context.computed + 1):
            self.kv[slot] = tuple(context.tokens[:number])
        context.advance(count)

    def verify(self, context: Context) -> None:
        pages = [*(page for node in context.node.path() for page in node.pages), *context.tail]
        for position in range(context.computed):
            found = self.kv[pages[position // PAGE] * PAGE + position % PAGE]
            assert found == tuple(context.tokens[: position + 1]), f"position {position} holds another sequence's KV"


def filled(memory: Memory, tokens: range | list[int]) -> Context:
    context = memory.store.open("")
    context.fill(tokens)
    memory.compute(context, context.pending)
    return context


def test_a_fork_shares_pages_until_one_side_writes() -> None:
    memory = Memory(16)
    context = filled(memory, range(6))
    used = memory.pool.pages - memory.pool.free
    fork = context.fork()
    assert memory.pool.pages - memory.pool.free == used
    fork.fill([7])
    memory.compute(fork, 1)
    assert memory.pool.pages - memory.pool.free == used + 1
    context.fill([8])
    memory.compute(context, 1)
    memory.verify(fork)
    memory.verify(context)
    memory.store.check()


def test_what_one_context_published_another_finds_but_never_its_last_token() -> None:
    memory = Memory(16)
    filled(memory, range(8)).free()
    context = memory.store.open("")
    context.fill(range(8))
    assert context.match() == 4
    longer = memory.store.open("")
    longer.fill(range(9))
    assert longer.match() == 8
    memory.verify(longer)
    memory.store.check()


def test_a_context_outside_the_cache_neither_finds_nor_leaves_anything() -> None:
    memory = Memory(16)
    filled(memory, range(8)).free()
    context = memory.store.open("", cache_prefix=False)
    context.fill(range(9))
    assert context.match() == 0
    memory.compute(context, 9)
    fork = context.fork()
    assert fork.node is context.node
    context.free()
    fork.free()
    assert memory.pool.pages - memory.pool.free == 2
    memory.store.check()


def test_a_dropped_context_keeps_its_tokens_and_finds_its_pages_again() -> None:
    memory = Memory(16)
    context = filled(memory, range(10))
    context.drop()
    assert context.computed == 0
    assert context.match() == 8
    memory.verify(context)


def test_rewinding_into_the_tree_leaves_what_others_share() -> None:
    memory = Memory(16)
    context = filled(memory, range(12))
    fork = context.fork()
    context.truncate(9)
    assert context.computed == 0
    context.fill([99])
    assert context.match() == 8
    memory.compute(context, context.pending)
    memory.verify(context)
    memory.verify(fork)
    memory.store.check()


def test_any_use_of_a_freed_context_is_refused() -> None:
    memory = Memory(16)
    context = filled(memory, range(3))
    context.free()
    context.free()
    for use in (context.fork, context.publish, context.match, lambda: context.fill([1]), lambda: context.reserve(1)):
        with pytest.raises(ContextFreed, match="has been freed"):
            use()
    with pytest.raises(ContextFreed):
        memory.store.get(context.id)


def test_a_reservation_that_cannot_be_met_changes_nothing() -> None:
    memory = Memory(2)
    context = filled(memory, range(8))
    context.fill([1])
    with pytest.raises(OutOfPages):
        context.reserve(1)
    memory.store.check()
    assert len(context.tail) == 2


class ContextMachine(RuleBasedStateMachine):
    """Contexts fill, fork, free, drop, rewind, match and pin in any order, over a pool that is too small for all."""

    contexts: Bundle[Context] = Bundle("contexts")
    pins: Bundle[Node] = Bundle("pins")

    @initialize()
    def start(self) -> None:
        self.memory = Memory(12)
        self.pinned: list[Node] = []

    @rule(target=contexts, namespace=st.sampled_from("ab"), cached=st.booleans())
    def open(self, namespace: str, cached: bool) -> Context:
        return self.memory.store.open(namespace, cache_prefix=cached)

    @rule(context=contexts, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=11))
    def fill(self, context: Context, tokens: list[int]) -> None:
        if not context.freed:
            context.fill(tokens)

    @rule(context=contexts, count=st.integers(1, 11))
    def compute(self, context: Context, count: int) -> None:
        if not context.freed and context.pending:
            try:
                self.memory.compute(context, min(count, context.pending))
            except OutOfPages:
                context.drop()

    @rule(context=contexts)
    def match(self, context: Context) -> None:
        if not context.freed:
            assert context.match() % PAGE == 0

    @rule(context=contexts)
    def publish(self, context: Context) -> None:
        if not context.freed:
            context.publish()

    @rule(target=contexts, context=contexts)
    def fork(self, context: Context) -> object:
        return multiple() if context.freed else context.fork()

    @rule(context=contexts, keep=st.floats(0, 1))
    def truncate(self, context: Context, keep: float) -> None:
        if not context.freed:
            context.truncate(int(keep * len(context.tokens)))

    @rule(context=contexts)
    def preempt(self, context: Context) -> None:
        if not context.freed:
            context.drop()

    @rule(context=consumes(contexts))
    def free(self, context: Context) -> None:
        context.free()

    @rule(target=pins, context=contexts)
    def pin(self, context: Context) -> object:
        if context.freed or not context.caches:
            return multiple()
        node = self.memory.tree.acquire(context.namespace, context.tokens)
        self.pinned.append(node)
        return node

    @rule(pin=consumes(pins))
    def unpin(self, pin: Node) -> None:
        self.pinned.remove(pin)
        self.memory.tree.unlock(pin)

    @rule(pages=st.integers(1, 6))
    def evict(self, pages: int) -> None:
        before = self.memory.tree.evictable_pages
        assert self.memory.tree.evict(pages) >= min(pages, before)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        if hasattr(self, "memory"):
            self.memory.store.check(self.pinned)
            for context in self.memory.store:
                self.memory.verify(context)

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            for context in self.memory.store:
                context.free()
            for pin in self.pinned:
                self.memory.tree.unlock(pin)
            self.memory.tree.evict(self.memory.pool.pages)
            assert self.memory.pool.free == self.memory.pool.pages, "pages are lost"


ContextMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestContextMachine = ContextMachine.TestCase
