"""Calls in a session that they share with others, and that ends under them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.actors.gateway.conftest import House, furnished
from tests.actors.stage import GatedBackend, until
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats

SESSIONS = "/myna/v1/sessions"
CHAT = {"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
REQUESTS: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {**CHAT, "n": 2},
    "/v1/completions": {"model": "default", "prompt": ["x", "y"], "max_tokens": 2},
    "/v1/responses": {"model": "default", "input": "x", "max_output_tokens": 16},
}


class Steps(GatedBackend):
    """Writes the first `free` tokens of every output, and waits with each further one for `go`."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self._free = free

    def run(self, job: object) -> None:
        for n in range(self._free, 2):
            for variable in job.call.messages[-1].segments[-1].variables:  # type: ignore[attr-defined]
                self.gates[variable, n], self.reached[variable, n] = self.go, asyncio.Event()
        super().run(job)  # type: ignore[arg-type]


@pytest.fixture
async def house(nats: NatsNetwork) -> AsyncIterator[House]:
    """Without an engine: each test has its own."""
    async with furnished(nats, worker=False) as it:
        yield it


async def engine(house: House, free: int) -> Steps:
    """The only engine."""
    backend = Steps(free)
    await house.cast.worker("steps", backend)
    return backend


async def shared(http: httpx.AsyncClient) -> str:
    """The session of single calls."""
    (session,) = (await http.get(SESSIONS)).json()["sessions"]
    return f"{SESSIONS}/{session['session']}"


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_are_made_anew_in_another_session_when_the_shared_one_has_ended(
    house: House, http: httpx.AsyncClient, stream: bool
) -> None:
    await engine(house, 2)
    await http.post("/v1/chat/completions", json=CHAT)
    for path, body in REQUESTS.items():
        await http.delete(await shared(http))
        answer = await http.post(path, json={**body, "stream": stream})
        assert answer.status_code == 200, answer.text
        assert "answer1" in answer.text
        assert "session_closed" not in answer.text


async def test_a_call_that_waits_is_made_anew_when_its_shared_session_ends(
    house: House, http: httpx.AsyncClient
) -> None:
    backend = await engine(house, 0)
    waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
    await until(lambda: len(backend.jobs) == 1, "the call did not run")
    await http.delete(await shared(http))
    await until(lambda: len(backend.jobs) == 2, "the call was not made anew")
    backend.go.set()
    answer = await waiting
    assert answer.json()["choices"][0]["message"]["content"] == "answer0 answer1"


async def test_a_stream_that_has_begun_ends_in_an_error_that_says_to_come_again(
    house: House, http: httpx.AsyncClient
) -> None:
    backend = await engine(house, 1)
    async with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if "answer0" in line:
                break
        await http.delete(await shared(http))
        rest = "".join([line async for line in lines])
    assert '"code":"unavailable"' in rest
    assert "[DONE]" not in rest
    assert len(backend.jobs) == 1


async def test_calls_that_somebody_cancels_are_not_made_anew(house: House, http: httpx.AsyncClient) -> None:
    backend = await engine(house, 0)
    waiting = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
    await until(lambda: len(backend.jobs) == 1, "the call did not run")
    await http.post(f"{await shared(http)}/cancel", json={})
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")
    assert len(backend.jobs) == 1
