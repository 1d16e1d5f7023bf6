from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner, Result

import myna
from myna.sdk import cli
from myna.sdk.client import connect
from tests.actors.stage import Stage, stage, until
from tests.network import NatsNetwork
from tests.sdk.test_agent import ANSWER, ask

pytestmark = pytest.mark.nats


async def ordered(nats: NatsNetwork, *arguments: str) -> Result:
    """What an operator's command says, in a thread of its own, as it is a process of its own."""
    config = nats.server.config
    environment = {"MYNA_URL": nats.server.url, "MYNA_USER": config.user, "MYNA_PASSWORD": config.password}
    runner = CliRunner(env=environment)
    return await asyncio.to_thread(runner.invoke, cli.main, arguments, prog_name="myna", terminal_width=200)


async def paused(cast: Stage, reason: str) -> bool:
    (worker,) = (await cast.status()).workers
    return worker.paused == reason


async def test_a_cordoned_worker_gets_no_call_until_it_is_uncordoned(nats: NatsNetwork) -> None:
    async with stage(nats.bus) as cast, connect(bus=await nats.bus()):
        await cast.scheduler()
        await cast.worker("w")
        done = await ordered(nats, "cordon", "w")
        assert (done.exit_code, done.output) == (0, "w is cordoned: 0 calls still run there\n")
        await until(lambda: paused(cast, "it is cordoned"), "the worker says so itself, to whoever will lead")
        async with myna.session():
            answer = ask(question="?")

            async def waiting() -> bool:
                return "it is cordoned" in (await ordered(nats, "why", answer.call)).output

            await until(waiting, "the call waits, and `why` says for what")
            assert (await ordered(nats, "uncordon", "w")).output == "w takes calls again\n"
            assert await answer.get() == ANSWER
        assert await paused(cast, "")


async def test_to_drain_a_worker_makes_it_leave(nats: NatsNetwork) -> None:
    async with stage(nats.bus) as cast:
        await cast.scheduler()
        await cast.worker("w")
        done = await ordered(nats, "drain", "w")
        assert (done.exit_code, done.output) == (0, "w drains: 0 calls still run there\n")
        await cast.ended("w")
        assert (await cast.status()).workers == ()


async def test_a_worker_that_is_not_there_is_said_so_with_those_that_are(nats: NatsNetwork) -> None:
    async with stage(nats.bus) as cast:
        await cast.scheduler()
        await cast.worker("w")
        for command in ("drain", "cordon", "uncordon"):
            done = await ordered(nats, command, "nobody")
            assert (done.exit_code, done.output) == (1, "Error: there is no worker 'nobody'; there are: w\n")
            assert "1 to 80" in (await ordered(nats, command, "no body")).output
