from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from myna.engine.budget import pays
from myna.engine.engine import Engine
from myna.engine.interface import BatchLimits
from myna.engine.request import RequestId
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.hash_model import HashModel, serve

torch.set_num_threads(1)


def test_what_is_computed_ahead_takes_little_of_a_step_until_somebody_waits_for_it() -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(4, 32, ahead_tokens=4))
    machine.submit(ask("running", [1, 2], greedy(20, ignore_eos=True)))
    machine.step()
    machine.retain(RequestId("ahead"), [3] * 24)
    computed = machine.stats().computed_tokens
    for _ in range(3):
        machine.step()
    assert machine.stats().computed_tokens == computed + 3 * (3 + 1)
    machine.submit(ask("waits", [3] * 25, greedy(1)))
    said = Said()
    for _ in range(3):
        said.hear(machine.step())
    assert "waits" in said.done


def test_what_is_computed_ahead_delays_no_first_token() -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(4, 64, ahead_tokens=4))
    machine.submit(ask("first", [1] * 20, greedy(2, ignore_eos=True)))
    machine.retain(RequestId("ahead"), [3] * 40)
    machine.step()
    assert machine.stats().computed_tokens == 20


def test_a_prompt_that_was_being_computed_ahead_waits_for_nobody_less_important() -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(4, 16, ahead_tokens=16))
    machine.submit(ask("draws", [1, 2], greedy(30, ignore_eos=True)))
    machine.step()
    machine.retain(RequestId("ahead"), [3] * 24)
    machine.step()
    machine.submit(ask("other", [5] * 48, greedy(1)))
    machine.submit(replace(ask("waits", [3] * 25, greedy(1)), order=-1.0))
    before, said = machine.stats(), Said()
    for _ in range(2):
        said.hear(machine.step())
    assert "waits" in said.done
    assert "other" not in said.done
    while "ahead" not in said.done or "other" not in said.done:
        said.hear(machine.step())
    after = machine.stats()
    drawn = after.drawn_tokens - before.drawn_tokens
    assert after.computed_tokens - before.computed_tokens <= 48 + (25 - 12) + 4 + drawn, "computed twice"


def test_an_engine_that_computes_for_nobody_is_soon_free_for_who_comes() -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(4, 64, ahead_tokens=4))
    machine.retain(RequestId("ahead"), [3] * 60)
    machine.step()
    assert machine.stats().computed_tokens == 16
    machine.submit(ask("comes", [1] * 20, greedy(1)))
    machine.step()
    assert machine.stats().computed_tokens == 16 + 20


@pytest.mark.parametrize(
    ("orders", "draws", "kept", "steps"),
    [
        ([0.0], 40, 0, 3),
        ([2.0], 40, 0, 3),
        ([3.0], 40, 0, 8),
        ([3.0], 40, 9, 8),
        ([3.0, 3.0], 40, 0, 10),
        ([3.0, 3.0], 4, 0, 8),
        ([3.0, 4.0], 40, 0, 16),
    ],
    ids=[
        "before it",
        "its equal",
        "after it",
        "after it, others for nobody",
        "two, until one is left",
        "two, it ends sooner",
        "two, one after the other",
    ],
)
def test_outputs_hold_back_prompts_that_come_after_them_where_that_pays(
    orders: list[float], draws: int, kept: int, steps: int
) -> None:
    limits = BatchLimits(4, 12, ahead_tokens=1, leading_tokens=5)
    machine = serve(HashModel(), pages=64, limits=limits)
    for n in range(kept):
        machine.retain(RequestId(f"kept {n}"), [n + 6] * 20)
    machine.submit(replace(ask("draws", [1, 2], greedy(draws, ignore_eos=True)), order=2.0))
    machine.step()
    for n, order in enumerate(orders):
        machine.submit(replace(ask(f"prompt {n}", [n + 3] * 32, greedy(1)), order=order))
    said, taken = Said(), 0
    while any(f"prompt {n}" not in said.done for n in range(len(orders))):
        said.hear(machine.step())
        taken += 1
    assert taken == steps


@given(
    left=st.lists(st.integers(1, 60), min_size=1, max_size=9),
    prompts=st.lists(st.integers(2, 5000), min_size=1, max_size=9),
    held_to=st.integers(1, 500),
)
def test_few_outputs_that_last_hold_back_no_siblings(left: list[int], prompts: list[int], held_to: int) -> None:
    siblings = [0] * len(prompts)
    held = pays(left, prompts, siblings, held_to)
    assert held or len(left) < len(prompts)
    assert not held or len(left) >= len(prompts) or min(left) * held_to < sum(prompts)
    assert held <= pays([*left, 1], prompts, siblings, held_to)
    assert pays(left, prompts, range(len(prompts)), held_to), "each goes before the next"


def test_one_prompt_that_comes_last_does_not_make_siblings_wait() -> None:
    assert not pays([60], [100] * 17, [0] * 16 + [1], 100)


def test_a_step_computes_no_more_of_prompts_beside_outputs_than_those_who_wait_for_its_end_can_bear() -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(4, 24, mixed_tokens=8))
    machine.submit(ask("alone", [1] * 24, greedy(9, ignore_eos=True)))
    machine.step()
    assert machine.stats().computed_tokens == 24
    for token in (7, 9):
        machine.submit(ask(f"{token}", [token] * 6, greedy(1)))
    machine.step()
    assert machine.stats().computed_tokens == 24 + 1 + 8
    machine.step()
    assert machine.stats().computed_tokens == 33 + 1 + 4


@pytest.mark.parametrize(("lengths", "computed"), [([6, 6, 6], 8), ([20, 6], 20), ([30, 6], 24), ([5], 5)])
def test_several_prompts_share_a_short_step_where_nobody_draws_and_a_long_one_has_a_long_step(
    lengths: list[int], computed: int
) -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(4, 24, joint_tokens=8))
    for token, length in enumerate(lengths, 3):
        machine.submit(ask(f"{token}", [token] * length, greedy(2, ignore_eos=True)))
    machine.step()
    assert machine.stats().computed_tokens == computed
    assert sorted(drain(machine).done) == [f"{token}" for token, _ in enumerate(lengths, 3)]


def test_of_many_prompts_to_compute_ahead_only_those_that_get_a_part_of_the_step_run() -> None:
    machine = serve(HashModel(), pages=64, limits=BatchLimits(8, 32, ahead_tokens=4))
    machine.submit(ask("a", [1, 2], greedy(40, ignore_eos=True)))
    for n in range(6):
        machine.retain(RequestId(f"ahead {n}"), [n + 3] * 12)
    said = Said()
    for _ in range(6):
        said.hear(machine.step())
        assert machine.stats().running <= 2
    assert sorted(drain(machine, said).done)[1:] == [f"ahead {n}" for n in range(6)]


def in_peace(calm: float = 0.0, ahead: int = 0) -> Engine:
    """An engine that computes for nobody only when nobody is served, as on a CPU. Its pages have four tokens."""
    return serve(HashModel(), pages=64, limits=BatchLimits(4, 32, ahead_tokens=ahead, calm=calm))


def test_where_rows_are_no_cheaper_in_company_nothing_is_computed_ahead_beside_an_output() -> None:
    machine = in_peace()
    machine.submit(ask("output", [1, 2], greedy(3, ignore_eos=True)))
    machine.step()
    machine.retain(RequestId("ahead"), [3] * 24)
    computed = machine.stats().computed_tokens
    for _ in range(2):
        machine.step()
        computed += 1
        assert machine.stats().computed_tokens == computed
    assert "ahead" in drain(machine).done
    assert machine.stats().computed_tokens == computed + 24


@pytest.mark.parametrize("ahead", [0, 4])
def test_between_two_who_are_served_no_step_is_for_nobody(ahead: int) -> None:
    machine = in_peace(calm=1000.0, ahead=ahead)
    machine.submit(ask("output", [1, 2], greedy(1)))
    machine.retain(RequestId("ahead"), [3] * 24)
    machine.step()
    assert machine.rest > 900, "somebody was served just now"
    machine.step()
    assert machine.stats().computed_tokens == 2
    machine.submit(ask("comes", [3] * 25, greedy(1)))
    assert machine.rest == 0
    assert "comes" in drain_awaited(machine)


def test_what_is_to_be_kept_costs_no_step_where_somebody_has_computed_it() -> None:
    machine = in_peace(calm=1000.0)
    machine.retain(RequestId("kept"), [3] * 9)
    machine.submit(ask("reads", [3] * 10, greedy(3, ignore_eos=True)))
    assert drain_awaited(machine) == ["kept", "reads"]
    assert machine.stats().computed_tokens == 10 + 2
    assert machine.stats().pins == 1


def test_less_than_a_page_is_not_kept_where_it_would_cost_a_step() -> None:
    machine = in_peace(calm=1000.0)
    machine.retain(RequestId("kept"), [3] * 3)
    assert drain(machine).done == ["kept"]
    assert not machine.stats().computed_tokens


def drain_awaited(machine: Engine) -> list[str]:
    """Step until nothing is left but what nobody waits for; returns what is done."""
    said = Said()
    while machine.has_work and not machine.rest:
        said.hear(machine.step())
    return said.done
