from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.engine import growing
from myna.engine.growing import DEALT_EVERY, GrowingWork
from myna.engine.plan import Span, StepPlan
from myna.engine.work import Tiling
from tests.engine.test_work import seen_by_units, tilings, trees, visible
from tests.kernels.paged_trees import Node, Request, fan_out, make_plan


def next_plan(plan: StepPlan, page_size: int, pages: int) -> StepPlan:
    """The plan of the step that follows; new pages have numbers from `pages` on."""
    spans = []
    for span in plan.spans:
        if not span.own:
            spans.append(span)
            continue
        own = (*span.pages, pages + len(spans)) if span.length == len(span.pages) * page_size else span.pages
        spans.append(Span(own, span.start, span.length + 1, span.queries, own=True))
    positions = [position + 1 for position in plan.positions]
    return replace(plan, positions=positions, spans=spans, number=plan.number + 1, continues=plan.number)


@settings(max_examples=60, deadline=None)
@given(tree=trees(), tiling=tilings(), steps=st.integers(1, 20))
def test_work_that_grows_shows_each_row_all_of_its_keys(
    tree: tuple[list[Node], list[Request]], tiling: Tiling, steps: int
) -> None:
    nodes, requests = tree
    plan, pages = make_plan(
        nodes, [replace(one, new=1) for one in requests], tiling.page_size, np.random.default_rng(0)
    )
    works = GrowingWork(tiling)
    for step in range(steps):
        work = works.of(plan)
        assert seen_by_units(work, tiling.page_size, None) == visible(plan, tiling.kv_heads, tiling.page_size, None)
        assert (work.units[:, 8] == work.pages[work.units[:, 0]]).all()
        plan = next_plan(plan, tiling.page_size, pages + 100 * step)


def count_dealt(plans: list[StepPlan], window: int | None = None) -> int:
    works = GrowingWork(Tiling(4, 2, 64, 20), window)
    with patch.object(growing, "make_work", wraps=growing.make_work) as dealt:
        for plan in plans:
            works.of(plan)
    return dealt.call_count


def series(steps: int) -> list[StepPlan]:
    plan, pages = make_plan(*fan_out("1,9_300,130"), 64, np.random.default_rng(0))
    plans = [plan]
    while len(plans) < steps:
        plans.append(next_plan(plans[-1], 64, pages))
    return plans


def test_work_is_dealt_now_and_then_and_whenever_a_plan_continues_no_other() -> None:
    assert count_dealt(series(2 * DEALT_EVERY)) == 2
    assert count_dealt(series(5)[::2]) == 3, "a plan was left out"
    assert count_dealt(series(5), window=100) == 5, "what a window hides moves on"


def test_a_page_that_was_replaced_by_a_copy_is_noticed() -> None:
    first, second, *_ = series(3)
    own = second.spans[-1]
    copied = replace(own, pages=(*own.pages[:-1], own.pages[-1] + 500))
    assert count_dealt([first, replace(second, spans=[*second.spans[:-1], copied])]) == 2
