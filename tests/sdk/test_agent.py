from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

import myna
from myna import Input, Output
from myna.actors.messages import Argument, ErrorCode, NativeCall, StreamMode, Value
from myna.actors.messages import Input as WireInput
from myna.sdk.agent import Agent, native
from myna.sdk.client import Client
from myna.sdk.errors import NotReady
from myna.sdk.serving import find_agents, fit, hosting
from tests.actors.stage import Stage, stage
from tests.network import NatsNetwork, Network


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=2)]) -> None:
    """{{question}}{{answer}}"""


ANSWER = "answer0 answer1"


@myna.agent
async def shout(text: str) -> str:
    """Upper case."""
    return text.upper()


@myna.agent
def count(items: list[str], extra: int = 1) -> dict[str, int]:
    return {"n": len(items) + extra}


@myna.agent
async def describe(data: dict[str, Any], whole: Value) -> str:
    return f"{sorted(data)} {whole.usage.output_tokens}"


@myna.agent
async def spell(text: str) -> AsyncIterator[str]:
    for letter in text:
        yield letter


@myna.agent
def spell_plainly(text: str) -> Iterator[str]:
    yield from text


@myna.agent
async def delegate(text: str) -> Any:
    return ask(text)


@myna.agent
def delegate_plainly(text: str) -> Any:
    assert ask(text).get(timeout=20) == ANSWER
    return ask(text)


@myna.agent
def fail(text: str) -> str:
    raise ValueError(f"no {text}")


@myna.agent
async def fail_inside(text: str) -> Any:
    return await fail(text)


@myna.agent
async def odd(text: str) -> object:
    return object()


@myna.agent
async def nothing(text: str) -> None:
    return None


ALL = (shout, count, describe, spell, spell_plainly, delegate, delegate_plainly, fail, fail_inside, odd, nothing)


@pytest.fixture
async def served(network: Network, client: Client) -> AsyncIterator[Client]:
    async with hosting(await network.bus(), *ALL):
        yield client


async def test_agents_are_nodes_of_the_graph(served: Client) -> None:
    async with served.session() as session:
        loud = shout(ask("x"))
        numbers = count([loud, loud], extra=3)
        assert await ask(loud) == ANSWER
        assert await loud == ANSWER.upper()
        assert await numbers.json() == {"n": 5}
        assert await describe(numbers, ask("y")) == "['n'] 2"
        assert await shout("a constant") == "A CONSTANT"
        assert await native("shout")(text=loud) == ANSWER.upper()
        assert await nothing(loud) == ""
        assert await session.gather(*(shout(f"{i}") for i in range(30))) == [f"{i}" for i in range(30)]


@pytest.mark.parametrize("speller", [spell, spell_plainly], ids=lambda a: a.name)
async def test_generators_stream(served: Client, speller: Agent) -> None:
    async with served.session():
        variable = speller("letters")
        assert "".join([piece async for piece in variable.stream()]) == "letters"
        assert await variable == "letters"


@pytest.mark.parametrize("agent", [delegate, delegate_plainly], ids=lambda a: a.name)
async def test_an_agent_submits_calls_in_the_session_that_it_serves_and_may_return_a_variable(
    served: Client, agent: Agent
) -> None:
    async with served.session():
        assert await agent("x") == ANSWER


async def test_an_exception_is_a_typed_failure_that_flows_down_to_the_first_cause(served: Client) -> None:
    async with served.session():
        for variable in (fail("x"), ask(fail("x")), fail_inside("x"), ask(fail_inside("x"))):
            with pytest.raises(myna.CallFailed, match="ValueError: no x") as caught:
                await variable
            assert (caught.value.code, caught.value.function) == (ErrorCode.NATIVE_ERROR, "fail")
        with pytest.raises(myna.CallFailed, match="text or JSON data"):
            await odd("x")
        assert await shout("still served") == "STILL SERVED"


async def test_an_argument_that_does_not_fit_fails_that_call_by_name(served: Client) -> None:
    async with served.session():
        with pytest.raises(myna.CallFailed, match="argument 'data'") as caught:
            await describe(ask("no json"), ask("x"))
        assert caught.value.code is ErrorCode.INVALID_CALL
        with pytest.raises(myna.CallFailed, match="unexpected keyword argument 'colour'"):
            await native("shout")(text="x", colour="red")


async def test_a_cancelled_call_cancels_its_coroutine(network: Network, client: Client) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def sleeper(text: str) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return text

    agent = Agent(sleeper, "sleeper", 1)
    async with hosting(await network.bus(), agent), client.session() as session:
        variable = agent("x")
        await begun.wait()
        await session.cancel(variable)
        await asyncio.wait_for(stopped.wait(), 20)
        with pytest.raises(myna.Cancelled):
            await variable


async def test_a_process_runs_no_more_calls_at_once_than_it_said(network: Network, client: Client) -> None:
    running = most = 0

    async def careful(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return n

    agent = Agent(careful, "careful", 3)
    async with hosting(await network.bus(), agent), client.session() as session:
        assert await session.gather(*(agent(i) for i in range(20))) == [str(i) for i in range(20)]
    assert most <= 3


async def test_the_work_of_a_dead_agent_process_is_given_to_another(
    network: Network, cast: Stage, client: Client
) -> None:
    begun = asyncio.Event()

    async def stuck(text: str) -> str:
        begun.set()
        await asyncio.Event().wait()
        return text

    async def quick(text: str) -> str:
        return text.upper()

    doomed_bus = await network.bus()
    async with client.session():
        async with hosting(doomed_bus, Agent(stuck, "job", 1)):
            variable = Agent(quick, "job", 1)("x")
            await begun.wait()
            await doomed_bus.close()  # as kill -9: without a goodbye
        async with hosting(await network.bus(), Agent(quick, "job", 1)):
            assert await variable.get(timeout=60) == "X"


# --- Without a network ------------------------------------------------------------------------------------------------


def test_a_call_is_data_and_generators_are_streamed() -> None:
    call = spell.prepare({"text": "x"}).call
    assert isinstance(call, NativeCall)
    assert (call.function, call.stream) == ("spell", StreamMode.LIVE)
    assert call.arguments == (Argument(name="text", constant="x"),)
    assert shout.prepare({}).call.stream is StreamMode.BUFFERED  # type: ignore[union-attr]


def test_wrong_calls_and_declarations_are_refused_by_name() -> None:
    with pytest.raises(myna.FunctionError, match=r"'shout'.*missing a required argument: 'text'"):
        shout()
    with pytest.raises(myna.FunctionError, match="argument 'text' is a object"):
        shout.prepare({"text": object()})
    with pytest.raises(myna.FunctionError, match="two agents are named 'shout'"):
        myna.agent(name="shout")(lambda text: text)
    with pytest.raises(myna.FunctionError, match="concurrency=0"):
        myna.agent(name="none", concurrency=0)(lambda text: text)
    with pytest.raises(myna.NoSession):
        shout("x")
    with pytest.raises(myna.NoSession):
        myna.current_session()


@pytest.mark.parametrize(
    ("texts", "annotation", "expected"),
    [
        (["a", "b"], str, "a|b"),
        (["a"], str | None, "a"),
        (["a", "b"], list[str], ["a", "b"]),
        (["[1, 2]"], list[int], [1, 2]),
        (["1", "2"], list[int], [1, 2]),
        (["3.5"], float, 3.5),
        (["true"], Any, True),
    ],
)
def test_values_come_as_the_annotation_says(texts: list[str], annotation: Any, expected: Any) -> None:
    assert fit([Value(text=t) for t in texts], "|", annotation) == expected


@pytest.mark.parametrize(("texts", "annotation"), [(["a"], int), (["1", "2"], int), (["1", "2"], Value), (["x"], Any)])
def test_values_that_do_not_fit_are_refused(texts: list[str], annotation: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        fit([Value(text=t) for t in texts], "|", annotation)


def test_the_wire_carries_lists_of_variables_with_their_joiner() -> None:
    from myna.actors.messages import SessionId, VarId
    from myna.sdk.variable import Placeholder

    items = [Placeholder(SessionId("s"), VarId(n), n) for n in "ab"]
    (argument,) = native("f", joiner="-").prepare({"x": items}).call.arguments  # type: ignore[union-attr]
    assert argument.input == WireInput(variables=("a", "b"), joiner="-", name="x")
    with pytest.raises(myna.FunctionError, match="mixes variables"):
        native("f").prepare({"x": [items[0], "text"]})


# --- Processes --------------------------------------------------------------------------------------------------------

MODULE = """
import myna

@myna.agent
async def hello(name: str) -> str:
    return f"hello {name}"

@myna.agent
async def bye(name: str) -> str:
    return f"bye {name}"
"""


@pytest.fixture
def greeter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "greeter.py").write_text(MODULE)
    (tmp_path / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_targets_name_modules_or_agents_in_them(greeter: Path) -> None:
    assert [a.name for a in find_agents(["greeter"])] == ["hello", "bye"]
    assert [a.name for a in find_agents(["greeter:bye", "greeter:bye"])] == ["bye"]
    for target, says in (("nowhere", "can't be imported"), ("greeter:no", "is no agent"), ("empty", "has no agents")):
        with pytest.raises(NotReady, match=says):
            find_agents([target])


@pytest.mark.nats
async def test_an_agent_process_serves_and_a_signal_ends_it(nats: NatsNetwork, greeter: Path) -> None:
    environment = {
        **os.environ,
        "MYNA_URL": nats.server.url,
        "MYNA_USER": nats.server.config.user or "",
        "MYNA_PASSWORD": nats.server.config.password or "",
        "PYTHONPATH": str(greeter),
    }
    code = "import asyncio, myna.sdk.serving as s; asyncio.run(s.serve_targets(('greeter:hello',), None))"
    async with stage(nats.bus) as cast:
        await cast.scheduler()
        process = await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-c", code, env=environment)
        try:
            async with myna.connect(bus=await nats.bus()) as client, client.session():
                assert await native("hello")(name="you").get(timeout=60) == "hello you"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
