"""Calls through endpoints, as an application sees them: real actors over a bus, and real servers that fail as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from myna.actors.endpoints.backend import EndpointBackend
from myna.actors.endpoints.budget import Ledger
from myna.actors.endpoints.settings import Budget, BudgetOf, Dialect, Prices
from myna.actors.messages import (
    Cancel,
    ErrorCode,
    Failure,
    FinishReason,
    FormatKind,
    Message,
    ModelCall,
    Output,
    ResponseFormat,
    Sampling,
    StreamMode,
    Text,
    Value,
)
from myna.actors.worker.noop import NoopBackend, NoopModel
from tests.actors.endpoints.faulty import Faulty, Gate, breaks_off, faulty, refuses, says, sends
from tests.actors.stage import Application, Audience, Stage, call, stage, until
from tests.network import MemoryNetwork


@dataclass
class Play:
    """A scheduler, an application with an open session, and endpoints that are added."""

    stage: Stage
    application: Application
    audience: Audience

    async def add(self, server: Faulty, name: str = "e", *budgets: Budget, **options: Any) -> EndpointBackend:
        backend = EndpointBackend(server.endpoint(name, **options), Ledger(budgets))
        await self.stage.worker(name, backend)
        return backend

    async def submit(self, name: str, **options: Any) -> None:
        await self.application.submit(call(name, **options))

    async def outcome(self, name: str, **options: Any) -> Any:
        await self.submit(name, **options)
        return await self.application.outcome(name)

    async def paused(self, worker: str) -> str:
        return next(w.paused for w in (await self.stage.status()).workers if w.worker == worker)

    async def until_paused(self, worker: str) -> None:
        async def there() -> bool:
            return bool(await self.paused(worker))

        await until(there, f"{worker} was never paused")


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    async with stage(MemoryNetwork().bus) as it:
        await it.scheduler()
        bus = await it.bus("application")
        application = Application(bus, "s1")
        await application.open()
        yield Play(it, application, await Audience.of(bus, "s1"))


async def test_a_prompt_is_completed_and_streamed_and_its_cost_is_kept(play: Play) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 40}}
    async with faulty(says("one", " two", usage=usage)) as server:
        await play.add(server, prices=Prices(input=1.0, cached=0.5, output=10.0))
        value = await play.outcome("a", models=("ours",))
        assert isinstance(value, Value)
        assert (value.text, value.model, value.finish) == ("one two", "ours", "stop")
        assert (value.usage.prompt_tokens, value.usage.cached_tokens, value.usage.output_tokens) == (100, 40, 2)
        assert value.usage.cost == 60 + 20 + 20, "millionths: fresh, cached and drawn tokens, each at its price"
        assert play.audience.check("a") == "one two"
        (asked,) = server.asked
        assert (asked.path, asked.body["model"], asked.body["prompt"]) == ("/v1/completions", "its-model", "a: ")

        async def booked() -> bool:
            (tenant,) = (await play.stage.status()).tenants
            return tenant.used.cost == 100

        await until(booked, "the tenant's usage holds no cost")


async def test_outputs_of_one_call_are_asked_for_one_after_another_and_each_prompt_begins_with_the_one_before(
    play: Play,
) -> None:
    async with faulty(says("red"), says("blue")) as server:
        await play.add(server)
        await play.submit("a", outputs=2)
        assert [await play.application.text(f"a-{i}") for i in range(2)] == ["red", "blue"]
        first, second = (asked.body["prompt"] for asked in server.asked)
        assert second == first + "red", "the first output stands where it was generated"


async def test_one_too_many_is_asked_again_when_the_endpoint_said_and_costs_no_try(play: Play) -> None:
    async with faulty(refuses(429, retry_after="0.3"), refuses(429, retry_after_ms="100")) as server:
        await play.add(server)
        began = asyncio.get_running_loop().time()
        assert (await play.outcome("a", retries=0)).text == "one two"
        assert asyncio.get_running_loop().time() - began >= 0.4
        assert len(server.asked) == 3


@pytest.mark.parametrize("fault", [refuses(429, retry_after="60"), refuses(503), refuses(500), refuses(401)])
async def test_what_one_endpoint_can_t_do_another_does_at_once(play: Play, fault: Any) -> None:
    async with faulty(fault) as bad, faulty(says("good")) as good:
        await play.add(bad, "bad")
        await play.submit("a", models=("ours",))
        await play.until_paused("bad")
        await play.add(good, "good")
        assert await play.application.text("a") == "good"
        assert len(bad.asked) == 1, "the call waited for another endpoint while this one paused"


@pytest.mark.parametrize("fault", [refuses(429, retry_after="60"), refuses(503)], ids=["too many", "away"])
async def test_what_an_endpoint_can_t_do_an_engine_of_ours_does_at_once(play: Play, fault: Any) -> None:
    async with faulty(fault) as server:
        await play.add(server)
        await play.submit("a", models=("ours",), retries=0)
        await play.until_paused("e")
        await play.stage.worker("engine", NoopBackend(NoopModel("ours")))
        assert await play.application.text("a") == "a0 a1"
        assert len(server.asked) == 1, "the endpoint said when to come again, and is left alone until then"


async def test_an_endpoint_that_nobody_serves_gives_way_to_an_engine_of_ours_and_the_other_way_round(
    play: Play,
) -> None:
    async with faulty() as server:
        gone = server.port
    async with faulty() as alive:
        dead = EndpointBackend(Faulty(port=gone).endpoint("dead"), Ledger())
        await play.stage.worker("dead", dead)
        assert "nobody" in await play.paused("dead") or "reached" in await play.paused("dead")
        await play.stage.worker("engine", NoopBackend(NoopModel("ours")))
        assert (await play.outcome("a", models=("ours",))).text == "a0 a1"
        await play.stage.crash("engine")
        await play.add(alive, "alive")
        assert (await play.outcome("b", models=("ours",))).text == "one two"


async def test_an_engine_of_ours_does_not_go_on_with_an_answer_that_an_endpoint_began(play: Play) -> None:
    gate = Gate("begun")
    async with faulty(gate) as server:
        await play.add(server)
        await play.submit("a", models=("ours",))
        await until(lambda: "a" in play.audience.chunks, "no chunk was published")
        await play.stage.worker("engine", NoopBackend(NoopModel("ours")))
        await play.stage.crash("e")
        failure = await play.application.outcome("a")
        assert isinstance(failure, Failure), "an endpoint tells no tokens from which another could go on"
        assert (failure.code, failure.retryable) == (ErrorCode.WORKER_LOST, True)
        assert "can't go on from there" in failure.message


@pytest.mark.parametrize(
    "fault",
    [breaks_off("one"), breaks_off("one", then=b"data: {nonsense\n\n"), sends(b'data: {"choices": 7}\n\n')],
    ids=["cut", "nonsense", "another form"],
)
async def test_a_buffered_call_is_tried_again_whatever_happens_to_its_first_answer(play: Play, fault: Any) -> None:
    async with faulty(fault) as server:
        await play.add(server)
        place = Output(variables=("a",), sampling=Sampling(max_tokens=4), stream=StreamMode.BUFFERED)
        await play.application.submit(ModelCall(id="call-a", messages=(Message(segments=(Text(text="?"), place)),)))
        assert await play.application.text("a") == "one two"
        assert len(server.asked) == 2


async def test_after_its_first_chunk_an_answer_that_breaks_off_is_a_failure_that_may_be_tried_anew(play: Play) -> None:
    gate = Gate("begun", finish=False)
    async with faulty(gate) as server:
        await play.add(server)
        await play.submit("a")

        async def seen() -> bool:
            return "a" in play.audience.chunks

        await until(seen, "no chunk was published")
        gate.opened.set()
        failure = await play.application.outcome("a")
        assert isinstance(failure, Failure)
        assert (failure.code, failure.retryable) == (ErrorCode.ENGINE_ERROR, True)
        assert "in the middle" in failure.message
        assert (await play.outcome("b")).text == "one two", "the endpoint is used again"


async def test_an_endpoint_that_hangs_is_left_and_the_call_goes_elsewhere(play: Play) -> None:
    gate = Gate()
    async with faulty(gate) as server, faulty(says("good")) as good:
        await play.add(server, "slow", first_seconds=0.2, idle_seconds=0.2)
        await play.submit("a")
        await gate.reached.wait()
        await play.add(good, "good")
        assert await play.application.text("a") == "good"
        await gate.left.wait()


async def test_a_cancelled_call_is_taken_from_the_endpoint(play: Play) -> None:
    gate = Gate("begun")
    async with faulty(gate) as server:
        await play.add(server)
        await play.submit("a")
        await gate.reached.wait()
        await play.application.log(Cancel(calls=("call-a",)))
        await gate.left.wait()


async def test_no_more_calls_run_at_once_than_the_endpoint_takes(play: Play) -> None:
    async with faulty(usual=says("w")) as server:
        await play.add(server, concurrency=3)
        await play.application.submit(*(call(f"c{n}") for n in range(20)))
        assert [await play.application.text(f"c{n}") for n in range(20)] == ["w"] * 20
        assert server.busiest <= 3


async def test_a_tenant_over_its_budget_gets_a_typed_failure_and_is_not_tried_again(play: Play) -> None:
    async with faulty(usual=says("w", usage={"prompt_tokens": 50, "completion_tokens": 50})) as server:
        await play.add(server, "e", Budget(of=BudgetOf.TENANT, tokens=120))
        assert (await play.outcome("a", tokens=50)).text == "w"
        failure = await play.outcome("b", tokens=50)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.retryable) == (ErrorCode.OVER_QUOTA, True)
        assert "120 tokens, of which 100 are used" in failure.message
        assert len(server.asked) == 1


async def test_an_output_that_is_cut_before_it_has_its_format_ends_as_with_our_own_engine(play: Play) -> None:
    form = ResponseFormat(kind=FormatKind.JSON_OBJECT)
    cut, whole = says('{"a": ', finish="length"), says('{"a": ', "1}")

    def chat(name: str, *variables: str, partial: bool = False) -> ModelCall:
        place = Output(variables=variables or (name,), name=name, format=form, partial=partial)
        turns = (
            Message(role="user", segments=(Text(text="?"),)),
            Message(role="assistant", segments=(place,)),
        )
        return ModelCall(id=name, messages=turns)

    async with faulty(cut, cut, whole, whole, cut, whole) as server:
        await play.add(server, dialect=Dialect.LLAMACPP, concurrency=1)
        for asked in (chat("cut"), chat("partial", partial=True), chat("whole")):
            await play.application.submit(asked)
            await play.application.outcome(asked.id)
        failure = await play.application.outcome("cut")
        assert isinstance(failure, Failure)
        assert (failure.code, failure.retryable) == (ErrorCode.TRUNCATED, False)
        assert "max_tokens" in failure.message
        partial = await play.application.outcome("partial")
        assert isinstance(partial, Value)
        assert (partial.text, partial.finish) == ('{"a": ', FinishReason.LENGTH)
        assert await play.application.text("whole") == '{"a": 1}'
        await play.application.submit(chat("three", "x", "y", "z"))
        assert await play.application.text("x") == '{"a": 1}'
        failure = await play.application.outcome("y")
        assert isinstance(failure, Failure)
        assert failure.code is ErrorCode.TRUNCATED
        assert len(server.asked) == 6, "its siblings were drawn all the same"


async def test_what_can_t_be_asked_there_is_refused_with_what_would_do(play: Play) -> None:
    async with faulty() as server:
        await play.add(server)
        place = Output(variables=("a",), sampling=Sampling(top_k=4))
        await play.application.submit(ModelCall(id="c", messages=(Message(segments=(Text(text="?"), place)),)))
        failure = await play.application.outcome("a")
        assert isinstance(failure, Failure)
        assert failure.code is ErrorCode.INVALID_SAMPLING
        assert "'top_k'" in failure.message
        assert server.asked == []


async def test_a_prompt_that_the_endpoint_finds_too_long_fails_with_that_code_and_the_endpoint_stays_open(
    play: Play,
) -> None:
    async with faulty(refuses(400, "too long", code="context_length_exceeded")) as server:
        await play.add(server)
        failure = await play.outcome("a")
        assert (failure.code, failure.retryable) == (ErrorCode.PROMPT_TOO_LONG, False)
        assert await play.paused("e") == ""


async def test_calls_that_share_a_prefix_go_to_the_same_endpoint(play: Play) -> None:
    async with faulty() as one, faulty() as two:
        await play.add(one, "one")
        await play.add(two, "two")
        prefix = "rules " * 400

        def sharing(name: str, prefix: str) -> ModelCall:
            place = Output(variables=(name,), sampling=Sampling(max_tokens=2))
            segments = (Text(text=prefix), Text(text=name), place)
            return ModelCall(id=f"call-{name}", messages=(Message(segments=segments),))

        for n in range(8):
            await play.application.submit(sharing(f"x{n}", prefix), sharing(f"y{n}", prefix[::-1]))
            for name in (f"x{n}", f"y{n}"):
                await play.application.text(name)
        begins = [{asked.body["prompt"][:5] for asked in server.asked} for server in (one, two)]
        assert sorted(map(len, begins)) == [1, 1], "each prefix has been computed at one endpoint only"


async def test_what_costs_money_is_used_only_by_calls_that_name_it(play: Play) -> None:
    async with faulty() as server:
        await play.add(server, "hosted", prices=Prices(output=1.0))
        await play.submit("a")
        await play.stage.worker("engine", NoopBackend())
        assert await play.application.text("a") == "a0 a1"
        assert (await play.outcome("b", models=("ours",))).text == "one two"
        assert len(server.asked) == 1


async def test_models_that_are_not_configured_are_those_that_the_endpoint_lists(play: Play) -> None:
    async with faulty(models=("m1", "m2")) as server:
        await play.add(server, models={})
        (worker,) = (await play.stage.status()).workers
        assert worker.serves == ("m1", "m2")
        assert (await play.outcome("a", models=("other", "m2"))).model == "m2"
        assert server.asked[0].body["model"] == "m2"


async def test_an_endpoint_that_serves_several_of_a_call_s_models_takes_the_first_that_it_names(play: Play) -> None:
    async with faulty() as server:
        await play.add(server, models={"small": "its-small", "large": "its-large"})
        for name, models, taken in (("a", ("large", "small"), "large"), ("b", ("other", "small", "large"), "small")):
            assert (await play.outcome(name, models=models)).model == taken
        assert [asked.body["model"] for asked in server.asked] == ["its-large", "its-small"]


async def test_of_models_at_two_endpoints_the_call_goes_where_one_answers(play: Play) -> None:
    async with faulty(refuses(503), usual=says("one")) as one, faulty(usual=says("two")) as two:
        await play.add(one, "one", models={"first": "its"})
        await play.add(two, "two", models={"second": "its"})
        value = await play.outcome("a", models=("first", "second"), retries=0)
        assert (value.text, value.model) == ("two", "second")
        assert len(one.asked) == 1, "among equals the first that is named is asked first"


async def test_a_key_that_is_refused_stops_the_endpoint_and_is_told_to_nobody(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "sk-very-secret")
    async with faulty(looks=[refuses(401, "wrong key: sk-very-secret")] * 3) as server:
        backend = await play.add(server, key_env="SECRET_KEY", health_seconds=0.1)
        assert "refuses its key" in await play.paused("e")
        assert backend.load()["failures"] >= 1
        (worker,) = (await play.stage.status()).workers
        assert worker.serves == ()
