from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from myna.actors.messages import Usage
from myna.actors.scheduler.policies import Policies
from myna.sdk.examples._callers import Run
from myna.sdk.timeline import CallTimes
from tests.benchmarks.experiment import floors, peers
from tests.benchmarks.experiment.applications import TASK, Chain, CodingAgent, MapReduce
from tests.benchmarks.experiment.arms import Arm, Client, Load, Outcome
from tests.benchmarks.experiment.comparing import CACHED, MYNA, panel_of, rows_of
from tests.benchmarks.experiment.made import SHAPES, network
from tests.benchmarks.experiment.pictures import draw_all, draw_modelled
from tests.benchmarks.experiment.profile import parts
from tests.benchmarks.experiment.running import Beside, Engine, Extent, bench
from tests.benchmarks.experiment.scheduling import ALL, all_but, policies_of
from tests.benchmarks.experiment.smoke import fallen, ratios
from tests.benchmarks.experiment.words import made_tokenizer, made_words
from tests.benchmarks.experiment.work import measure
from tests.benchmarks.experiment.workloads import EXPERIMENTS, Scale, named, poisson


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
    assert [e.name for e in named(Scale.TINY, ["map-reduce.", "chain s"])] == ["map-reduce", "chain summary"]
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
    assert policies_of(all_but("early")) == Policies(early=False)
    assert str(Arm(Client.MYNA, switches=all_but("early"))) == "Myna without early, 0 ms"
    with pytest.raises(ValueError, match="no policy is called 'late'"):
        all_but("late")


def test_a_ratio_is_the_baselines_median_over_ours_with_the_target_of_its_baseline() -> None:
    experiment = named(Scale.TINY, ["chain summary"])[0]
    taken = {
        CACHED: [[outcome("chain", s)] for s in (3.0, 2.0, 9.0)],
        MYNA: [[outcome("chain", s)] for s in (1.0, 2.0, 2.0)],
    }
    made = rows_of(experiment, taken)[0]
    assert (made.case, made.metric, made.value, made.target) == ("chain summary", "0 ms ratio to (b)", 1.5, 1.05)


def test_what_has_run_so_far_has_rows_though_other_arms_have_not() -> None:
    experiment = named(Scale.TINY, ["chain summary"])[0]
    taken = {CACHED: [[outcome("chain", 3.0)], [outcome("chain", 5.0)]], MYNA: [[outcome("chain", 2.0)]]}
    ratio, theirs, ours = rows_of(experiment, taken)
    assert (ratio.value, ratio.runs) == (2.0, 1)
    assert (theirs.runs, ours.runs) == (2, 1)
    (alone,) = rows_of(experiment, {CACHED: taken[CACHED]})
    assert alone.metric == "(b), 0 ms: completion"


def test_an_experiment_that_has_taken_long_enough_is_not_run_again() -> None:
    assert list(Extent(3).turns()) == [0, 1, 2]
    assert list(Extent(3, enough=0.0).turns()) == [0]


WORDS = made_words(2048)


def test_a_floor_counts_what_is_shared_once_and_every_draw_on_the_longest_path() -> None:
    speed = floors.Speed(step=1.0, prompt=0.01)
    maps = Load("map-reduce", MapReduce(4, 100, 6).application(WORDS))
    seconds, tokens = floors.alone(maps, speed)
    assert tokens == TASK + 4 * 100 + TASK + 4 * 6
    assert seconds == pytest.approx((TASK + 4 * 100) * 0.01 + 6 + 6)
    chain = Load("chain", Chain(3, 100, 6).application(WORDS))
    assert floors.alone(chain, speed)[0] == pytest.approx((TASK + 100 + 6) * 0.01 + 3 * 6)


def test_a_floor_has_the_time_of_tools() -> None:
    agent = Load("agent", CodingAgent(3, 100, 4, 10, 2.0).application(WORDS))
    quick, slow = floors.Speed(0.0, 0.0), floors.Speed(1.0, 0.0)
    pauses = floors.alone(agent, quick)[0]
    assert 2 * 1.0 <= pauses <= 2 * 3.0
    assert floors.alone(agent, slow)[0] == pytest.approx(pauses + 3 * 4)


def test_applications_that_begin_together_are_not_all_done_as_soon_as_one() -> None:
    speed = floors.Speed(step=0.0, prompt=1.0)
    one = Chain(2, 100, 4).application(WORDS)
    ends = [o.run.seconds for o in floors.outcomes([Load("chain", one), Load("chain", one)], speed)]
    assert ends[1] == pytest.approx(2 * ends[0], rel=0.05)


async def test_a_peer_is_asked_for_each_call_when_its_inputs_have_come_back() -> None:
    tokenizer = made_tokenizer(SHAPES["tiny"]["vocab_size"])
    async with peers.transformers_peer(network("tiny", "cpu", 0), tokenizer) as peer:
        (done,) = await peers.perform(
            peer, [Load("map-reduce", MapReduce(2, 20, 5).application(WORDS))], round_trip=0.02
        )
    assert done.run.seconds > 2 * 0.02
    assert [len(tokenizer.encode(text)) for text in done.run.texts] == [5]


def test_a_ratio_that_fell_too_far_or_is_missing_is_told() -> None:
    before = {("chain", "244 ms ratio to (a)"): 2.0, ("chain", "0 ms ratio to (b)"): 1.0}
    assert not fallen({("chain", "244 ms ratio to (a)"): 1.6, ("chain", "0 ms ratio to (b)"): 0.6}, before)
    assert len(fallen({("chain", "244 ms ratio to (a)"): 1.4}, before)) == 2


def test_a_profile_has_the_medians_of_what_workers_stamped() -> None:
    def call(received: float, ended: float) -> dict[str, float]:
        return {"received": received, "began": received + 0.01, "first": received + 0.03, "ended": ended}

    calls = [call(0.1, 1.0), call(1.2, 2.0), call(2.4, 3.0)]
    found = parts({"arm": "Myna", "applications": [{"end": 3.5}], "calls": calls})
    assert found == pytest.approx(
        {
            "client, NATS, scheduler: until the first call is received": 0.1,
            "a result's end to the receipt of what waited for it": 0.3,
            "reading the inputs": 0.01,
            "queue and prefill, up to the first token": 0.02,
            "decode, detokenize, publish": 0.77,
            "the last result's way to the client": 0.5,
            "whole run": 3.5,
        }
    )
    assert len(parts({"arm": "(b)", "applications": [{"end": 3.5}], "calls": calls[:1]})) == 6


def test_modelled_cases_have_a_figure_of_their_own(tmp_path: Path) -> None:
    rows = [
        {
            "case": "four GPTs: simulated, engines: 4",
            "metric": str(arm),
            "value": 1.0,
            "spread": [1, 1],
            "unit": "requests/s",
        }
        for arm in (CACHED, MYNA)
    ]
    rows.append({"case": "four GPTs", "metric": "0 ms ratio to (b)", "value": 1.0, "spread": [1, 1], "unit": "x"})
    assert [path.name for path in draw_modelled({"rows": rows}, tmp_path)] == ["four-GPTs.png"]


def test_pictures_and_their_data_are_written(tmp_path: Path) -> None:
    arms = [
        {"case": "chain summary: small", "metric": f"{arm}: completion", "value": 1.0, "spread": [0.9, 1.1]}
        for arm in ("(a), 0 ms", "(b), 0 ms", "(c) transformers 5, 0 ms", "(d) llama.cpp, 0 ms", MYNA)
    ]
    panels: list[dict[str, Any]] = [panel_of(arm, [outcome("chain", 1.0)]) for arm in (CACHED, MYNA)]
    made = draw_all({"rows": arms}, {"chain summary": {"sizes": "small", "panels": panels}}, tmp_path)
    assert [path.read_bytes()[:4] for path in made] == [b"\x89PNG"] * 2
    assert (tmp_path / "chain-summary.json").is_file()


@pytest.mark.timeout(300)
@pytest.mark.cluster
async def test_an_experiment_runs_through_nats_scheduler_and_engine_in_every_arm() -> None:
    chosen = named(Scale.TINY, ["best of n"])
    done = await bench(
        Engine(Scale.TINY, "tiny", "cpu"), chosen, Extent(1, few=True), Beside(widths=[16], early=chosen)
    )
    kept = {("best of n", "0 ms ratio to (b)"), ("best of n", "0 ms ratio to Myna, 16 rows ahead")}
    assert ratios(done.rows).keys() == kept
    assert [len(panel["calls"]) for panel in done.timelines["best of n"]["panels"]] == [4, 4]


@pytest.mark.timeout(300)
@pytest.mark.cluster
async def test_what_an_engine_works_is_told_for_each_arm() -> None:
    chosen = named(Scale.TINY, ["map-reduce."])
    theirs, ours, ratio = await measure(Engine(Scale.TINY, "tiny", "cpu"), chosen, (CACHED, MYNA), runs=1)
    assert min(theirs.value, ours.value) > 0
    assert ratio.value == pytest.approx(theirs.value / ours.value)
