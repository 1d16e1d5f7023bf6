from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from myna.engine.parallel.orders import Allocate, CopyPage, Leave, Listener, Prepare, Step, Teller, decode, encode
from myna.engine.plan import Span, StepPlan

numbers = st.integers(0, 2**31 - 1)
queries = st.one_of(st.builds(range, st.integers(0, 9), st.integers(9, 20)), st.lists(st.integers(0, 20)).map(tuple))
spans = st.builds(Span, st.lists(numbers, max_size=4).map(tuple), numbers, numbers, queries, st.booleans())
plans = st.builds(
    StepPlan, st.lists(numbers), st.lists(numbers), st.lists(numbers), st.lists(spans, max_size=5), st.lists(numbers),
    st.dictionaries(numbers, numbers), numbers, st.none() | numbers,
)  # fmt: skip


def heard(listener: Listener, teller: Teller, plan: StepPlan) -> StepPlan:
    step = decode(encode(teller.step(plan)))
    assert isinstance(step, Step)
    return listener.plan(step)


def listed(plan: StepPlan) -> StepPlan:
    """With lists for all sequences, so that plans can be compared."""
    rows = [replace(span, queries=list(span.queries)) for span in plan.spans]
    return replace(
        plan, token_ids=list(plan.token_ids), positions=list(plan.positions), write_slots=list(plan.write_slots),
        logit_rows=list(plan.logit_rows), spans=rows, fed=dict(plan.fed),
    )  # fmt: skip


@given(st.lists(plans, max_size=4))
def test_what_is_heard_is_what_was_told(told: list[StepPlan]) -> None:
    teller, listener = Teller(), Listener()
    for plan in told:
        assert listed(heard(listener, teller, plan)) == listed(plan)


def test_pages_that_stay_the_same_object_do_so_at_the_listener() -> None:
    teller, listener = Teller(), Listener()
    kept, grown = Span((1, 2), 0, 8, range(1), own=False), Span((3,), 8, 4, range(1), own=True)
    first = heard(listener, teller, StepPlan([1], [0], [0], [kept, grown], [0]))
    begun = replace(grown, pages=(3, 4))
    second = heard(listener, teller, StepPlan([1], [0], [0], [replace(kept, length=9), begun], [0]))
    assert second.spans[0].pages is first.spans[0].pages
    assert second.spans[1].pages == (3, 4)
    shorter = heard(listener, teller, StepPlan([1], [0], [0], [begun], [0]))
    assert shorter.spans[0].pages == (3, 4)


def test_all_orders_survive_the_way() -> None:
    for order in (Prepare(4, 64, None, 8, True), Allocate(7, 16), CopyPage(1, 2), Leave()):
        assert decode(encode(order)) == order
