from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myna.engine.context import ContextStore
from myna.engine.pages import PagePool
from myna.engine.program import Program
from myna.engine.request import Fill, Generate, Request, RequestId, Step
from myna.engine.tree import PrefixTree
from myna.engine.turns import Turns
from tests.engine.driving import greedy


def programs(*steps: Step) -> list[Program]:
    """One for each step, all in one context."""
    pool = PagePool(4, 4)
    context = ContextStore(pool, PrefixTree(pool), lambda source, target: None).open("")
    requests = [Request(RequestId(f"r{number}"), (step,), context=context.id) for number, step in enumerate(steps)]
    return [Program(request, context, (0, 0), 16, lambda ids: "", frozenset()) for request in requests]


@given(st.permutations(range(5)))
def test_in_a_context_programs_go_on_in_the_order_in_which_they_came_whoever_leaves(leaving: list[int]) -> None:
    there = programs(*[Fill((1,))] * 5)
    turns = Turns()
    assert [turns.join(program) for program in there] == [True, False, False, False, False]
    left = list(there)
    for number in leaving:
        program = there[number]
        first = left[0] is program
        left.remove(program)
        assert turns.leave(program) is (left[0] if first and left else None)
        assert turns.leave(program) is None
        assert turns.of(program.context.id) == left
        assert [each for each in there if turns.has(each)] == left[:1]
    assert turns.join(there[0])


def test_a_context_is_generated_into_until_the_last_program_with_an_output_has_left() -> None:
    fill, output = programs(Fill((1,)), Generate(0, greedy(1)))
    turns = Turns()
    turns.join(fill)
    assert not turns.generates(fill.context.id)
    turns.join(output)
    assert turns.generates(fill.context.id)
    turns.leave(output)
    assert not turns.generates(fill.context.id)
