"""A session in a notebook, as IPython shows it, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from IPython.core.formatters import DisplayFormatter

from myna.actors.server import Server
from myna.sdk import sync
from myna.sdk.client import Client, Credential, connect
from myna.sdk.errors import SessionClosed
from tests.actors.stage import call
from tests.sdk.apart import server

__all__ = ["server"]
pytestmark = pytest.mark.nats


def shown(what: object) -> dict[str, str]:
    """What a notebook has to show of something."""
    formatter = DisplayFormatter()
    formatter.active_types = list(formatter.formatters)
    found, _ = formatter.format(what)
    told: dict[str, str] = found
    return told


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url, user=server.config.user, password=server.config.password) as it:
        yield it


async def test_a_session_is_shown_as_its_graph_from_inside_a_running_event_loop(client: Client) -> None:
    async with client.session("demo") as session:
        session.resubmit([call("first"), call("second", "first")])
        await session.lookup("second").get(timeout=20)
        told = shown(session)
        assert "image/svg+xml" in told, told
        picture = told["image/svg+xml"]
        assert picture.startswith("<svg")
        assert "first" in picture
        assert "2 calls: 2 done" in picture
        asked = await session.graph()
        assert repr(asked) == f"<graph of session {session.id}: 2 done>"
        assert shown(asked)["image/svg+xml"] == asked.svg
    assert "can't be shown: it is not open" in shown(session)["text/plain"]
    with pytest.raises(SessionClosed):
        await session.graph()


async def test_what_cant_be_asked_is_a_line_of_text(client: Client) -> None:
    async with connect(bus=client.bus) as given, given.session("demo") as session:
        assert shown(session) == {
            "text/plain": f"<Session {session.id}> (its graph can't be shown: this client was given its connection, "
            "and can't make another)"
        }
        assert (await session.graph()).graph.name == "demo"


async def test_a_synchronous_session_is_shown_too(server: Server) -> None:
    who = server.config

    def plain() -> dict[str, str]:
        with sync.session("plain", client=Client(server.url, Credential(who.user, who.password))) as session:
            assert session.graph().graph.name == "plain"
            return shown(session)

    assert "0 calls" in (await asyncio.to_thread(plain))["image/svg+xml"]
