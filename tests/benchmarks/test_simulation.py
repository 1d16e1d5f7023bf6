from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.prefixes import Boundary
from myna.engine.gpu_model import BUCKETS
from tests.benchmarks.experiment.simulated import agents
from tests.benchmarks.simulate import giant, policies, run_giant, simulate
from tests.benchmarks.simulation.cluster import Cluster
from tests.benchmarks.simulation.engine import OURS, Engine, EngineModel, Request, load
from tests.benchmarks.simulation.fitting import Point, errors, fit, points_of, refit
from tests.benchmarks.simulation.workloads import WORKLOADS, alone, jobs

MODEL = load()


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_every_workload_runs_to_its_end_and_the_core_never_contradicts_itself(workload: object) -> None:
    some = jobs(workload, MODEL, 2, seed=0, scale=0.01)[:4]  # type: ignore[arg-type]
    cluster = Cluster(MODEL, 2, policies()["ours"], check=len([c for j in some for c in j.calls()]) < 150)
    turns = cluster.run(some)
    assert len(turns) == sum(1 if j.whole else len(j.stages) for j in some)
    assert all(t.ended is not None and t.ended >= t.asked for t in turns)
    assert cluster.dispatches == sum(1 for j in some for _ in j.calls())
    assert not cluster.core.sessions


def test_no_job_is_quicker_than_its_longest_path() -> None:
    workload = WORKLOADS[0]
    some = jobs(workload, MODEL, 4, seed=1, scale=0.02)
    turns = Cluster(MODEL, 4, policies()["ours"]).run(some)
    for turn in turns:
        assert turn.ended is not None
        assert turn.ended - turn.asked >= 0.99 * alone(turn.job, MODEL, engines=10**6)


@pytest.mark.parametrize("name", policies())
def test_every_policy_completes_the_mixed_workload(name: str) -> None:
    workload = next(w for w in WORKLOADS if w.name == "mixed multi-tenant")
    summary, _ = simulate(workload, MODEL, policies()[name], seed=0, scale=0.02)
    assert summary.mean_jct > 0
    assert 0 <= summary.hit_rate <= 1
    assert 0 < summary.fairness <= 1


def test_a_graph_of_thousands_of_calls_is_run_and_closed_without_leaking() -> None:
    assert len(list(giant(3000).calls())) == 3000
    assert run_giant(MODEL, 3000).value > 0


def test_agents_whose_contexts_do_not_fit_are_not_all_computed_again_at_each_turn_and_none_waits_for_ever() -> None:
    model = replace(load(OURS), tokens=100_000)

    def run(policy: Policies) -> tuple[Cluster, list[float]]:
        cluster = Cluster(model, 1, policy, check=True)
        turns = cluster.run(agents(0, count=10, turns=15))
        return cluster, [turn.ended - turn.asked for turn in turns if turn.ended is not None]

    (aware, theirs), (ours, taken) = run(Policies.none(prefixes=True)), run(Policies())
    assert len(taken) == len(theirs) == 10
    assert sum(taken) < sum(theirs) / 1.05
    assert max(taken) < 1.3 * max(theirs)
    computed = [next(iter(c.engines.values())).totals["computed_tokens"] for c in (aware, ours)]
    assert computed[1] < computed[0] / 2


# --- the modelled engine ----------------------------------------------------------------------------------------------


class Clock:
    """A virtual clock for one engine."""

    def __init__(self, model: EngineModel) -> None:
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self.done: dict[object, float] = {}
        self.engine = Engine(model, self.at, lambda request, now: self.done.__setitem__(request.key, now))

    def at(self, time: float, action: Callable[[float], None]) -> None:
        self._number += 1
        self.events.append((time, self._number, action))

    def run(self) -> None:
        while self.events:
            self.events.sort()
            now, _, action = self.events.pop(0)
            action(now)


def request(name: str, *parts: tuple[str, float], output: int = 10) -> Request:
    total, boundaries = 0.0, []
    for part, tokens in parts:
        total += tokens
        boundaries.append(Boundary(hash((part, total)), total))
    return Request(name, (*boundaries, Boundary(hash(name), total + output)), len(boundaries), output)


def test_one_request_takes_its_prompt_and_one_step_a_token() -> None:
    clock = Clock(MODEL)
    clock.engine.submit(request("a", ("p", 1000), output=50), 0.0)
    clock.run()
    assert clock.done["a"] == pytest.approx(1000 * MODEL.prefill + 50 * MODEL.alone, rel=0.05)


def test_a_batch_is_much_quicker_than_one_after_the_other() -> None:
    clock = Clock(MODEL)
    for n in range(32):
        clock.engine.submit(request(str(n), (f"p{n}", 100), output=100), 0.0)
    clock.run()
    assert max(clock.done.values()) < 4 * 100 * MODEL.alone


def test_a_shared_prefix_is_computed_once() -> None:
    clock = Clock(MODEL)
    for n in range(8):
        clock.engine.submit(request(str(n), ("shared", 2000), (f"q{n}", 10)), 0.0)
    clock.run()
    assert clock.engine.totals["drawn_tokens"] == 80  # of which 8 come with the prompts
    assert clock.engine.totals["computed_tokens"] == 2000 + 8 * 10 + 72


def test_the_model_of_an_h100_meets_measured_steps_that_it_was_not_fitted_to_within_five_percent() -> None:
    """Milliseconds of vLLM 0.25.1 with an 8B model on one H100; the fit itself is made of other rows of the same measurement."""
    measured = ((2048, 256, 16, 7.650), (6000, 500, 32, 10.969), (8192, 128, 64, 17.818), (32768, 512, 32, 27.353))
    points = [  # there each sequence reads what it shares, and had drawn 96 tokens on average
        Point(f"shared {prefix}", ms / 1e3, batch, batch * (prefix + own + 96)) for prefix, own, batch, ms in measured
    ]
    assert max(abs(e) for e in errors(MODEL, points).values()) < 0.05


def test_the_fit_to_our_own_engines_steps_on_an_h100_is_near_on_what_it_has_not_seen() -> None:
    record = json.loads((Path(__file__).parent / "results" / "h100" / "gpu_engine.json").read_text())
    points = points_of(record["rows"])
    found = errors(fit(points, "H100"), points)
    unseen = [abs(found[p.name]) for p in points if not p.seen]
    assert len(unseen) == 4
    assert max(unseen) < 0.12
    assert sum(unseen) / 4 < 0.07


def test_measured_steps_are_met_and_foretell_those_that_nothing_was_fitted_to_within_five_percent() -> None:
    record = json.loads((Path(__file__).parent / "results" / "h100" / "gpu_engine.json").read_text())
    points = points_of(record["rows"])
    model = load(OURS)
    found = errors(model, points)
    assert max(abs(found[p.name]) for p in points if p.seen) < 0.01
    assert max(abs(found[p.name]) for p in points if not p.seen) < 0.05
    assert refit(model, points, model.source) == model


def test_a_step_of_measured_rows_is_padded_as_the_engine_pads_it_and_between_them_lies_on_a_line() -> None:
    model = load(OURS)
    assert model.buckets == BUCKETS
    assert dict(model.steps)[512] == model.step(512, 0.0) == model.step(25, 0.0, 430.5)
    longer = model.step(0, 0.0, 2000.0) - model.step(0, 0.0, 1500.0)  # too many for a bucket
    assert longer == pytest.approx(500 * model.prompt, rel=0.05)
    assert model.step(1, 1000.0) - model.alone == pytest.approx(1000 * model.kv)
    assert model.step(20_000, 0.0) > dict(model.steps)[16_384]


@pytest.mark.parametrize("name", ["cpu2.json", "h100_myna.json"])
def test_jobs_run_on_every_engine_that_was_fitted(name: str) -> None:
    model = load(Path(__file__).parent / "simulation" / name)
    some = jobs(WORKLOADS[0], model, 2, seed=0, scale=0.01)[:2]
    assert all(t.ended is not None for t in Cluster(model, 2, policies()["ours"]).run(some))


@settings(max_examples=40, deadline=None)
@given(st.tuples(*(st.floats(1e-7, 1e-2),) * 2, *(st.floats(1e-9, 1e-4),) * 2))
def test_a_fit_finds_the_constants_that_made_the_points(constants: tuple[float, float, float, float]) -> None:
    truth = EngineModel(*constants)
    shapes = ((1, 64, 0), (8, 4000, 0), (64, 9000, 0), (1, 9000, 0), (0, 0, 512), (4, 2000, 2048))
    points = [
        Point(str(shape), truth.step(*shape), shape[0], shape[1], shape[2], seen=n != 3)
        for n, shape in enumerate(shapes)
    ]
    assert max(abs(e) for e in errors(fit(points, ""), points).values()) < 1e-3


def test_a_prefix_that_nobody_waits_for_delays_others_by_little_and_is_there_when_it_is_asked_for() -> None:
    def seconds(*, ahead: bool) -> tuple[float, float]:
        clock = Clock(MODEL)
        if ahead:
            clock.engine.submit(request("other", ("o", 10), output=40), 0.0)
            clock.engine.keep("k", request("b", ("p", 2000)).boundaries[:1], 0.0, 5.0)
        clock.engine.submit(request("a", ("q", 2000), output=40), 0.0)
        clock.run()
        late = request("b", ("p", 2000), ("rest", 100))
        clock.engine.submit(late, 10.0)
        clock.run()
        return clock.done["a"], late.cached

    alone, nothing = seconds(ahead=False)
    beside, cached = seconds(ahead=True)
    assert beside < alone + 50 * (64 * MODEL.prefill + MODEL.slope)
    assert (nothing, cached) == (0, 2000)


def test_what_is_computed_ahead_is_hastened_when_a_call_needs_it() -> None:
    clock = Clock(MODEL)
    clock.engine.submit(request("other", ("o", 10), output=1000), 0.0)
    clock.engine.keep("k", request("b", ("p", 2000)).boundaries[:1], 0.0, 5.0)
    clock.engine.submit(request("b", ("p", 2000), ("rest", 100)), 0.0)
    clock.run()
    assert clock.done["b"] < 3 * 2000 * MODEL.prefill + 15 * MODEL.step(2, 3000)
    assert not clock.engine.ahead


@pytest.mark.parametrize(("draw", "output", "held"), [(30, 50, True), (1, 900, False)], ids=["many", "one that lasts"])
def test_prompts_are_computed_in_their_order_and_held_back_beside_many_outputs_that_go_before_them(
    draw: int, output: int, held: bool
) -> None:
    took, ended = {}, {}
    for leading in (None, 100):
        clock = Clock(replace(MODEL, leading=leading))
        for n in range(draw):
            clock.engine.submit(replace(request(f"draws {n}", ("p", 10), output=output), order=1.0), 0.0)
        for name, order in (("late", 3.0), ("late too", 3.0), ("late as well", 3.0), ("early", 2.0)):
            prompt = replace(request(name, (name, 3000), output=1), order=order)
            clock.at(0.1, partial(clock.engine.submit, prompt))
        clock.run()
        assert clock.done["early"] < clock.done["late"]
        took[leading], ended[leading] = clock.done["early"], clock.done["draws 0"]
    assert (took[100] > took[None] + 10 * MODEL.base) == held
    assert (ended[100] < ended[None] - 1000 * MODEL.prefill) == held


def test_memory_is_bounded_and_what_was_used_least_recently_goes_first() -> None:
    model = EngineModel(MODEL.base, MODEL.slope, MODEL.kv, MODEL.prefill, tokens=5000)
    clock = Clock(model)
    for n in range(12):
        clock.engine.submit(request(str(n), (f"p{n}", 1000)), 0.0)
    clock.run()
    assert len(clock.done) == 12
    assert clock.engine.totals["evicted_tokens"] >= 7000
    assert clock.engine._stored <= 5000
    assert clock.engine._generated == pytest.approx(0.0)
    assert clock.engine._read == pytest.approx(0.0)


def test_a_kept_prefix_outlives_newer_ones_until_it_is_let_go() -> None:
    model = EngineModel(MODEL.base, MODEL.slope, MODEL.kv, MODEL.prefill, tokens=5000)
    clock = Clock(model)
    first = request("a", ("p", 2000))
    clock.engine.submit(first, 0.0)
    clock.run()
    clock.engine.keep("k", first.boundaries[:1], 1.0, 5.0)
    for n in range(8):
        clock.engine.submit(request(f"other{n}", (f"q{n}", 2000)), 2.0 + n)
        clock.run()
    again = request("b", ("p", 2000), ("rest", 100))
    clock.engine.submit(again, 50.0)
    clock.run()
    assert again.cached == 2000
    clock.engine.let_go("k")
    for n in range(8):
        clock.engine.submit(request(f"later{n}", (f"r{n}", 2000)), 60.0 + n)
        clock.run()
    last = request("c", ("p", 2000), ("rest", 100))
    clock.engine.submit(last, 100.0)
    clock.run()
    assert last.cached == 0
    assert len(clock.done) == 19
