"""The example agent in JavaScript, as a process of Node.js, against a real server: what the wire's documentation is worth."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import myna
from myna import Variable
from myna.sdk.agent import native
from myna.sdk.client import connect
from myna.sdk.errors import CallFailed
from tests.actors.stage import stage, until
from tests.network import NatsNetwork

pytestmark = [pytest.mark.nats, pytest.mark.node]

EXAMPLES = Path(__file__).parents[2] / "sdk" / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages."""
    folder = tmp_path_factory.mktemp("javascript")
    for name in ("agent.mjs", "package.json"):
        shutil.copy(EXAMPLES / name, folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@asynccontextmanager
async def node(network: NatsNetwork, folder: Path, *arguments: str) -> AsyncIterator[Process]:
    config = network.server.config
    environment = {"MYNA_URL": network.server.url, "MYNA_USER": config.user, "MYNA_PASSWORD": config.password}
    process = await asyncio.create_subprocess_exec(
        *("node", "agent.mjs", *arguments), cwd=folder, env=os.environ | environment, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def emphasized(variable: Variable | str) -> Variable:
    return native("emphasize")(text=variable)


async def test_it_submits_a_graph_serves_a_part_of_it_and_streams_both_results(nats: NatsNetwork, folder: Path) -> None:
    async with stage(nats.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        async with node(nats, folder, "magpies") as agent:
            said, complaints = await asyncio.wait_for(agent.communicate(), 60)
        assert (agent.returncode, complaints.decode()) == (0, "")
        draft, loud = said.decode().splitlines()
        assert draft == " ".join(f"word{n}" for n in range(40))
        assert loud == draft.upper()

        async def closed() -> bool:
            return not (await cast.status()).sessions

        await until(closed, "its session is closed")


async def test_a_python_application_calls_its_function_and_streams_the_pieces(nats: NatsNetwork, folder: Path) -> None:
    async with stage(nats.bus) as cast, connect(bus=await nats.bus()), node(nats, folder, "--serve") as agent:
        await cast.scheduler()
        assert agent.stdout is not None
        assert await asyncio.wait_for(agent.stdout.readline(), 20) == b"serving emphasize\n"
        async with myna.session():
            loud = native("emphasize", stream=True)(text="so be it")
            assert [piece async for piece in loud.stream()] == ["SO ", "BE ", "IT"]
            whole = emphasized(loud)
            assert [piece async for piece in whole.stream()] == ["SO BE IT"]
        agent.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(agent.wait(), 20) == 0
        assert not (await cast.status()).workers


async def test_what_goes_wrong_in_it_is_a_failure_of_the_call_and_it_goes_on(nats: NatsNetwork, folder: Path) -> None:
    async with stage(nats.bus) as cast, connect(bus=await nats.bus()), node(nats, folder, "--serve") as agent:
        await cast.scheduler()
        assert agent.stdout is not None
        await agent.stdout.readline()
        async with myna.session():
            with pytest.raises(CallFailed, match="split"):
                await native("emphasize")(text=json.loads("7"), retries=0).get()
            assert await emphasized("on").get() == "ON"
