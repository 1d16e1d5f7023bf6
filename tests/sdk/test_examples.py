"""The examples over the real scheduler: with the no-op engine, where every text is known, and on the default model."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
from click.testing import CliRunner

import myna
from myna.actors import config
from myna.actors.messages import ModelCall
from myna.actors.worker.backend import Job
from myna.actors.worker.noop import NoopBackend
from myna.sdk import cli, embedded
from myna.sdk.client import Client, connect
from myna.sdk.errors import CallFailed
from myna.sdk.examples import chain_summary, chat, map_reduce, search_agent, showcase, software_team
from myna.sdk.examples._applications import Named, overlooked, team
from myna.sdk.examples._applications import map_reduce as summarizing
from myna.sdk.examples._callers import Caller, Calls, MynaCaller, Result, Run, WaitingCaller
from myna.sdk.examples._common import split, topic
from myna.sdk.examples._report import Arm, Measurement, lines, remarks
from myna.sdk.serving import hosting
from tests.actors.stage import stage
from tests.network import Network


class Recorder(NoopBackend):
    """A no-op engine that remembers what it ran, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Job] = []

    def run(self, job: Job) -> None:
        self.jobs.append(job)
        super().run(job)

    def ran(self, function: str) -> list[Job]:
        return [job for job in self.jobs if job.call.function == function]


@pytest.fixture
def engine() -> Recorder:
    return Recorder()


@pytest.fixture
async def client(network: Network, engine: Recorder) -> AsyncIterator[Client]:
    async with stage(network.bus) as cast:
        await cast.scheduler()
        await cast.worker(backend=engine)
        async with connect(bus=await network.bus()) as client:
            yield client


def made(name: str, tokens: int) -> str:
    """What the no-op engine writes into an output."""
    return " ".join(f"{name}{n}" for n in range(tokens))


def given(job: Job) -> list[str]:
    """The texts that a job's inputs have."""
    return [value.text for value in job.inputs.values()]


# --- With the no-op engine --------------------------------------------------------------------------------------------


async def test_a_chain_hands_each_summary_to_the_next_call(client: Client, engine: Recorder) -> None:
    last = await chain_summary.main(client, chapter="objects", size=1200, most=3)
    assert last == made("summary", 72)
    assert len(engine.ran("summarize")) == 1
    assert [given(job) for job in engine.ran("go_on")] == [[made("summary", 56)], [made("summary", 72)]]


async def test_map_reduce_joins_the_notes_of_all_parts(client: Client, engine: Recorder) -> None:
    assert await map_reduce.main(client, size=1000, most=4) == made("summary", 80)
    assert len(engine.ran("note")) == 4
    (join,) = engine.ran("join")
    assert given(join) == [made("sentence", 40)] * 4


async def test_the_team_checks_every_version_of_every_file(client: Client, engine: Recorder) -> None:
    files = {"a.py": "a function a()", "b.py": "a function b()"}
    done = await software_team.main(client, files=files, rounds=2)
    assert done.keys() == files.keys()
    for code, report in done.values():
        assert code == made("better", 96)
        assert report == "a syntax error in line 1: invalid syntax"  # what Python says about the no-op engine's words
    assert len(engine.ran("design")) == 1
    assert len(engine.ran("write")) == 2
    assert len(engine.ran("review")) == len(engine.ran("revise")) == 4
    assert {given(job)[-1] for job in engine.ran("review")} == {"a syntax error in line 1: invalid syntax"}


def test_the_syntax_check_is_python_itself() -> None:
    check = software_team.check_syntax.function
    assert check("def f(x):\n    return x\n\ndef g(): pass") == "correct Python that defines f, g"
    assert check("x = 1") == "correct Python without a function"
    assert check("def f(:") == "a syntax error in line 1: invalid syntax"


async def test_the_search_agent_answers_from_the_passages_that_it_found(client: Client, engine: Recorder) -> None:
    ((found, reply),) = await search_agent.main(client, questions=["What does the assert statement do?"])
    assert "Assert statements are a convenient way" in " ".join(found.split())
    assert reply == made("reply", 64)
    (job,) = engine.ran("answer")
    assert given(job) == [found]


def test_search_ranks_passages_by_their_rare_words() -> None:
    index = search_agent.Index(["a cat and a dog", "a dog and a dog", "the yield expression", "and and and"])
    assert index.best("the dog", 2) == ["the yield expression", "a dog and a dog"]
    assert index.best("a cat", 1) == ["a cat and a dog"]
    assert index.best("zebra", 3) == []


async def test_each_turn_of_a_chat_holds_all_earlier_ones(client: Client, engine: Recorder) -> None:
    answers = await chat.main(client, questions=["one", "two", "three"])
    assert answers == [made("reply", 64)] * 3
    assert [len(given(job)) for job in engine.ran("chat")] == [0, 1, 2]


def test_real_text_is_split_at_paragraphs_and_nothing_is_lost() -> None:
    text = topic("objects")
    pieces = split(text, 1000)
    assert "\n\n".join(pieces) == text
    assert len(pieces) > 3
    assert all(len(piece) <= 1000 or "\n\n" not in piece for piece in pieces)


# --- The showcase's two kinds of caller -------------------------------------------------------------------------------


async def perform(client: Client, kind: type[Caller], application: Named, round_trip: float = 0.0) -> tuple[Run, int]:
    """A run, and how many calls were reported as ended."""
    ended: list[None] = []
    async with hosting(client.bus, overlooked, tenant=client.tenant), client.session("test") as session:
        run = await kind(session, round_trip, on_end=lambda: ended.append(None)).run(application.application)
    return run, len(ended)


@pytest.mark.parametrize("kind", [MynaCaller, WaitingCaller])
async def test_both_callers_make_the_same_calls_with_the_same_inputs(
    client: Client, engine: Recorder, kind: type[Caller]
) -> None:
    application = team([split(topic("for"), 500)[0]])
    run, ended = await perform(client, kind, application)
    assert ended == application.calls == 4
    assert run.texts == (made("better", 64),)
    assert [job.call.function for job in engine.jobs] == ["draft", "teach", "edit"]
    assert {call.label for call in run.calls if not call.native} == {"draft 1", "teach 1", "edit 1"}
    assert run.usage.output_tokens == 40 + 28 + 64
    assert run.start <= min(call.received for call in run.calls)
    assert max(call.ended for call in run.calls) <= run.end + 0.05  # two readings of the clock


async def test_a_waiting_client_sends_texts_and_myna_sends_variables(client: Client, engine: Recorder) -> None:
    application = summarizing(["first part", "second part"])
    for kind in (MynaCaller, WaitingCaller):
        await perform(client, kind, application)
    with_variables, with_texts = engine.ran("join")
    assert given(with_variables) == [made("sentence", 40)] * 2
    assert given(with_texts) == []
    assert isinstance(with_texts.call, ModelCall)
    prompt = "".join(s.text for m in with_texts.call.messages for s in m.segments if hasattr(s, "text"))
    assert f"- {made('sentence', 40)}\n- {made('sentence', 40)}\n" in prompt


async def test_a_round_trip_is_charged_once_to_myna_and_for_each_step_to_who_waits(client: Client) -> None:
    application = team(["a text that is short, but long enough to be explained."])  # draft, teach, edit: three steps
    mine, _ = await perform(client, MynaCaller, application, round_trip=0.3)
    theirs, _ = await perform(client, WaitingCaller, application, round_trip=0.3)
    assert mine.seconds >= 0.3
    assert theirs.seconds >= 0.9
    # Before its first call is on its way, each has waited for half a round trip.
    assert min(c.received for c in mine.calls) - mine.start >= 0.14
    assert min(c.received for c in theirs.calls) - theirs.start >= 0.14


async def test_without_prefix_cache_means_that_no_call_uses_it(client: Client, engine: Recorder) -> None:
    async with client.session("test") as session:
        caller = WaitingCaller(session, 0.0, cache_prefix=False, on_end=lambda: None)
        await caller.run(summarizing(["one", "two"]).application)
    assert [isinstance(job.call, ModelCall) and job.call.cache_prefix for job in engine.jobs] == [False] * 3


@pytest.mark.parametrize("kind", [MynaCaller, WaitingCaller])
async def test_a_failed_call_ends_the_run_with_its_error(client: Client, kind: type[Caller]) -> None:
    async with client.session("test") as session:
        caller = kind(session, 0.0, on_end=lambda: None)
        with pytest.raises(CallFailed, match="broken"):
            await caller.run(_failing)


@myna.function
def broken(
    text: str, part: Annotated[str, myna.Output(max_tokens=2, transforms=myna.transforms.regex("nothing has this"))]
) -> None:
    """{{text}} {{part}}"""


def _failing(calls: Calls) -> list[Result]:
    return [calls.call("join", map_reduce.join, notes=[calls.call("x", broken, text="text")])]


# --- Its report -------------------------------------------------------------------------------------------------------


def measurement(
    arm: Arm, seconds: float, *, text: str = "same", tokens: int = 100, round_trip: float = 0.0
) -> Measurement:
    from myna.actors.messages import Usage

    usage = Usage(prompt_tokens=10, cached_tokens=5, output_tokens=tokens)
    return Measurement("app", round_trip, arm, Run(seconds, 0.0, seconds, (text,), (), usage))


def test_a_line_is_the_quickest_of_its_runs_and_its_ratio_is_to_mynas_quickest() -> None:
    measured = [measurement(Arm.MYNA, s) for s in (2.0, 4.0)] + [measurement(Arm.CACHED, s) for s in (9.0, 3.0)]
    mine, theirs = lines(measured)
    assert (mine.seconds, mine.ratio, mine.runs) == (2.0, 1.0, 2)
    assert (theirs.seconds, theirs.ratio) == (3.0, 1.5)


def test_the_report_says_where_myna_is_slower_or_no_faster_and_says_it_first() -> None:
    measured = [
        measurement(Arm.MYNA, 2.0),
        measurement(Arm.CACHED, 1.0),
        measurement(Arm.UNCACHED, 2.04),
        measurement(Arm.MYNA, 1.0, round_trip=0.2),
        measurement(Arm.CACHED, 3.0, round_trip=0.2, tokens=120),
    ]
    slower, equal, faster, once, texts = remarks(measured)
    assert "Myna is slower, 2.00 times" in slower
    assert "Myna is no faster (1.02 times" in equal
    assert "(it wrote 20% more tokens): Myna is 3.00 times as fast" in faster
    assert "200 ms simulated" in faster
    assert once.startswith("Each ran once")
    assert texts == "All 5 runs wrote the same texts."
    assert remarks([*measured, measurement(Arm.CACHED, 5.0, text="other")])[-1].startswith("5 of 6 runs")


def test_nothing_is_called_faster_that_differs_less_than_a_run_from_itself() -> None:
    measured = [measurement(arm, s) for arm, times in ((Arm.MYNA, (2, 2.6)), (Arm.CACHED, (2.4, 3.12))) for s in times]
    (verdict, noise, _) = remarks(measured)
    assert "no faster (1.20 times" in verdict
    assert "differed by 30%" in noise


async def test_the_showcase_runs_quickly_from_end_to_end(client: Client, tmp_path: Path) -> None:
    sizes = replace(showcase.QUICK, round_trips=(0.0, 0.05), passes=2)
    measured = await showcase.main(client, sizes=sizes, folder=tmp_path / "pictures")
    assert len(measured) == 2 * 2 * len(Arm) * 2  # applications, round trips, arms, passes
    assert {m.run.texts for m in measured if "map" in m.application} == {(made("summary", 80),)}
    assert sorted(os.listdir(tmp_path / "pictures")) == ["myna-timeline-0ms.png", "myna-timeline-50ms.png"]


# --- On the default model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine of this process's own with the default model, for all tests of the module; started by the first."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MYNA_URL", "MYNA_USER", "MYNA_PASSWORD", "MYNA_PASSWORD_FILE", "MYNA_TENANT", "MYNA_MODEL"):
            patch.delenv(name, raising=False)
        patch.setenv("MYNA_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_WAIT_POLICY", "passive")  # the machine that runs tests has other work for its cores
        asyncio.run(embedded.embedded_settings(config.read()))
        yield
        if embedded._machine is not None:
            embedded._machine.stop()


on_the_model = [pytest.mark.model, pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("machine")
class TestOnTheDefaultModel:
    pytestmark = on_the_model

    async def test_search_and_answer(self) -> None:
        ((found, reply),) = await search_agent.main(questions=["What is a lambda expression?"])
        assert "lambda" in found.lower()
        assert "function" in reply

    async def test_summaries(self) -> None:
        assert "Python" in await map_reduce.main(size=500, most=2)
        assert len(await chain_summary.main(size=400, most=2)) > 40

    async def test_a_chat_finds_its_earlier_turns_in_the_cache(self, capsys: pytest.CaptureFixture[str]) -> None:
        answers = await chat.main(questions=["What is a list in Python?", "And a tuple?"])
        assert "list" in answers[0].lower()
        assert "tuple" in answers[1].lower()
        (cached,) = [line for line in capsys.readouterr().out.splitlines() if "of context" in line][1:]
        assert int(cached.split(", ")[1].split()[0]) > 16

    async def test_the_team_writes_code_that_python_accepts(self) -> None:
        done = await software_team.main(files={"mean.py": software_team.FILES["mean.py"]}, rounds=1)
        code, report = done["mean.py"]
        assert "def mean" in code
        assert report.startswith("correct Python that defines mean")

    def test_the_showcase_by_its_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(
            sys.modules, showcase.__name__
        )  # the command runs the module, which is then not yet imported
        result = CliRunner().invoke(cli.main, ["demo", "showcase", "--quick", "--folder", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert "x Myna" in result.output
        assert os.listdir(tmp_path) == ["myna-timeline-244ms.png"]
