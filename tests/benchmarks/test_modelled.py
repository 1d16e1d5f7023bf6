from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.benchmarks.experiment import simulated
from tests.benchmarks.experiment.applications import BestOf, Chain, CodingAgent, Copilot, MapReduce, Thoughts
from tests.benchmarks.experiment.arms import UNSHARED, Arm, Client, Load, waiting
from tests.benchmarks.experiment.comparing import CACHED, MYNA, MYNA_FAR, PLAIN
from tests.benchmarks.experiment.modelled import Simulation, job_of, perform
from tests.benchmarks.experiment.simulated import Job, gpts, highest_rate, most_gpts
from tests.benchmarks.experiment.words import made_words
from tests.benchmarks.experiment.workloads import Experiment, Scale, chain, map_reduce, named
from tests.benchmarks.simulation.engine import OURS, load

MODEL, WORDS = load(OURS), made_words(1000)


def seconds(arm: Arm, jobs: Sequence[Job]) -> float:
    simulation = Simulation(arm)
    return sum(map(simulation.seconds, simulation.run(jobs, MODEL)))


def took(experiment: Experiment, arm: Arm) -> float:
    return experiment.measure(perform(experiment, arm, WORDS, MODEL))


@pytest.mark.parametrize(
    ("experiment", "levels"),
    [(chain(Chain(5, 100, 6)), 5), (map_reduce(MapReduce(4, 100, 6)), 2)],
    ids=["chain", "map-reduce"],
)
def test_a_waiting_client_pays_the_way_for_each_call_that_waits_for_another_and_myna_once(
    experiment: Experiment, levels: int
) -> None:
    near, far = (took(experiment, waiting(Client.CACHED, distance)) for distance in (0.0, 0.5))
    assert far - near == pytest.approx(0.5 * levels)
    assert took(experiment, MYNA_FAR) - took(experiment, MYNA) == pytest.approx(MYNA_FAR.round_trip)


def test_an_application_is_written_down_with_its_tokens_and_what_begins_alike() -> None:
    job = job_of(Load("best", BestOf(3, 500, 20, 4).application(WORDS)))
    assert sorted(job.outputs.values()) == [4, 20, 20, 20]
    heads = {call.messages[0].segments[0] for call in job.calls()}
    assert len(heads) == 1
    assert sorted(job.given.values()) == [10, 10, 10, 40]
    assert job.stages[0].wants == ("judge6",)


@pytest.mark.parametrize("arm", [CACHED, MYNA], ids=str)
def test_tools_take_their_time_and_no_more_whoever_has_them(arm: Arm) -> None:
    still, paused = (CodingAgent(4, 300, 6, 20, pause).application(WORDS) for pause in (0.0, 2.0))
    quick, slow = (seconds(arm, [job_of(Load("agent", one))]) for one in (still, paused))
    pauses = sum(
        c.arguments[1].constant for c in job_of(Load("agent", paused)).calls() if c.id.startswith("c-experiment")
    )
    assert pauses > 3.0
    assert slow - quick == pytest.approx(pauses, rel=0.01)


@pytest.mark.parametrize("arm", [CACHED, MYNA], ids=str)
def test_results_of_native_functions_are_read_by_calls_and_wanted(arm: Arm) -> None:
    search = Load("search", Thoughts(2, 3, 2, 100, 6, 2).application(WORDS))
    least = 2 * (6 + 2 - 1) * MODEL.alone
    assert least < seconds(arm, [job_of(search)]) < 3 * least


def test_without_a_prefix_cache_every_prompt_is_computed() -> None:
    jobs = gpts(2.0, 10.0, 0)
    assert seconds(PLAIN, jobs) > seconds(CACHED, jobs)


def test_an_engine_that_reads_shared_prefixes_for_each_is_slower_for_many_and_the_same_for_one() -> None:
    each = waiting(Client.CACHED, engine=UNSHARED)

    def users(count: int) -> list[Job]:
        return [job_of(Load("copilot", Copilot(count, 5000, 8, (50, 60)).application(WORDS)))]

    assert seconds(each, users(1)) == pytest.approx(seconds(CACHED, users(1)))
    assert seconds(each, users(30)) > 1.2 * seconds(CACHED, users(30))


def test_an_agent_that_declares_no_turn_pauses_between_its_turns_whoever_sends_its_calls() -> None:
    jobs = simulated.agents(0, count=1, turns=3, context=200)
    pauses = sum(stage.think for stage in jobs[0].stages)
    assert pauses > 2.0
    assert min(seconds(arm, jobs) for arm in (MYNA, CACHED)) > pauses


def test_nobody_serves_more_gpts_than_the_bound_says() -> None:
    small = replace(MODEL, sequences=4)
    assert highest_rate(Simulation(MYNA, simulated.ENGINES), small, 40.0, 0) < most_gpts(small, 40.0)
    assert (
        most_gpts(small, 40.0)
        > most_gpts(small, 1e6)
        == pytest.approx(simulated.ENGINES * 4 / small.step(4, 4 * 292.0) / 460.0, rel=0.01)
    )


def test_an_experiment_on_a_modelled_engine_has_the_rows_of_a_real_one_and_says_that_it_is_none() -> None:
    (experiment,) = named(Scale.TINY, ["chain summary"])
    rows = list(simulated.on_one(experiment, MODEL, ["early"]))
    assert all(made.case.startswith("simulated, one engine: chain summary") for made in rows)
    ratio = next(made for made in rows if made.metric == "0 ms ratio to (b)")
    assert ratio.target == 1.05
    assert ratio.floor is not None
    assert ratio.value <= ratio.floor
    assert "0 ms ratio to Myna without early" in {made.metric for made in rows}
