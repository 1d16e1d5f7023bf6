from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from myna.engine.plan import Span, StepPlan
from myna.engine.split import Part, split

LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=8)


@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_two_parts_hold_every_row_and_every_logit_once(lengths: list[int], random: object) -> None:
    plan = _plan(lengths)
    random.shuffle(plan.logit_rows)  # type: ignore[attr-defined]
    parts = split(plan)
    assert sorted(token for part in parts for token in part.plan.token_ids) == list(plan.token_ids)
    assert sorted(place for part in parts for place in part.places) == list(range(len(plan.logit_rows)))
    for part in parts:
        for row, place in zip(part.plan.logit_rows, part.places, strict=True):
            assert part.plan.token_ids[row] == plan.token_ids[plan.logit_rows[place]]


@given(LENGTHS)
def test_a_row_keeps_its_position_its_slot_and_its_spans(lengths: list[int]) -> None:
    plan = _plan(lengths)
    whole = _rows(plan)
    for part in split(plan):
        for token, seen in _rows(part.plan).items():
            assert seen == whole[token]


@given(LENGTHS)
def test_the_first_part_is_the_sequences_of_one_row(lengths: list[int]) -> None:
    decoding, rest = split(_plan(lengths))
    assert _own(decoding) == [1] * lengths.count(1)
    assert _own(rest) == [length for length in lengths if length > 1]


def _plan(lengths: Sequence[int]) -> StepPlan:
    """Sequences with so many new tokens each, which are numbered, and a prefix that all share."""
    total = sum(lengths)
    spans = [Span((100,), 0, 16, range(total), own=False)]
    row = 0
    for index, length in enumerate(lengths):
        spans.append(Span((index,), 16, length, range(row, row + length), own=True))
        row += length
    return StepPlan(
        list(range(total)), [16 + r for r in range(total)], [7 * r for r in range(total)], spans, list(range(total))
    )


def _rows(plan: StepPlan) -> dict[int, tuple[int, int, list[tuple[int, ...]]]]:
    """By token: position, slot, and the pages of the spans that its row attends to."""
    return {
        token: (
            plan.positions[row],
            plan.write_slots[row],
            [span.pages for span in plan.spans if row in span.queries],
        )
        for row, token in enumerate(plan.token_ids)
    }


def _own(part: Part) -> list[int]:
    return [len(span.queries) for span in part.plan.spans if span.own]
