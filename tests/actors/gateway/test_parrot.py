"""Parrot's HTTP API as its client uses it, written from the documentation (its package is on no index); for the client itself
see `test_parrot_client.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from myna.actors.config import GatewaySettings
from myna.actors.gateway.keys import make
from myna.actors.gateway.server import Gateway
from myna.actors.messages import ModelCall, Text
from tests.actors.gateway.conftest import House
from tests.actors.stage import GatedBackend

pytestmark = pytest.mark.nats


class Refused(Exception):
    """What Parrot's client raises: every answer but 200 holds an error and a traceback."""


@dataclass
class Parrot:
    """As Parrot's client does it: a JSON body with every method."""

    http: httpx.AsyncClient
    session_id: int = 0
    session_auth: str = ""

    async def send(self, http_method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.http.request(http_method, f"/v1/{path}", json=body)
        data: dict[str, Any] = answer.json()
        if answer.status_code != 200:
            raise Refused(data["error"], data["traceback"])
        return data

    async def register(self, api_key: str = "1") -> None:
        made = await self.send("POST", "session", api_key=api_key)
        self.session_id, self.session_auth = made["session_id"], made["session_auth"]

    async def remove(self) -> None:
        await self.send("DELETE", f"session/{self.session_id}", session_auth=self.session_auth)

    async def call(self, template: str, parameters: list[dict[str, Any]], **metadata: Any) -> dict[str, str]:
        """Submit; returns the variable of each parameter."""
        known = {
            "models": [],
            "model_type": "token_id",
            "remove_pure_fill": True,
            "cache_prefix": True,
            "fuse_fill": False,
        }
        body = {**known, "output_criteria": None, **metadata}
        named = {"session_id": self.session_id, "func_name": "f", "template": template, "parameters": parameters}
        made = await self.send("POST", "semantic_call", **named, **body)
        assert isinstance(made["request_id"], int)
        return {info["parameter_name"]: info["var_id"] for info in made["param_info"]}

    async def variable(self, name: str) -> str:
        made = await self.send("POST", "semantic_var", session_id=self.session_id, var_name=name)
        return str(made["var_id"])

    async def set(self, variable: str, content: str) -> None:
        await self.send("POST", f"semantic_var/{variable}", session_id=self.session_id, content=content)

    async def get(self, variable: str, criteria: str = "latency") -> str:
        got = await self.send("GET", f"semantic_var/{variable}", session_id=self.session_id, criteria=criteria)
        return str(got["content"])


def value(name: str, text: object) -> dict[str, Any]:
    return {"name": name, "is_output": False, "value": text}


def reads(name: str, variable: str) -> dict[str, Any]:
    return {"name": name, "is_output": False, "var_id": variable}


def makes(name: str, tokens: int = 2, **config: Any) -> dict[str, Any]:
    defaults = {"temperature": 1.0, "top_p": 1.0, "ignore_tokenizer_eos": False, "stop_token_ids": [], "stop_str": None}
    more = {
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
        "best_of": 1,
        "logit_bias": None,
        "length_penalty": 0,
    }
    return {
        "name": name,
        "is_output": True,
        "sampling_config": {**defaults, **more, "max_gen_length": tokens, **config},
    }


@pytest.fixture
async def parrot(http: httpx.AsyncClient) -> AsyncIterator[Parrot]:
    client = Parrot(http)
    await client.register()
    yield client
    await client.remove()


async def test_calls_are_chained_before_their_inputs_exist(parrot: Parrot) -> None:
    first = await parrot.call("Write {{topic}}: {{text}}", [value("topic", "a joke"), makes("text", 3)])
    second = await parrot.call("Explain {{text}}: {{why}}", [reads("text", first["text"]), makes("why")])
    assert await parrot.get(second["why"]) == "why0 why1"
    assert await parrot.get(first["text"], "throughput") == "text0 text1 text2"
    assert await parrot.get(first["topic"], "TTFT") == "a joke"


async def test_one_template_may_have_several_outputs_greedy_or_sampled(parrot: Parrot) -> None:
    greedy = makes("a", temperature=0.0, repetition_penalty=0)
    made = await parrot.call("A: {{a}} B: {{b}} end", [greedy, makes("b", 3, top_p=0.5)], output_criteria="latency")
    texts = await asyncio.gather(parrot.get(made["a"]), parrot.get(made["b"]))
    assert texts == ["a0 a1", "b0 b1 b2"]


async def test_variables_are_made_set_later_and_listed(parrot: Parrot) -> None:
    given = await parrot.variable("name")
    made = await parrot.call("Greet {{who}}: {{greeting}}", [reads("who", given), makes("greeting")])
    waiting = asyncio.create_task(parrot.get(made["greeting"]))
    await parrot.set(given, "Ada")
    assert await waiting == "greeting0 greeting1"
    listed = await parrot.send("GET", "semantic_var", session_id=parrot.session_id)
    assert {v["var_id"]: v["state"] for v in listed["variables"]} == {given: "value", made["greeting"]: "value"}


async def test_what_the_asynchronous_functions_post_is_understood(parrot: Parrot) -> None:
    """Their requests are all POST, with the method that they mean, and how often they would try, among the fields."""
    mine = await parrot.variable("mine")
    bound = {**makes("a"), "var_id": mine}
    made = await parrot.call("Say {{a}}", [bound], session_auth=parrot.session_auth, retry_times=1)
    assert made == {"a": mine}
    asked = {"session_id": parrot.session_id, "session_auth": parrot.session_auth, "retry_times": 1, "method": "GET"}
    got = await parrot.send("POST", f"semantic_var/{mine}", **asked, criteria="latency")
    assert got == {"content": "a0 a1"}
    with pytest.raises(Refused, match="needs a `content`"):
        await parrot.send("POST", f"semantic_var/{mine}", session_id=parrot.session_id)


async def test_what_is_wrong_is_told(parrot: Parrot) -> None:
    with pytest.raises(Refused, match="no parameter"):
        await parrot.call("{{unknown}} {{a}}", [makes("a")])
    with pytest.raises(Refused, match="no placeholder"):
        await parrot.call("nothing", [makes("a")])
    with pytest.raises(Refused, match="needs a `var_id`"):
        await parrot.call("{{x}} {{a}}", [{"name": "x", "is_output": False}, makes("a")])
    with pytest.raises(Refused, match="no engine serves"):
        await parrot.call("{{a}}", [makes("a")], models=["vicuna"])
    with pytest.raises(Refused, match="no criterion"):
        await parrot.get("x", "beauty")
    with pytest.raises(Refused, match="as an agent"):
        await parrot.send("POST", "py_native_call", session_id=parrot.session_id, func_code="gASV")


async def test_a_failed_call_wakes_its_waiters(parrot: Parrot) -> None:
    made = await parrot.call("{{x}} {{a}}", [reads("x", "never-made"), makes("a")])
    with pytest.raises(Refused, match="does not know"):
        await parrot.get(made["a"])


async def test_a_session_is_ended_only_with_its_own_auth_and_then_gone(http: httpx.AsyncClient) -> None:
    client = Parrot(http)
    await client.register()
    with pytest.raises(Refused, match="session_auth"):
        await client.send("DELETE", f"session/{client.session_id}", session_auth="guess")
    await client.remove()
    with pytest.raises(Refused, match="session"):
        await client.call("{{a}}", [makes("a")])


async def test_constants_stay_constants_of_the_prompt(house: House, http: httpx.AsyncClient) -> None:
    client = Parrot(http)
    await client.register()
    backend = GatedBackend()
    await house.cast.crash("worker")
    await house.cast.worker("other", backend)
    made = await client.call("Say {{x}} twice: {{a}}", [value("x", "hello"), makes("a")])
    await client.get(made["a"])
    call = backend.jobs[0].call
    assert isinstance(call, ModelCall)
    assert [s.text for s in call.messages[0].segments if isinstance(s, Text)] == ["Say ", "hello", " twice: "]


async def test_the_key_is_shown_once_and_the_sessions_number_is_the_pass(house: House, tmp_path: Any) -> None:
    key, entry = make("acme", "laptop")
    table = tmp_path / "keys.toml"
    table.write_text(entry)
    gateway: Gateway = await house.open(GatewaySettings(keys=table))
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:
        client = Parrot(http)
        with pytest.raises(Refused, match="API key"):
            await client.register("wrong")
        await client.register(key)
        made = await client.call("{{a}}", [makes("a")])
        assert await client.get(made["a"]) == "a0 a1"
        stranger = Parrot(http, session_id=client.session_id ^ 1)
        with pytest.raises(Refused, match="API key"):
            await stranger.get(made["a"])
        await client.remove()
