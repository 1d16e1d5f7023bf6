"""The engine host with a real engine process, on a tiny model. Each start of an engine takes seconds, so most tests share one."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from myna.actors import config, subjects
from myna.actors.bus import Delivery
from myna.actors.engine_host.backend import EngineBackend
from myna.actors.messages import (
    CallId,
    ErrorCode,
    Failure,
    Input,
    Message,
    ModelCall,
    Output,
    Sampling,
    Segment,
    SessionId,
    Text,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.worker.backend import (
    BackendDied,
    BackendRefused,
    Hold,
    Job,
    JobEnded,
    JobFailed,
    Offer,
    Offered,
    OutputEnded,
    Report,
    Reporter,
    Resumed,
    RunKey,
)
from tests.actors.stage import TENANT, Application, Stage, call, stage, until
from tests.engine.tiny_folder import tiny_folder
from tests.network import MemoryNetwork

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Overheard(EngineBackend):
    """Reports of attempts that its worker knows nothing of can be listened to. It computes ahead beside outputs, as on a GPU."""

    def __init__(self, settings: config.Settings) -> None:
        super().__init__(settings)
        self.said: asyncio.Queue[Report] = asyncio.Queue()
        self.begun: list[RunKey] = []

    def run(self, job: Job) -> None:
        self.begun.append(job.key)
        super().run(job)

    def _command_line(self, fd: int) -> list[str]:
        return [*super()._command_line(fd), "--ahead-tokens", "512"]

    async def start(self, report: Reporter) -> Offer:
        def heard(said: Report | Offered) -> None:
            if not isinstance(said, Offered):
                self.said.put_nowait(said)
            report(said)

        return await super().start(heard)

    async def of(self, key: RunKey) -> list[Report]:
        """What is said of an attempt, up to its end."""
        found: list[Report] = []
        async with asyncio.timeout(30):
            while not found or not isinstance(found[-1], JobEnded | JobFailed):
                said = await self.said.get()
                found += [said] if said.key == key else []
        return found


@dataclass(frozen=True)
class Served:
    """A scheduler and one engine, for several tests."""

    cast: Stage
    backend: Overheard

    async def application(self, session: str) -> Application:
        return await application(self.cast, session)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(settings: config.Settings) -> AsyncIterator[Served]:
    async with stage(MemoryNetwork().bus) as cast:
        await cast.scheduler()
        backend = Overheard(settings)
        await cast.worker("engine", backend)
        yield Served(cast, backend)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> config.Settings:
    folder = tmp_path_factory.mktemp("models")
    engine = config.EngineSettings(model=str(tiny_folder(folder)), dtype=config.Dtype.FLOAT32, kv_memory=2**20)
    return replace(config.read({"HOME": str(folder)}), engine=engine)


async def engine(cast: Stage, settings: config.Settings, name: str = "engine") -> EngineBackend:
    backend = EngineBackend(settings)
    await cast.worker(name, backend)
    return backend


async def application(cast: Stage, session: str = "s") -> Application:
    app = Application(await cast.bus("application"), session)
    await app.open()
    return app


def generate(name: str, prompt: str = "the quick", **sampling: object) -> ModelCall:
    drawn = Sampling(**{"max_tokens": 8, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    segments: tuple[Segment, ...] = (Text(text=prompt), Output(variables=(name,), name=name, sampling=drawn))
    return ModelCall(id=f"call-{name}", function=name, messages=(Message(segments=segments),))


def siblings(name: str) -> ModelCall:
    sampling = Sampling(seed=1, max_tokens=12, ignore_eos=True, temperature=2)
    segments = (Text(text="once"), Output(variables=(f"{name}0", f"{name}1"), sampling=sampling))
    return ModelCall(id=f"call-{name}", messages=(Message(segments=segments),))


async def failure(app: Application, variable: str) -> Failure:
    outcome = await app.outcome(variable)
    assert isinstance(outcome, Failure)
    return outcome


async def test_calls_run_on_a_real_engine_and_what_is_wrong_with_one_fails_it_alone(served: Served) -> None:
    app = await served.application("calls")
    await app.submit(
        generate("long", "x" * 5000),
        generate("hot", temperature=-1.0),
        ModelCall(id="call-roles", messages=(Message(role="user", segments=(Output(variables=("roles",)),)),)),
        generate("good"),
        call("after", "good"),
        siblings("a"),
        siblings("b"),
    )
    assert (await failure(app, "long")).code is ErrorCode.PROMPT_TOO_LONG
    assert "tokens" in (await failure(app, "long")).message
    assert (await failure(app, "hot")).code is ErrorCode.INVALID_SAMPLING
    assert "temperature" in (await failure(app, "hot")).message
    assert (await failure(app, "roles")).code is ErrorCode.INVALID_CALL
    good = await app.outcome("good")
    assert isinstance(good, Value)
    assert (good.model, good.usage.output_tokens, len(good.tokens)) == ("tiny-llama", 8, 8)
    assert good.timing is not None
    assert good.timing.received <= good.timing.began <= good.timing.first <= good.timing.ended
    assert isinstance(await app.outcome("after"), Value)
    a0, a1, b0, b1 = [await app.text(v) for v in ("a0", "a1", "b0", "b1")]
    assert a0 != a1, "siblings are drawn apart"
    assert (a0, a1) == (b0, b1), "the same seed draws the same"


def after(name: str, constant: str, *before: str, **sampling: object) -> ModelCall:
    """A call that begins with `constant`, then goes on with results of others."""
    segments: list[Segment] = [Text(text=constant)]
    segments += [s for v in before for s in (Input(variables=(v,)), Text(text=" and then "))]
    drawn = Sampling(**{"max_tokens": 40, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    segments.append(Output(variables=(name,), sampling=drawn))
    return ModelCall(id=f"call-{name}", function=name, messages=(Message(segments=tuple(segments)),))


async def value(app: Application, variable: str) -> Value:
    outcome = await app.outcome(variable)
    assert isinstance(outcome, Value), outcome
    return outcome


async def test_what_is_kept_or_computed_ahead_or_was_said_before_is_found_in_the_cache(served: Served) -> None:
    backend, app = served.backend, await served.application("caching")

    def computed() -> float:
        return backend.load().get("computed_tokens", 0.0)

    # Kept: a prompt that a call to come begins with, its inputs' values included.
    text, given = "the quick brown fox jumps over the lazy dog " * 2, Value(text="and while it rains it runs. ")
    cut = ModelCall(id="call-b", messages=(Message(segments=(Text(text=text), Input(variables=("x",)))),))
    stale = backend.load()
    await until(lambda: backend.load() is not stale, "the engine has told how it stands now")
    so_far = computed()
    backend.retain(Hold("k1", TENANT, cut, {VarId("x"): given}, 1.0))
    await until(lambda: computed() >= so_far + 32, "it is computed")
    parts = (Text(text=text), Text(text=given.text), Output(variables=("b",), sampling=Sampling(max_tokens=8)))
    await app.submit(ModelCall(id="call-b", messages=(Message(segments=parts),)))
    kept = await value(app, "b")
    assert kept.usage.cached_tokens == kept.usage.prompt_tokens - 1, "the last one's logits are wanted"
    backend.release("k1")

    # Said before: a conversation goes on from the very tokens that its answers were drawn as.
    hot = {"temperature": 2.0, "seed": 1}
    await app.submit(
        after("c", "Hello ", **hot), after("d", "Hello ", "c", **hot), after("e", "Hello ", "c", "d", **hot)
    )
    for before, then in itertools.pairwise([await value(app, v) for v in "cde"]):
        assert then.usage.cached_tokens >= whole_pages(before.usage.prompt_tokens + before.usage.output_tokens)

    # Computed ahead: the constant part of a call, while the call whose result it waits for runs.
    constant = "Zwei Boxer jagen Viktor quer durch den Park, und es regnet auf dem Deich. " * 7
    await app.submit(after("f", "first ", max_tokens=60), after("g", constant, "f"))
    ahead = await value(app, "g")
    assert ahead.usage.cached_tokens >= 128

    # And begun, once that result has been made, before the scheduler has heard of it.
    first, *_ = [key for key in backend.begun if key[2] == "call-g"]
    assert first[3] < 0
    assert ahead.attempt > 0, "what is published is an attempt's that the scheduler knows"

    # Filled in: an input is computed while it is generated, but for its last pieces. A busy machine may be late.
    length, turn, filled = 128, 0, 0
    while filled < 48 and turn < 16:
        made, read = f"h{turn}", f"i{turn}"
        producer = after(made, f"{turn} third ", max_tokens=length, temperature=0.0)
        await app.submit(producer, after(read, f"{turn} And then {text * 6}", made, max_tokens=2))
        used = (await value(app, read)).usage
        turn, filled = turn + 1, used.cached_tokens - (used.prompt_tokens - length)
    assert filled >= 48
    retention = served.cast.schedulers["scheduler"]._core.planner.retention
    assert retention is not None
    await until(lambda: not retention.kept(WorkerId("engine")), "nobody is to come, and nothing is kept")


def whole_pages(tokens: int) -> int:
    """Of so many tokens, those that can be in the cache: pages are of 16, and the last token is always computed."""
    return (tokens - 1) // 16 * 16


@pytest.mark.parametrize(("blow", "says"), [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, "hangs")])
async def test_when_an_engine_is_killed_or_hangs_another_goes_on_from_the_tokens_that_readers_have_seen(
    settings: config.Settings, blow: signal.Signals, says: str
) -> None:
    def program(name: str) -> ModelCall:
        """Two outputs in one context; `seed` makes both runs draw alike."""
        first = Output(variables=(f"{name}1",), sampling=Sampling(max_tokens=4, seed=3, temperature=1.5))
        drawn = Sampling(max_tokens=600, ignore_eos=True, seed=3, temperature=1.5)
        segments = (Text(text="once"), first, Text(text=" more"), Output(variables=(f"{name}2",), sampling=drawn))
        return ModelCall(id=f"call-{name}", messages=(Message(segments=segments),))

    async with stage(MemoryNetwork().bus) as cast:
        await cast.scheduler()
        victim = await engine(cast, settings, "victim")
        app = await application(cast)
        seen: list[Delivery] = []
        begun = asyncio.Event()

        async def read(delivery: Delivery) -> None:
            seen.append(delivery)
            begun.set()

        await app.bus.subscribe(subjects.read_chunks(app.tenant, app.session, VarId("x2")), read)
        await app.submit(program("x"))
        await asyncio.wait_for(begun.wait(), 30)
        os.kill(victim.pid, blow)
        struck = asyncio.get_running_loop().time()
        with pytest.raises(BackendDied, match=says):
            await cast.ended("victim")
        assert asyncio.get_running_loop().time() - struck < 3.5, "noticed, although the host lives and beats"
        await engine(cast, settings, "heir")
        assert isinstance(await app.outcome("x2", 60), Value)
        await app.submit(program("y"))
        assert await app.text("x1", 60) == await app.text("y1", 60)
        assert await app.text("x2", 60) == await app.text("y2", 60)
        subjects_seen = [d.subject.rsplit(".", 1)[-1] for d in seen]
        assert subjects_seen == [str(n) for n in range(len(subjects_seen))]


async def test_an_output_that_a_model_of_other_tokens_has_made_stands_in_the_context_as_its_text(
    served: Served,
) -> None:
    own = served.backend._hello.tokenizer_digest
    prompts = []
    for attempt, told in enumerate((Resumed("fox", (10**6,), True, "another"), Resumed("fox", (), True, own))):
        key = (TENANT, SessionId("unknown"), CallId("call-a"), attempt)
        served.backend.run(Job(key, call("a", outputs=2), {}, {VarId("a-0"): told}))
        *_, made, last = await served.backend.of(key)
        assert isinstance(last, JobEnded), last
        assert isinstance(made, OutputEnded)
        assert made.variable == "a-1"
        prompts.append(made.usage.prompt_tokens)
    assert prompts[0] == prompts[1]


async def test_a_model_that_is_refused_is_named_and_not_tried_again(settings: config.Settings, tmp_path: Path) -> None:
    missing = replace(settings, engine=replace(settings.engine, model=str(tmp_path)))
    async with stage(MemoryNetwork().bus) as cast:
        with pytest.raises(BackendRefused, match=tmp_path.name):
            await engine(cast, missing)
