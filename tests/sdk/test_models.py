"""Several models on one cluster: calls name one, or some of which any will do, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest

import myna
from myna import Input, Output
from myna.actors.messages import ErrorCode
from myna.actors.scheduler import attempts
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.sdk.client import Client, connect
from myna.sdk.errors import CallFailed, FunctionError
from myna.sdk.examples import several_models
from myna.sdk.models import models_of
from tests.actors.stage import Stage, stage
from tests.network import Network


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=1)]) -> None:
    """{{question}}{{answer}}"""


@pytest.fixture
async def play(network: Network) -> AsyncIterator[Stage]:
    async with stage(network.bus) as it:
        await it.scheduler()
        await it.worker("a", NoopBackend(NoopModel("alpha", aliases=("first", "both"), capacity=4)))
        await it.worker("b", NoopBackend(NoopModel("beta", aliases=("both",), capacity=4)))
        yield it


@pytest.fixture
async def client(network: Network, play: Stage) -> AsyncIterator[Client]:
    async with connect(bus=await network.bus()) as it:
        yield it


async def test_a_call_runs_on_a_model_that_its_function_names_else_its_session_else_on_any(client: Client) -> None:
    async with client.session() as free, client.session(model="beta") as bound:

        async def model(session: Any, **options: Any) -> str:
            made = ask.with_options(**options)("x", session=session)
            return str((await made.value()).model)

        assert await model(free, model="alpha") == "alpha"
        assert await model(free, model="first") == "alpha", "by another of its names"
        assert await model(free, models=["gamma", "beta"]) == "beta"
        assert await model(free) in ("alpha", "beta")
        assert await model(bound) == "beta"
        assert await model(bound, model="alpha") == "alpha"


async def test_calls_of_which_several_models_will_do_use_them_all(client: Client) -> None:
    async with client.session(model=["alpha", "beta"]) as session:
        answers = [ask(f"{n}", session=session) for n in range(8)]
        assert {(await answer.value()).model for answer in answers} == {"alpha", "beta"}
        answers = [ask.with_options(model="both")(f"{n}", session=session) for n in range(8)]
        assert {(await answer.value()).model for answer in answers} == {"alpha", "beta"}


async def test_every_model_is_asked_and_the_first_makes_one_answer_of_what_they_say(client: Client) -> None:
    assert await client.models() == ("alpha", "first", "both", "beta")
    assert await several_models.main(client, question="why?", most=3) == " ".join(f"answer{n}" for n in range(64))


async def test_a_model_that_nobody_serves_is_waited_for_a_while_and_then_told_with_those_that_are_there(
    play: Stage, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.session() as session:
        waiting = ask.with_options(model="gamma")("x", session=session)
        await session.flush()
        await play.worker("c", NoopBackend(NoopModel("gamma")))
        assert (await waiting.value()).model == "gamma"
        monkeypatch.setattr(attempts, "UNSERVED", 0.2)
        with pytest.raises(CallFailed) as error:
            await ask.with_options(models=("delta", "omega"))("x", session=session).get()
        failure = error.value.failure
        assert (failure.code, failure.retryable) == (ErrorCode.NO_WORKER, True)
        assert "no engine serves 'delta' or 'omega'" in failure.message
        assert "engines here serve alpha, beta, both, first, gamma" in failure.message


def test_names_of_models_are_given_as_one_or_several() -> None:
    assert models_of("a", "here") == ("a",)
    assert models_of(["a", "b", "a"], "here") == ("a", "b")
    assert models_of((), "here") == ()
    wrong: Any
    for wrong in (None, 7, [""], "", [b"x"], {"a": 1}):
        with pytest.raises(FunctionError, match="here: model="):
            models_of(wrong, "here")
