"""What holds for every API: who may ask, how much, and what becomes of a client that leaves or dawdles."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import httpx
import pytest

from myna.actors.config import ConfigError, GatewaySettings
from myna.actors.gateway import keys
from myna.actors.gateway.server import Gateway
from tests.actors.gateway.conftest import House
from tests.actors.stage import GatedBackend, until
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats


class Endless(GatedBackend):
    """Generates until it is cancelled, and says when that was."""

    def __init__(self, word: str = " word") -> None:
        super().__init__(step=0.001, text=word)
        self.cancelled = asyncio.Event()

    def cancel(self, key: object) -> None:
        self.cancelled.set()
        super().cancel(key)  # type: ignore[arg-type]


def chat(tokens: int = 2, **more: object) -> dict[str, object]:
    return {"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, **more}


async def recast(house: House, backend: GatedBackend) -> None:
    """Another engine in the place of the no-op one."""
    await house.cast.crash("worker")
    await house.cast.worker("other", backend)


class Raw:
    """A client that reads as slowly as it likes, and leaves when it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def post(cls, gateway: Gateway, path: str, body: object) -> Raw:
        url = httpx.URL(gateway.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        return cls(reader, writer)

    async def leave(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_is_cancelled_when_its_client_leaves(house: House, gateway: Gateway, stream: bool) -> None:
    backend = Endless()
    await recast(house, backend)
    client = await Raw.post(gateway, "/v1/chat/completions", chat(10**6, stream=stream))
    await until(lambda: bool(backend.jobs), "the call did not run")
    if stream:
        await client.reader.readuntil(b"word")
    await client.leave()
    await asyncio.wait_for(backend.cancelled.wait(), 20)


async def test_a_slow_reader_holds_up_no_engine_and_misses_nothing(house: House, gateway: Gateway) -> None:
    word = "x" * 4000 + "."
    backend = GatedBackend(step=0.0005, text=word)
    await recast(house, backend)
    client = await Raw.post(gateway, "/v1/chat/completions", chat(1000, stream=True))  # 4 MB, of which none is read
    done = house.cast.workers["other"]
    await until(lambda: bool(backend.jobs), "the call did not run")
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as other:

        async def ended() -> bool:
            sessions = (await other.get("/myna/v1/sessions")).json()["sessions"]
            return any(s["done"] for s in sessions)

        await until(ended, "the engine waits for a reader")
    assert done is not None
    got = b""
    while b"[DONE]" not in got[-200:]:
        got += await asyncio.wait_for(client.reader.read(1 << 16), 20)
    assert got.count(b"x" * 4000) == 1000 or got.count(b".") >= 1000
    await client.leave()


async def test_a_request_that_runs_is_finished_before_the_end_and_no_new_one_is_taken(house: House) -> None:
    gateway = await house.open()
    backend = GatedBackend(step=0.0)
    await recast(house, backend)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:
        backend._step = 0.02
        running = asyncio.create_task(http.post("/v1/chat/completions", json=chat(20)))
        await until(lambda: bool(backend.jobs), "the call did not run")
        await house.shut(gateway)
        answer = await running
        assert answer.json()["choices"][0]["message"]["content"].endswith("answer19")
        with pytest.raises(httpx.ConnectError):
            await http.get("/healthz")


async def test_while_the_network_is_gone_it_lives_but_is_not_ready_and_says_to_come_again(
    house: House, http: httpx.AsyncClient, nats: NatsNetwork
) -> None:
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    await nats.server.stop()
    await until(lambda: _is(http, "/readyz", 503), "it is still ready")
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/v1/models", timeout=20)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def _is(http: httpx.AsyncClient, path: str, status: int) -> bool:
    return (await http.get(path)).status_code == status


async def test_bodies_have_a_limit_and_must_be_json(house: House) -> None:
    gateway = await house.open(GatewaySettings(max_body=1000))
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        large = await http.post("/v1/chat/completions", json=chat(user="x" * 1000))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")

        async def parts() -> object:
            for _ in range(20):
                yield b"x" * 100

        assert (await http.post("/v1/completions", content=parts())).status_code == 413  # type: ignore[arg-type]
        for text in ("", "{", "[]", "nul", '{"messages": 1}', "[" * 900, '"\\ud800"'):
            wrong = await http.post("/v1/chat/completions", content=text)
            assert wrong.status_code == 400, text
            assert wrong.json()["error"]["type"] == "invalid_request_error"
        assert (await http.get("/v1/nowhere")).json()["error"]["code"] == "not_found"
        assert (await http.put("/v1/completions")).status_code == 405


async def test_keys_say_whose_a_request_is_and_change_without_a_restart(house: House, tmp_path: Path) -> None:
    first, entry = keys.make("acme", "laptop")
    second, later = keys.make("globex", "server")
    table = tmp_path / "keys.toml"
    table.write_text(entry)
    gateway = await house.open(GatewaySettings(keys=table))
    async with httpx.AsyncClient(base_url=gateway.url) as http:

        async def ask(key: str | None) -> int:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return (await http.post("/myna/v1/sessions", json={}, headers=headers)).status_code

        assert [await ask(None), await ask("wrong"), await ask(second), await ask(first)] == [401, 401, 401, 201]
        table.write_text(entry + later)
        os.utime(table, (1, 1))
        await until(lambda: _granted(ask, second), "the new key is not known")
        seen = await http.get("/myna/v1/sessions", headers={"api-key": second})
        assert all(s["session"] for s in seen.json()["sessions"])
        status = await house.cast.status()
        assert {s.tenant for s in status.sessions} == {"acme", "globex"}
        mine = (await http.get("/myna/v1/sessions", headers={"api-key": first})).json()["sessions"]
        assert len(mine) == sum(s.tenant == "acme" for s in status.sessions)


async def _granted(ask: object, key: str) -> bool:
    return await ask(key) == 201  # type: ignore[operator]


async def test_a_key_has_a_rate_and_is_told_when_to_come_again(house: House, tmp_path: Path) -> None:
    key, entry = keys.make("acme", "laptop")
    table = tmp_path / "keys.toml"
    table.write_text(entry + "rate = 6\n")
    gateway = await house.open(GatewaySettings(keys=table))
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}) as http:
        assert (await http.get("/v1/models")).status_code == 200
        refused = await http.get("/v1/models")
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 10


async def test_strangers_need_keys(house: House) -> None:
    with pytest.raises(ConfigError, match="needs a table of API keys"):
        await house.open(GatewaySettings(host="0.0.0.0"))


async def test_without_keys_web_pages_are_refused(http: httpx.AsyncClient) -> None:
    rebound = await http.get("/v1/models", headers={"host": "evil.example:9000"})
    foreign = await http.post("/v1/completions", content="{}", headers={"origin": "https://evil.example"})
    assert (rebound.status_code, foreign.status_code) == (403, 403)
    assert (await http.get("/v1/models", headers={"origin": "http://localhost:3000"})).status_code == 200


async def test_cors_is_off_until_an_origin_is_named(house: House, http: httpx.AsyncClient, tmp_path: Path) -> None:
    origin = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in (await http.get("/healthz", headers=origin)).headers
    key, entry = keys.make("acme", "page")
    table = tmp_path / "keys.toml"
    table.write_text(entry)
    gateway = await house.open(GatewaySettings(keys=table, origins=("https://app.example",)))
    async with httpx.AsyncClient(base_url=gateway.url) as page:
        asked = await page.options("/v1/chat/completions", headers=origin)
        assert asked.headers["access-control-allow-origin"] == "https://app.example"
        other = await page.options("/v1/chat/completions", headers={**origin, "origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
        assert (await page.get("/v1/models", headers={"api-key": key, **origin})).status_code == 200


async def test_single_calls_share_a_session_that_is_renewed(
    house: House, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("myna.actors.gateway.tenancy.SHARED_CALLS", 3)
    for _ in range(8):
        assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200

    async def renewed() -> bool:
        sessions = (await house.cast.status()).sessions
        return len(sessions) == 1 and sessions[0].calls < 8

    await until(renewed, "the old sessions were not closed")
