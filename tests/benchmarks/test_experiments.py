from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from myna.actors.messages import Usage
from myna.actors.scheduler.policies import Policies
from myna.sdk.examples._callers import Run
from myna.sdk.timeline import CallTimes
from tests.benchmarks.experiment import simulated
from tests.benchmarks.experiment.arms import Client, Outcome
from tests.benchmarks.experiment.pictures import draw_all
from tests.benchmarks.experiment.scheduling import ALL, policies_of
from tests.benchmarks.experiment.smoke import fallen, ratios
from tests.benchmarks.experiment.words import made_tokenizer, made_words
from tests.benchmarks.experiment.workloads import EXPERIMENTS, Scale, named, poisson
from tests.benchmarks.experiments import CACHED, MYNA, Engine, bench, panel_of, rows_of
from tests.benchmarks.simulation.engine import load


def outcome(kind: str, seconds: float) -> Outcome:
    call = CallTimes("call", "engine", 100.1, 100.2, 100.3, 100.0 + seconds)
    return Outcome(kind, Run(seconds, 100.0, 100.0 + seconds, ("text",), (call,), Usage()))


@pytest.mark.parametrize("tokens", [1, 17, 400])
def test_made_texts_have_exactly_the_tokens_that_were_asked_for(tokens: int) -> None:
    tokenizer, words = made_tokenizer(512), made_words(512)
    one, other = words.text("one", tokens), words.text("other", tokens)
    assert len(tokenizer.encode(one)) == tokens
    assert len(tokenizer.encode(one + other)) == 2 * tokens
    assert one == words.text("one", tokens) != words.seeded("again").text("one", tokens)


def test_a_name_of_no_experiment_is_refused_with_those_that_there_are() -> None:
    assert [e.name for e in named(Scale.TINY, ["map-reduce."])] == ["map-reduce"]
    with pytest.raises(ValueError, match=r"'chian'; there are chain summary, map-reduce"):
        named(Scale.TINY, ["chian"])


@pytest.mark.parametrize("scale", list(Scale))
def test_every_scale_has_every_workload_once(scale: Scale) -> None:
    names = [e.name for e in EXPERIMENTS[scale]]
    assert len(names) == len(set(names))
    for start in ("chain summary", "chain under load", "many chains", "map-reduce", "copilot", "multi-agent", "mixed",
                  "coding agent", "tree of thought", "best of n"):  # fmt: skip
        assert any(name.startswith(start) for name in names), start


def test_arrivals_come_at_their_rate_and_are_the_same_each_time() -> None:
    arrivals = poisson(2.0, "seed", 1000.0)
    assert len(arrivals) == pytest.approx(2000, rel=0.1)
    assert arrivals == sorted(poisson(2.0, "seed", 1000.0))


def test_switches_name_the_policies_that_are_on() -> None:
    assert policies_of(ALL) == Policies()
    assert policies_of("prefixes") == Policies.none(prefixes=True)
    with pytest.raises(TypeError):
        policies_of("no_such_policy")


def test_a_ratio_is_the_baselines_median_over_ours_with_the_target_of_its_baseline() -> None:
    experiment = named(Scale.TINY, ["chain summary"])[0]
    taken = {
        CACHED: [[outcome("chain", s)] for s in (3.0, 2.0, 9.0)],
        MYNA: [[outcome("chain", s)] for s in (1.0, 2.0, 2.0)],
    }
    (made,) = rows_of(experiment, taken)
    assert (made.case, made.metric, made.value, made.target) == ("chain summary", "0 ms ratio to (b)", 1.5, 1.05)


def test_a_ratio_that_fell_too_far_or_is_missing_is_told() -> None:
    before = {("chain", "244 ms ratio to (a)"): 2.0, ("chain", "0 ms ratio to (b)"): 1.0}
    assert not fallen({("chain", "244 ms ratio to (a)"): 1.6, ("chain", "0 ms ratio to (b)"): 0.6}, before)
    assert len(fallen({("chain", "244 ms ratio to (a)"): 1.4}, before)) == 2


def test_pictures_and_their_data_are_written(tmp_path: Path) -> None:
    arms = [
        {"case": "chain summary: small", "metric": f"{arm}: completion", "value": 1.0, "spread": [0.9, 1.1]}
        for arm in (CACHED, MYNA)
    ]
    panels: list[dict[str, Any]] = [panel_of(arm, [outcome("chain", 1.0)]) for arm in (CACHED, MYNA)]
    made = draw_all({"rows": arms}, {"chain summary": {"sizes": "small", "panels": panels}}, tmp_path)
    assert [path.read_bytes()[:4] for path in made] == [b"\x89PNG"] * 2
    assert (tmp_path / "chain-summary.json").is_file()


def test_without_a_prefix_cache_the_simulated_engines_compute_every_prompt() -> None:
    model, jobs = load(), simulated.gpts(2.0, 10.0, 0)
    slow, quick = (
        sum(map(arm.seconds, arm.run(jobs, model)))
        for arm in (simulated.Simulation(Client.UNCACHED), simulated.Simulation(Client.CACHED))
    )
    assert slow > quick


@pytest.mark.timeout(300)
@pytest.mark.cluster
async def test_an_experiment_runs_through_nats_scheduler_and_engine_in_every_arm() -> None:
    done = await bench(Engine(Scale.TINY, "tiny", "cpu"), named(Scale.TINY, ["best of n"]), 1, unshared=False, few=True)
    assert ratios(done.rows).keys() == {("best of n", "0 ms ratio to (b)")}
    assert [len(panel["calls"]) for panel in done.timelines["best of n"]["panels"]] == [4, 4]
