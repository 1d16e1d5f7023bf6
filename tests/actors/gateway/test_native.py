from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from myna.actors import subjects
from myna.actors.gateway.server import Gateway
from myna.actors.messages import SessionId
from myna.sdk.agent import Agent
from myna.sdk.client import connect
from myna.sdk.serving import hosting
from tests.actors.gateway.conftest import House
from tests.actors.stage import TENANT, GatedBackend, until

pytestmark = pytest.mark.nats


class Myna:
    """One session over HTTP."""

    def __init__(self, http: httpx.AsyncClient, session: str) -> None:
        self.http = http
        self.session = session
        self.root = f"/myna/v1/sessions/{session}"

    async def ask(self, method: str, path: str = "", status: int = 200, **given: Any) -> Any:
        answer = await self.http.request(method, f"{self.root}{path}", **given)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def submit(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = (await self.ask("POST", "/calls", 201, json={"calls": list(calls)}))["calls"]
        return made

    async def events(self, variable: str, **given: Any) -> AsyncIterator[tuple[str, str, Any]]:
        """Name, id and data of a stream's events."""
        async with self.http.stream("GET", f"{self.root}/variables/{variable}/stream", **given) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, text = line.partition(": ")
                if name:
                    fields[name] = text
                elif fields:
                    yield fields["event"], fields["id"], json.loads(fields["data"])
                    fields = {}


@pytest.fixture
async def myna(http: httpx.AsyncClient) -> Myna:
    made = (await http.post("/myna/v1/sessions", json={"name": "app"})).json()
    return Myna(http, made["session"])


def call(prompt: str, tokens: int = 2, output: str | None = None, **inputs: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {"sampling": {"max_tokens": tokens}}
    return {"prompt": prompt, "inputs": inputs, "outputs": {"out": wanted | ({"variable": output} if output else {})}}


async def test_calls_submitted_together_are_joined_by_names(myna: Myna) -> None:
    first, second = await myna.submit(
        call("Write: {{out}}", 3, output="draft"), call("Review {{text}}: {{out}}", text={"variable": "draft"})
    )
    assert first["outputs"] == {"out": ["draft"]}
    got = await myna.ask("GET", f"/variables/{second['outputs']['out'][0]}", params={"objective": "latency"})
    assert (got["state"], got["text"], got["usage"]["output"]) == ("value", "out0 out1", 2)
    assert (await myna.ask("GET", "/variables/draft"))["text"] == "out0 out1 out2"


async def test_variables_are_made_set_once_and_read(myna: Myna) -> None:
    assert await myna.ask("POST", "/variables", 201, json={"id": "who"}) == {"variable": "who"}
    assert (await myna.ask("GET", "/variables/who", 202, params={"timeout": 0}))["state"] == "pending"
    await myna.ask("PUT", "/variables/who", json={"json": {"name": "Ada"}})
    await myna.ask("PUT", "/variables/who", json={"json": {"name": "Ada"}})
    refused = await myna.ask("PUT", "/variables/who", 409, json={"text": "Bob"})
    assert refused["error"]["code"] == "already_set"
    assert (await myna.ask("GET", "/variables/who"))["json"] == {"name": "Ada"}
    made = (await myna.ask("POST", "/variables", 201, json={"name": "x", "text": "there"}))["variable"]
    assert (await myna.ask("GET", f"/variables/{made}", params={"timeout": 0}))["text"] == "there"


async def test_waiting_for_a_value_ends_at_the_timeout_or_with_the_value(myna: Myna) -> None:
    await myna.ask("POST", "/variables", 201, json={"id": "late"})
    assert (await myna.ask("GET", "/variables/late", 202, params={"timeout": 0.05}))["state"] == "pending"
    waiting = asyncio.create_task(myna.ask("GET", "/variables/late", params={"timeout": 20}))
    await myna.ask("PUT", "/variables/late", json={"text": "now"})
    assert (await waiting)["text"] == "now"


async def test_a_function_that_an_agent_serves_is_a_call_like_any_other(house: House, myna: Myna) -> None:
    def shout(text: str, mark: str) -> str:
        return text.upper() + mark

    (made,) = await myna.submit(call("Write: {{out}}", output="draft"))
    native = {
        "inputs": {"text": {"variable": "draft"}, "mark": {"text": "!"}},
        "outputs": {"loud": {}},
        "native": "shout",
    }
    async with hosting(await house.network.bus(), Agent(shout, "shout", 1)):
        (loud,) = await myna.submit(native)
        got = await myna.ask("GET", f"/variables/{loud['outputs']['loud'][0]}")
    assert (got["state"], got["text"]) == ("value", "OUT0 OUT1!")
    assert made["outputs"]["out"] == ["draft"]


async def test_a_functions_result_is_streamed_only_if_that_is_asked_for_since_none_could_go_on_with_half_of_it(
    house: House, myna: Myna
) -> None:
    def upper(text: str) -> str:
        return text.upper()

    bus = await house.network.bus()
    async with hosting(bus, Agent(upper, "upper", 1)):
        for wanted, is_streamed in (({}, False), ({"stream": "buffered"}, False), ({"stream": "live"}, True)):
            (made,) = await myna.submit(
                {"native": "upper", "inputs": {"text": {"text": "x"}}, "outputs": {"loud": wanted}}
            )
            (variable,) = made["outputs"]["loud"]
            assert (await myna.ask("GET", f"/variables/{variable}"))["text"] == "X"
            subject = subjects.write_chunk(TENANT, SessionId(myna.session), variable, 0)
            assert (await bus.get(subjects.CHUNKS, subject) is not None) == is_streamed


async def test_chat_messages_and_several_results_are_calls_too(myna: Myna) -> None:
    turns = [{"role": "system", "content": "Be {{how}}."}, {"role": "assistant", "content": "{{out}}"}]
    wanted = {"out": {"n": 2, "sampling": {"max_tokens": 1}}}
    spec = {"messages": turns, "inputs": {"how": {"text": "brief"}}, "outputs": wanted, "objective": "throughput"}
    (made,) = await myna.submit(spec)
    texts = [(await myna.ask("GET", f"/variables/{v}"))["text"] for v in made["outputs"]["out"]]
    assert texts == ["out0", "out0"]


async def test_a_failure_is_data_that_names_the_call(myna: Myna) -> None:
    (made,) = await myna.submit(call("{{x}} {{out}}", x={"variable": "nobody"}))
    got = await myna.ask("GET", f"/variables/{made['outputs']['out'][0]}")
    assert (got["state"], got["code"], got["call"]) == ("failed", "unknown_variable", made["call"])


async def test_a_stream_goes_on_where_it_was_left(house: House, myna: Myna) -> None:
    backend = GatedBackend(("text", 3), step=0.01)
    await house.cast.crash("worker")
    await house.cast.worker("other", backend)
    await myna.submit(call("Go: {{out}}", 6, output="text"))
    seen, last = "", ""
    async for name, id_, data in myna.events("text"):
        assert (name, data["offset"]) == ("text", len(seen))
        seen, last = seen + data["text"], id_
        if seen == "out0 out1 out2":
            break
    backend.gates["text", 3].set()
    rest = [event async for event in myna.events("text", headers={"last-event-id": last})]
    assert rest[0][2]["offset"] == len(seen)
    assert seen + "".join(data["text"] for name, _, data in rest if name == "text") == "out0 out1 out2 out3 out4 out5"
    assert (rest[-1][0], rest[-1][2]["state"], rest[-1][2]["finish"]) == ("end", "value", "length")
    middle = [data async for _, _, data in myna.events("text", params={"offset": 7})]
    assert middle[0]["offset"] == 7
    assert "".join(data.get("text", "") for data in middle[:-1]) == "t1 out2 out3 out4 out5"


async def test_the_graph_shows_calls_variables_and_what_joins_them(house: House, myna: Myna) -> None:
    await house.cast.crash("worker")
    first, second = await myna.submit(
        call("Write: {{out}}", output="draft"),
        call("Review {{text}}: {{out}}", output="review", text={"variable": "draft"}),
    )
    graph: dict[str, Any] = {}

    async def both_are_seen() -> bool:
        graph.update(await myna.ask("GET", "/graph"))
        return len(graph["calls"]) == 2

    await until(both_are_seen, "the scheduler has read both calls")
    states = {c["call"]: (c["inputs"], c["outputs"], c["state"]) for c in graph["calls"]}
    assert states[second["call"]] == (["draft"], ["review"], "waiting")
    assert states[first["call"]][:2] == ([], ["draft"])
    assert {v["variable"]: v["producer"] for v in graph["variables"]} == {
        "draft": first["call"],
        "review": second["call"],
    }
    listed = (await myna.ask("GET", "/variables"))["variables"]
    assert [v["state"] for v in listed] == ["pending", "pending"]
    why = await myna.ask("GET", f"/calls/{second['call']}/why")
    assert why["state"] == "waiting"
    assert any("draft" in reason for reason in why["reasons"])
    sessions = (await myna.http.get("/myna/v1/sessions")).json()["sessions"]
    assert [(s["name"], s["calls"]) for s in sessions if s["session"] == myna.session] == [("app", 2)]


async def test_cancelling_a_variable_cancels_its_call_and_what_needs_it(house: House, myna: Myna) -> None:
    await house.cast.crash("worker")
    await myna.submit(call("a {{out}}", output="a"), call("b {{x}} {{out}}", output="b", x={"variable": "a"}))
    await myna.ask("POST", "/cancel", json={"variables": ["a"], "reason": "enough"})
    a, b = [await myna.ask("GET", f"/variables/{variable}") for variable in "ab"]
    assert (a["state"], a["message"], b["state"]) == ("cancelled", "enough", "cancelled")
    await myna.ask("POST", "/cancel", 400, json={"variables": ["unknown"]})


async def test_two_gateways_serve_one_session_and_so_does_the_sdk(house: House, myna: Myna) -> None:
    other: Gateway = await house.open()
    await myna.submit(call("Write: {{out}}", output="draft"))
    async with httpx.AsyncClient(base_url=other.url, timeout=20) as http:
        there = Myna(http, myna.session)
        assert (await there.ask("GET", "/variables/draft"))["text"] == "out0 out1"
    async with connect(bus=await house.network.bus()) as client, client.attach(myna.session) as session:
        assert await session.lookup("draft") == "out0 out1"


async def test_a_closed_session_is_gone(myna: Myna) -> None:
    await myna.ask("DELETE")
    assert (await myna.ask("POST", "/calls", 404, json={"calls": [call("{{out}}")]}))["error"][
        "code"
    ] == "session_closed"
    nowhere = Myna(myna.http, "never-was")
    assert "no session" in (await nowhere.ask("GET", "/graph", 404))["error"]["message"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"calls": []}, "length >= 1"),
    ({"calls": [{"prompt": "x", "outputs": {}}]}, "needs `outputs`"),
    ({"calls": [{"outputs": {"a": {}}}]}, "one of `prompt`"),
    ({"calls": [{"prompt": "{{a}} {{b}}", "outputs": {"a": {}}}]}, "neither an input nor an output"),
    ({"calls": [{"prompt": "no", "outputs": {"a": {}}}]}, "no placeholder"),
    ({"calls": [{"prompt": "{{a}}", "outputs": {"a": {"sampling": {"heat": 1}}}}]}, "'heat' is no setting"),
    ({"calls": [{"prompt": "{{a}}", "outputs": {"a": {"n": 2, "variable": "x"}}}]}, "2 variables"),
    ({"calls": [{"prompt": "{{#user}}hi", "outputs": {"a": {}}}]}, "never closed"),
    ({"calls": [{"prompt": "{{x}}{{a}}", "inputs": {"x": {}}, "outputs": {"a": {}}}]}, "an input is one of"),
    ({"calls": [{"prompt": "{{a}}", "outputs": {"a": {}}, "objective": "deadline"}]}, "needs its `seconds`"),
]


async def test_wrong_calls_are_refused_with_what_would_be_right(myna: Myna) -> None:
    for wrong, says in WRONG:
        refused = await myna.ask("POST", "/calls", 400, json=wrong)
        assert says in refused["error"]["message"]
