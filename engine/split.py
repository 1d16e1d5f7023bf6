"""A step of many kinds of rows, cut into the decoding ones and the rest, so that each goes the way that is quickest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from myna.engine.plan import StepPlan


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a step as a step of their own. `places`: of its logits among those of the whole step."""

    plan: StepPlan
    places: list[int]


def split(plan: StepPlan) -> tuple[Part, Part]:
    """A step's decoding rows, each the only new token of its sequence, and the rest. Rows don't depend on one another
    but within a sequence, so that the order of the two is free."""
    decoding = {span.queries[0] for span in plan.spans if span.own and len(span.queries) == 1}
    rest = [row for row in range(len(plan.positions)) if row not in decoding]
    return _part(plan, sorted(decoding)), _part(plan, rest)


def _part(plan: StepPlan, rows: Sequence[int]) -> Part:
    number = {row: i for i, row in enumerate(rows)}
    kept = [(span, [number[row] for row in span.queries if row in number]) for span in plan.spans]
    places = [i for i, row in enumerate(plan.logit_rows) if row in number]
    part = StepPlan(
        token_ids=[plan.token_ids[row] for row in rows],
        positions=[plan.positions[row] for row in rows],
        write_slots=[plan.write_slots[row] for row in rows],
        spans=[replace(span, queries=queries) for span, queries in kept if queries],
        logit_rows=[number[plan.logit_rows[i]] for i in places],
    )
    return Part(part, places)
