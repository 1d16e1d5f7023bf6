from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.engine.batch import Chunk
from myna.engine.context import Context, ContextStore
from myna.engine.pages import PagePool
from myna.engine.plan import StepPlan
from myna.engine.planner import Planner
from myna.engine.program import Program
from myna.engine.request import Request, RequestId
from myna.engine.tree import PrefixTree

PAGE = 4


class World:
    """A pool in which each slot remembers which prefix it holds."""

    def __init__(self, pages: int = 400) -> None:
        self.pool = PagePool(pages, PAGE)
        self.tree = PrefixTree(self.pool)
        self.slots: dict[int, tuple[int, ...]] = {}
        self.store = ContextStore(self.pool, self.tree, self._copy)

    def _copy(self, source: int, target: int) -> None:
        for offset in range(PAGE):
            if source * PAGE + offset in self.slots:
                self.slots[target * PAGE + offset] = self.slots[source * PAGE + offset]

    def context(self, tokens: Sequence[int], namespace: str = "") -> Context:
        context = self.store.open(namespace)
        context.fill(tokens)
        context.match()
        return context

    def publish(self, tokens: Sequence[int]) -> None:
        context = self.context(tokens)
        self.run([context], [context.pending], Planner(self.tree))
        context.free()

    def run(self, contexts: Sequence[Context], counts: Sequence[int], planner: Planner) -> StepPlan:
        for context, count in zip(contexts, counts, strict=True):
            context.reserve(count)
        chunks = [Chunk(_program(context), count, True) for context, count in zip(contexts, counts, strict=True)]
        plan = planner.plan(chunks)
        row = 0
        for context, count in zip(contexts, counts, strict=True):
            for position in range(context.computed, context.computed + count):
                self.slots[plan.write_slots[row]] = tuple(context.tokens[: position + 1])
                row += 1
        self._verify(contexts, counts, plan)
        for context, count in zip(contexts, counts, strict=True):
            context.advance(count)
        return plan

    def _verify(self, contexts: Sequence[Context], counts: Sequence[int], plan: StepPlan) -> None:
        """Each row's spans must give it exactly its own sequence, once, with one own span, the last."""
        row = 0
        for context, count in zip(contexts, counts, strict=True):
            assert list(plan.token_ids[row : row + count]) == context.tokens[context.computed :][:count]
            assert list(plan.positions[row : row + count]) == list(range(context.computed, context.computed + count))
            for query in range(row, row + count):
                spans = sorted((span for span in plan.spans if query in span.queries), key=lambda span: span.start)
                assert [span.own for span in spans] == [False] * (len(spans) - 1) + [True]
                end = 0
                for span in spans:
                    assert span.start == end
                    assert len(span.pages) * PAGE >= span.length
                    end += span.length
                    for offset in range(span.length):
                        held = self.slots[span.pages[offset // PAGE] * PAGE + offset % PAGE]
                        assert held == tuple(context.tokens[: span.start + offset + 1])
                assert end == context.computed + count
            row += count
        assert all(list(span.queries) == sorted(span.queries) for span in plan.spans)
        assert all(len(span.queries) > count for span in plan.spans if not span.own for count in [1])


def _program(context: Context) -> Program:
    return Program(Request(RequestId("r"), ()), context, (0, 0), 10**6, lambda ids: "", frozenset())


def test_a_large_shared_prefix_is_one_span_for_all_who_use_it() -> None:
    world = World()
    prefix = list(range(1000, 1160))
    world.publish(prefix)
    contexts = [world.context([*prefix, number, 7]) for number in range(3)]
    plan = world.run(contexts, [2, 2, 2], Planner(world.tree))
    shared, *own = plan.spans
    assert (shared.start, shared.length, list(shared.queries), shared.own) == (0, 160, [0, 1, 2, 3, 4, 5], False)
    assert [(span.start, span.length) for span in own] == [(160, 2)] * 3
    assert list(plan.logit_rows) == [1, 3, 5]


def test_a_small_shared_prefix_is_read_by_each_with_its_tail() -> None:
    world = World()
    prefix = list(range(1000, 1040))
    world.publish(prefix)
    contexts = [world.context([*prefix, number]) for number in range(3)]
    plan = world.run(contexts, [1, 1, 1], Planner(world.tree))
    assert [(span.start, span.length, span.own) for span in plan.spans] == [(0, 41, True)] * 3


def test_two_levels_of_sharing_make_two_levels_of_spans() -> None:
    world = World()
    planner = Planner(world.tree, small_run=8)
    top, left, right = list(range(100, 116)), list(range(200, 212)), list(range(300, 304))
    for tokens in ([*top, *left], [*top, *right]):
        world.publish(tokens)
    prompts = [[*top, *left, 1], [*top, *left, 2], [*top, *right, 3], [*top, *right, 4], [9, 9]]
    contexts = [world.context(prompt) for prompt in prompts]
    plan = world.run(contexts, [1, 1, 1, 1, 2], planner)
    shared = [(span.start, span.length, list(span.queries)) for span in plan.spans if not span.own]
    assert sorted(shared) == [(0, 16, [0, 1, 2, 3]), (16, 12, [0, 1])]
    own = [(span.start, span.length) for span in plan.spans if span.own]
    assert own == [(28, 1), (28, 1), (16, 5), (16, 5), (0, 2)]


def test_a_node_that_one_sequence_alone_uses_belongs_to_its_own_span() -> None:
    world = World()
    prompt = list(range(100, 260))
    world.publish(prompt)
    plan = world.run([world.context([*prompt, 1])], [1], Planner(world.tree))
    assert [(span.start, span.length, span.own) for span in plan.spans] == [(0, 161, True)]


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    known=st.lists(TOKENS, max_size=4),
    prompts=st.lists(TOKENS, min_size=1, max_size=6),
    small=st.sampled_from([1, 6, 100]),
    data=st.data(),
)
def test_every_row_sees_exactly_its_own_sequence(
    known: list[list[int]], prompts: list[list[int]], small: int, data: st.DataObject
) -> None:
    """Over chunked prefill, decode, publishing and forks, with one planner that keeps its layout between steps."""
    world = World()
    planner = Planner(world.tree, small_run=small)
    for tokens in known:
        world.publish(tokens)
    contexts = [world.context(prompt) for prompt in prompts]
    for _ in range(6):
        live = [context for context in contexts if context.pending]
        counts = [data.draw(st.integers(1, min(context.pending, 9))) for context in live]
        world.run(live, counts, planner)
        for context in contexts:
            if not context.pending:
                context.fill([data.draw(st.integers(0, 1))])
        if data.draw(st.booleans()):
            chosen = data.draw(st.sampled_from(contexts))
            chosen.publish()
            contexts.append(chosen.fork())
    world.store.check()


@pytest.mark.parametrize("shared", [0, 1500])
def test_planning_a_decode_step_of_64_sequences_is_cheap(shared: int) -> None:
    world = World(pages=8000)
    prefix = list(range(shared))
    first = world.context(prefix)
    first.reserve(shared)
    first.advance(shared)
    first.free()
    contexts = [world.context([*prefix, *range(5000 + 100 * number, 5064 + 100 * number)]) for number in range(64)]
    planner = Planner(world.tree)
    for context in contexts:
        context.reserve(context.pending)
        context.advance(context.pending)
        context.fill([1])
    chunks = [Chunk(_program(context), 1, True) for context in contexts]
    best = float("inf")
    for _ in range(30):
        for context in contexts:
            context.reserve(1)
        began = time.perf_counter()
        planner.plan(chunks)
        best = min(best, time.perf_counter() - began)
        for context in contexts:
            context.advance(1)
            context.fill([1])
    print(f"planning 64 decodes over {shared} shared tokens: {best * 1e6:.0f} us")
    assert best < 1e-3


def test_a_page_copied_on_write_takes_the_old_ones_place_in_a_layout_that_is_kept() -> None:
    world = World()
    planner = Planner(world.tree)
    context = world.context([1, 2, 3])
    world.run([context], [1], planner)
    context.fork()
    before = list(context.tail)
    world.run([context], [1], planner)
    assert context.tail != before


def test_a_plan_continues_the_one_before_only_where_each_sequence_takes_its_next_token_alone() -> None:
    world = World()
    contexts = [world.context(range(10)), world.context(range(20, 33))]
    planner = Planner(world.tree)
    world.run(contexts, [10, 13], planner)

    def decode(some: Sequence[Context]) -> StepPlan:
        for context in some:
            context.fill([1])
        return world.run(some, [1] * len(some), planner)

    first, second, third = (decode(contexts) for _ in range(3))
    assert first.continues is None, "prompts came before"
    assert (second.continues, third.continues) == (first.number, second.number)
    assert decode(contexts[:1]).continues is None, "somebody left"
    assert decode(contexts[:1]).continues is not None
    contexts[0].truncate(len(contexts[0].tokens) - 1)
    assert decode(contexts[:1]).continues is None, "a token was taken back"
