from __future__ import annotations

import asyncio
from typing import Annotated

import pytest

import myna
from myna import Input, Output
from myna.sdk.client import Client
from myna.sdk.sync import SyncSession
from tests.actors.stage import Stage, stage
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=3)]) -> None:
    """{{question}}{{answer}}"""


@myna.function
def pair(
    x: Input, first: Annotated[str, Output(max_tokens=1)], rest: Annotated[str, Output(max_tokens=1, n=2)]
) -> None:
    """{{x}} {{first}} {{rest}}"""


ANSWER = "answer0 answer1 answer2"


@pytest.fixture
async def configured(nats: NatsNetwork, monkeypatch: pytest.MonkeyPatch) -> NatsNetwork:
    monkeypatch.setenv("MYNA_URL", nats.server.url)
    monkeypatch.setenv("MYNA_USER", nats.server.config.user or "")
    monkeypatch.setenv("MYNA_PASSWORD", nats.server.config.password or "")
    return nats


def application() -> None:
    """A program without an event loop."""
    with myna.sync.session("plain") as session:
        assert myna.current_session() is session
        variable = ask("x")
        assert variable.get(timeout=20) == ANSWER
        assert variable.done
        assert "".join(ask(variable).stream()) == ANSWER
        outputs = pair([variable, "and"])
        assert session.gather(outputs.first, *outputs.rest, timeout=20) == ["first0", "rest0", "rest0"]
        mine = session.variable("mine")
        consumer = ask(mine)
        mine.set({"a": 1})
        assert mine.json() == {"a": 1}
        assert consumer.value(timeout=20).usage.output_tokens == 3
        never = session.variable("never")
        stuck = ask(never)
        session.cancel(stuck, reason="enough")
        with pytest.raises(myna.Cancelled):
            stuck.get(timeout=20)
        with pytest.raises(myna.TimedOut):
            never.get(timeout=0.01)
        with pytest.raises(TypeError, match="await it"):
            str(variable)
    with pytest.raises(myna.SessionClosed):
        ask("x", session=session)


async def test_a_program_without_an_event_loop_uses_everything(configured: NatsNetwork) -> None:
    async with stage(configured.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        await asyncio.to_thread(application)


async def test_a_thread_uses_a_session_that_an_event_loop_has_opened(nats: NatsNetwork) -> None:
    async with stage(nats.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        await _in_a_thread(cast, Client(bus=await nats.bus()))


async def _in_a_thread(cast: Stage, client: Client) -> None:
    async with client.session() as session:
        view = SyncSession.of(session, asyncio.get_running_loop())
        assert await asyncio.to_thread(lambda: ask("x", session=view).get(timeout=20)) == ANSWER


async def test_in_async_code_the_waiting_calls_refuse_to_block_the_loop() -> None:
    with pytest.raises(myna.WrongLoop, match=r"myna\.session"), myna.sync.session():
        pass
