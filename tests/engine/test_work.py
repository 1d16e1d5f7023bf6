from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.engine.plan import Span, StepPlan
from myna.engine.work import DIRECT, IN_A_ROW, LARGE, Tiling, Work, make_work
from tests.kernels.paged_trees import Node, Request, fan_out, make_plan


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Node], list[Request]]:
    nodes: list[Node] = []
    for index in range(draw(st.integers(0, 5))):
        parent = draw(st.none() | st.integers(0, index - 1)) if index else None
        nodes.append(Node(parent, draw(st.integers(0, 90))))
    requests = []
    for _ in range(draw(st.integers(1, 12))):
        own = draw(st.integers(1, 50))
        node = draw(st.none() | st.integers(0, len(nodes) - 1)) if nodes else None
        requests.append(Request(node, own, draw(st.integers(1, own))))
    return nodes, requests


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    group = draw(st.sampled_from([1, 2, 3, 8]))
    page_size, keys = draw(st.sampled_from([(4, 8), (8, 8), (16, 8), (1, 8)]))
    return Tiling(group, draw(st.integers(1, 3)), page_size, draw(st.integers(1, 12)), 4, 16, keys)


def rows_of(work: Work, unit: int) -> list[int]:
    begin, tokens = work.units[unit, 3], work.units[unit, 4]
    return work.rows[begin : begin + tokens].tolist()


def seen_by_units(work: Work, page_size: int, window: int | None) -> Counter[tuple[int, int, int, int]]:
    """How often the units show each (row, head) each (page, position)."""
    seen: Counter[tuple[int, int, int, int]] = Counter()
    for unit, (first_page, keys, position, _, _, head, *_) in enumerate(work.units.tolist()):
        for row in rows_of(work, unit):
            at = int(work.positions[row])
            for key in range(keys):
                if position + key <= at and (window is None or position + key > at - window):
                    seen[row, head, int(work.pages[first_page + key // page_size]), position + key] += 1
    return seen


def visible(plan: StepPlan, heads: int, page_size: int, window: int | None) -> Counter[tuple[int, int, int, int]]:
    """What the plan says that each (row, head) sees."""
    return Counter(
        (row, head, span.pages[key // page_size], span.start + key)
        for span in plan.spans
        for row in span.queries
        for head in range(heads)
        for key in range(span.length)
        if span.start + key <= plan.positions[row]
        and (window is None or span.start + key > plan.positions[row] - window)
    )


@settings(max_examples=60, deadline=None)
@given(tree=trees(), tiling=tilings(), window=st.none() | st.integers(1, 120))
def test_every_row_sees_each_of_its_keys_in_exactly_one_unit(
    tree: tuple[list[Node], list[Request]], tiling: Tiling, window: int | None
) -> None:
    plan, _ = make_plan(*tree, tiling.page_size, np.random.default_rng(0))
    work = make_work(plan, tiling, window)
    assert seen_by_units(work, tiling.page_size, window) == visible(plan, tiling.kv_heads, tiling.page_size, window)


@settings(max_examples=60, deadline=None)
@given(tree=trees(), tiling=tilings(), window=st.none() | st.integers(1, 120))
def test_units_say_what_the_kernel_relies_on(
    tree: tuple[list[Node], list[Request]], tiling: Tiling, window: int | None
) -> None:
    plan, _ = make_plan(*tree, tiling.page_size, np.random.default_rng(0))
    work = make_work(plan, tiling, window)
    assert work.slot_begin[0] == 0
    assert work.slot_begin[-1] == len(work.units)
    assert (np.diff(work.slot_begin) >= 0).all()
    for unit, (first, keys, position, _, tokens, _, _, flags, page, row, clear) in enumerate(work.units.tolist()):
        rows = rows_of(work, unit)
        assert keys > 0
        assert tokens * tiling.group <= (tiling.large_rows if flags & LARGE else tiling.small_rows)
        assert (page, row) == (work.pages[first], rows[0])
        if flags & IN_A_ROW:
            assert rows == list(range(row, row + tokens))
        assert all(position + key <= work.positions[r] for r in rows for key in range(clear))


@settings(max_examples=60, deadline=None)
@given(tree=trees(), tiling=tilings(), window=st.none() | st.integers(1, 120))
def test_partial_results_are_merged_where_they_belong_and_direct_units_need_none(
    tree: tuple[list[Node], list[Request]], tiling: Tiling, window: int | None
) -> None:
    plan, _ = make_plan(*tree, tiling.page_size, np.random.default_rng(0))
    work = make_work(plan, tiling, window)
    written: dict[int, int] = {}
    direct: list[int] = []
    for unit, (_, _, _, _, tokens, head, parts, flags, *_) in enumerate(work.units.tolist()):
        pairs = [row * tiling.kv_heads + head for row in rows_of(work, unit)]
        if flags & DIRECT:
            direct += pairs
        else:
            slots = work.parts[parts : parts + tokens].tolist()
            assert not written.keys() & set(slots)
            written |= dict(zip(slots, pairs, strict=True))
    merged = {
        slot: pair
        for index, pair in enumerate(work.merged.tolist())
        for slot in range(work.merge_begin[index], work.merge_begin[index + 1])
    }
    assert merged == written
    assert sorted({*direct, *written.values()}) == list(range(len(plan.positions) * tiling.kv_heads))
    assert len(direct) == len(set(direct))
    assert not set(direct) & set(written.values())


def loads(work: Work, tiling: Tiling) -> np.ndarray:
    large = (work.units[:, 7] & LARGE) != 0
    tiles = -(-work.units[:, 1] // tiling.keys)
    costs = np.where(large, tiles * tiling.large_tile_cost + tiling.large_unit_cost, tiles + tiling.small_unit_cost)
    return np.bincount(np.repeat(np.arange(tiling.slots), np.diff(work.slot_begin)), costs, tiling.slots)


@pytest.mark.parametrize(
    "tree", ["1,32_6000,500", "1,64_8192,128", "1,32_32768,512", "8,16,32,256_512,512,256,32", "256_4096", "1_8192"]
)
def test_slots_are_filled_evenly(tree: str) -> None:
    tiling = Tiling(group=4, kv_heads=8, page_size=64, slots=264)
    plan, _ = make_plan(*fan_out(tree), 64, np.random.default_rng(0))
    load = loads(make_work(plan, tiling), tiling)
    assert load.max() < 1.3 * load.mean() + tiling.small_unit_cost


def test_rows_that_share_keys_run_side_by_side() -> None:
    tiling = Tiling(group=4, kv_heads=8, page_size=64, slots=264)
    plan, _ = make_plan(*fan_out("1,64_8192,1"), 64, np.random.default_rng(0))
    work = make_work(plan, tiling)
    slot = np.repeat(np.arange(tiling.slots), np.diff(work.slot_begin))
    readers: dict[tuple[int, int], list[int]] = {}
    for unit in np.flatnonzero(work.units[:, 7] & LARGE):
        readers.setdefault((int(work.units[unit, 0]), int(work.units[unit, 5])), []).append(int(slot[unit]))
    assert {len(slots) for slots in readers.values()} == {4}  # 64 requests of 4 heads, in tiles of 64 rows
    assert all(max(slots) - min(slots) == 3 for slots in readers.values())


def test_an_empty_step_has_no_units() -> None:
    work = make_work(StepPlan([], [], [], [], []), Tiling(1, 1, 16, 4))
    assert work.units.shape == (0, 11)
    assert work.slot_begin.tolist() == [0] * 5


def test_a_tile_that_does_not_fit_its_pages_or_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="don't fit"):
        Tiling(group=4, kv_heads=8, page_size=48, slots=4, keys=64)
    with pytest.raises(ValueError, match="more than a tile"):
        Tiling(group=65, kv_heads=1, page_size=64, slots=4)


def test_a_window_hides_whole_pages_from_the_work() -> None:
    span = Span(tuple(range(100)), 0, 6400, (0,), own=True)
    plan = StepPlan([0], [6399], [6399], [span], [0])
    work = make_work(plan, Tiling(4, 1, 64, 1), window=100)
    assert work.units[:, 1].sum() == 128
    assert work.units[0, 8] == 98
