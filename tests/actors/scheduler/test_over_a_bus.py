"""What the scheduler makes of the graph, seen from an application: over a real bus, with real actors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from click.testing import CliRunner, Result

import myna
from myna import Input, Output
from myna.actors.messages import Usage
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.sdk import cli
from myna.sdk.client import Client, connect
from myna.sdk.errors import FunctionError
from tests.actors.stage import GatedBackend, Stage, stage, until
from tests.network import NatsNetwork, Network


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=3, temperature=0.0)]) -> None:
    """Q: {{question}}
    A: {{answer}}"""


@myna.function
def roll(question: Input, answer: Annotated[str, Output(max_tokens=3, temperature=1.0)]) -> None:
    """Q: {{question}}
    A: {{answer}}"""


ANSWER = "answer0 answer1 answer2"


@pytest.fixture
async def play(network: Network) -> AsyncIterator[Stage]:
    async with stage(network.bus) as it:
        await it.scheduler()
        yield it


@pytest.fixture
async def client(network: Network, play: Stage) -> AsyncIterator[Client]:
    async with connect(bus=await network.bus()) as it:
        yield it


# --- memoisation ------------------------------------------------------------------------------------------------------


async def test_identical_calls_of_two_sessions_are_computed_once_and_read_as_if_they_had_not(
    play: Stage, client: Client
) -> None:
    backend = GatedBackend()
    await play.worker("w", backend)
    async with client.session(memoise=True) as one, client.session(memoise=True) as two:
        chains = [ask(ask("x", session=s), session=s) for s in (one, two)]
        assert await asyncio.gather(*(chain.get() for chain in chains)) == [ANSWER, ANSWER]
        assert len(backend.jobs) == 2
        late = ask("x", session=two)
        assert [piece async for piece in late.stream()] == [ANSWER], "what was copied comes in one piece"
        assert len(backend.jobs) == 2
        value = await late.value()
        assert (value.call, value.usage) == (late.call, Usage())
        await ask("y", session=two)
        assert await asyncio.gather(roll("x", session=one).get(), roll("x", session=two).get()) == [ANSWER, ANSWER]
        assert len(backend.jobs) == 5, "what is drawn at random is drawn each time"


async def test_when_who_computes_it_is_cancelled_who_waits_for_it_computes_it(play: Stage, client: Client) -> None:
    backend = NoopBackend(NoopModel(step=0.01))
    await play.worker("w", backend)
    core = play.schedulers["scheduler"]._core
    async with client.session(memoise=True) as one, client.session(memoise=True) as two:
        first = ask("x", session=one)
        await one.flush()
        second = ask("x", session=two)
        await until(lambda: any(s.graph.calls for k, s in core.sessions.items() if k[1] == two.id), "both are known")
        await one.cancel(first)
        assert await second == ANSWER


# --- why --------------------------------------------------------------------------------------------------------------


async def test_a_client_is_told_why_a_call_runs_where_it_does_and_what_another_waits_for(
    play: Stage, client: Client
) -> None:
    await play.worker("w", NoopBackend(NoopModel(step=0.05)))
    async with client.session() as session:
        running = roll("x")
        waiting = roll(running)
        async for _ in running.stream():
            break
        (found,) = await client.why(running)
        assert (found.session, found.function, found.state, found.worker) == (session.id, "roll", "running", "w")
        assert any("was chosen because" in reason for reason in found.reasons)
        (found,) = await client.why(waiting.call)
        assert found.state == "waiting"
        assert found.reasons[0] == f"input {running.id!r} comes from call {running.call!r}, which is running"
        assert await client.why("nobody") == ()
        with pytest.raises(FunctionError, match="made by no call"):
            await client.why(session.variable())


async def test_a_follower_says_whom_it_follows(play: Stage, client: Client) -> None:
    await play.worker("w", NoopBackend(NoopModel(step=0.1)))
    async with client.session(memoise=True) as one, client.session(memoise=True) as two:
        first = ask("x", session=one)
        async for _ in first.stream():
            break
        second = ask("x", session=two)
        await two.flush()
        reasons: list[str] = []

        async def known() -> bool:
            reasons[:] = [r for found in await client.why(second) for r in found.reasons]
            return bool(reasons)

        await until(known, "the scheduler knows it")
        leader = f"call {first.call!r} of session {one.id!r}"
        assert reasons[0] == f"it takes the results of {leader}, which is identical and is running"


@pytest.mark.nats
async def test_the_command_line_tells_why_over_a_real_server(
    nats: NatsNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("MYNA_URL", nats.server.url)
    monkeypatch.setenv("MYNA_USER", nats.server.config.user)
    monkeypatch.setenv("MYNA_PASSWORD", nats.server.config.password)
    monkeypatch.setenv("MYNA_HOME", str(tmp_path))

    async def command(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli.main, arguments)

    async with stage(nats.bus) as play:
        await play.scheduler()
        await play.worker("w", NoopBackend(NoopModel(step=1.0)))
        async with connect(bus=await nats.bus()) as client, client.session() as session:
            running = roll("x")
            async for _ in running.stream():
                break
            told = await command("why", running.call)
            assert told.exit_code == 0, told.output
            first, *reasons = told.output.splitlines()
            assert first.startswith(f"roll {running.call} in session {session.id} of default: running on w for")
            assert any("was chosen because" in reason for reason in reasons)
            told = await command("why", running.call, "--session", session.id, "--json")
            (found,) = json.loads(told.output)["calls"]
            assert (found["call"], found["state"], found["worker"]) == (running.call, "running", "w")
            unknown = await command("why", "nobody")
            assert unknown.exit_code == 1
            assert "knows no call 'nobody'" in unknown.stderr
