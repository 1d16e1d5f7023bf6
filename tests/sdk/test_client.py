from __future__ import annotations

import asyncio
from typing import Annotated

import pytest

import myna
from myna import Input, Output
from myna.actors import subjects
from myna.sdk import client as clients
from myna.sdk.client import Client
from tests.actors.stage import TENANT, stage
from tests.network import NatsNetwork


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=2)]) -> None:
    """{{question}}{{answer}}"""


async def test_a_client_ends_the_sessions_that_are_still_open(client: Client) -> None:
    session = client.session()
    await session.open()
    waiting = asyncio.create_task(session.variable().get())
    await session.flush()
    await client.close()
    with pytest.raises((myna.SessionClosed, myna.Cancelled)):
        await waiting
    assert session.closed
    await session.close()


async def test_inside_a_clients_block_sessions_use_it(client: Client) -> None:
    async with myna.session("mine") as session:
        assert session.id.startswith("mine-")
        assert await ask("x") == "answer0 answer1"


async def test_an_unopened_client_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = Client().bus


@pytest.fixture
def configured(nats: NatsNetwork, monkeypatch: pytest.MonkeyPatch) -> NatsNetwork:
    """The environment names a real server."""
    monkeypatch.setenv("MYNA_URL", nats.server.url)
    monkeypatch.setenv("MYNA_USER", nats.server.config.user or "")
    monkeypatch.setenv("MYNA_PASSWORD", nats.server.config.password or "")
    return nats


@pytest.mark.nats
async def test_the_default_connection_is_shared_and_closes_with_its_last_session(configured: NatsNetwork) -> None:
    async with stage(configured.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        async with myna.session("one"), myna.session("two"):
            default = clients._DEFAULTS[asyncio.get_running_loop()]
            bus = default.bus
            assert bus.connected
            assert await ask("x") == "answer0 answer1"
        assert not bus.connected
        async with myna.session("three"):
            assert await ask("x") == "answer0 answer1"


@pytest.mark.nats
async def test_a_wrong_password_is_said_so(configured: NatsNetwork) -> None:
    from myna.actors.bus import NotAllowed

    with pytest.raises(NotAllowed):
        await myna.connect(configured.server.url, user="somebody", password="wrong")


@pytest.mark.nats
async def test_a_server_that_is_killed_and_comes_back_loses_no_value(configured: NatsNetwork) -> None:
    """The server dies while results are awaited; what was said and made meanwhile is found after it is back."""
    async with stage(configured.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        async with myna.session() as session:
            first = ask("x")
            assert await first.get(timeout=20) == "answer0 answer1"
            late = session.variable("late")
            await session.flush()
            waiting = asyncio.create_task(late.get(timeout=60))
            await asyncio.sleep(0)
            await configured.server.kill()
            await configured.server.restart()
            await late.set("here")
            assert await waiting == "here"
            assert await ask(late).get(timeout=60) == "answer0 answer1"


@pytest.mark.nats
async def test_a_session_keeps_itself_alive(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    signs: asyncio.Queue[str] = asyncio.Queue()

    async def sign(delivery: object) -> None:
        signs.put_nowait(delivery.subject)  # type: ignore[attr-defined]

    await bus.subscribe(subjects.ALIVE_ALL, sign)
    async with Client(bus=await nats.bus()).session(ttl=0.2) as session:
        assert await asyncio.wait_for(signs.get(), 10) == subjects.alive(TENANT, session.id)
