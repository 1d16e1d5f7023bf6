from __future__ import annotations

import time
from itertools import combinations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from myna.sdk.graphs.layout import HEIGHT, WIDTH, Layout, layout


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    nodes = draw(st.integers(0, 40))
    if nodes < 2:
        return nodes, []
    ends = st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)).filter(lambda e: e[0] < e[1])
    return nodes, draw(st.lists(ends, max_size=80))


@given(graphs())
def test_no_boxes_meet_edges_go_from_left_to_right_and_all_is_on_the_page(
    graph: tuple[int, list[tuple[int, int]]],
) -> None:
    nodes, edges = graph
    made = layout(nodes, edges)
    check(made, edges)


def check(made: Layout, edges: list[tuple[int, int]]) -> None:
    slack = 1e-6
    for (ax, ay), (bx, by) in combinations(made.places, 2):
        assert abs(ax - bx) >= WIDTH - slack or abs(ay - by) >= HEIGHT - slack
    for source, target in edges:
        assert made.places[source][0] + WIDTH <= made.places[target][0] + slack
    for (source, target), route in zip(edges, made.routes, strict=True):
        assert route[0] == (made.places[source][0] + WIDTH / 2, made.places[source][1])
        assert route[-1] == (made.places[target][0] - WIDTH / 2, made.places[target][1])
    for x, y in [*made.places, *(point for route in made.routes for point in route)]:
        assert -slack <= x <= made.width + slack
        assert -slack <= y <= made.height + slack


def test_a_chain_is_a_line() -> None:
    made = layout(5, [(n, n + 1) for n in range(4)])
    assert len({y for _, y in made.places}) == 1


def test_a_source_stands_right_before_its_first_use() -> None:
    made = layout(4, [(0, 1), (1, 2), (3, 2)])
    assert made.places[3][0] == made.places[1][0]


def test_who_is_joined_stands_near() -> None:
    made = layout(40, [(n, n + 20) for n in range(20)][::-1])
    assert all(abs(made.places[n][1] - made.places[n + 20][1]) < HEIGHT for n in range(20))


@pytest.mark.parametrize("shape", ["map-reduce", "mesh"])
def test_a_thousand_nodes_are_laid_out_at_once_and_no_column_is_endless(shape: str) -> None:
    edges = [(n, 1000) for n in range(1000)] if shape == "map-reduce" else [(n, n + 7 + n % 5) for n in range(980)]
    began = time.process_time()
    made = layout(1001, edges)
    assert time.process_time() - began < 2
    assert made.height < 60 * 80
    if shape == "map-reduce":
        check(made, edges)


def test_a_cycle_is_drawn_and_ends() -> None:
    made = layout(3, [(0, 1), (1, 2), (2, 1)])
    assert len(made.routes) == 3
