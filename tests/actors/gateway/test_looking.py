"""What the gateway tells those who look: the fleet, pictures, progress; and to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from myna.actors.config import GatewaySettings
from myna.actors.gateway import keys
from myna.sdk.client import connect
from tests.actors.gateway.conftest import House
from tests.actors.stage import GatedBackend, call, until

pytestmark = pytest.mark.nats


async def fleet(http: httpx.AsyncClient, **headers: str) -> Any:
    answer = await http.get("/myna/v1/fleet", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_running_call_is_seen_at_its_engine_and_in_its_graph_and_later_its_times(house: House) -> None:
    backend = GatedBackend(("b", 1))
    await house.cast.crash("worker")
    await house.cast.worker("gated", backend)
    gateway = await house.open()
    async with (
        connect(bus=await house.network.bus()) as client,
        client.session("app") as session,
        httpx.AsyncClient(base_url=gateway.url, timeout=20) as http,
    ):
        session.resubmit([call("a"), call("b", "a"), call("c", "b")])
        one = f"/myna/v1/sessions/{session.id}"

        async def decodes() -> bool:
            found = (await http.get(f"{one}/progress")).json()
            return bool(found["states"].get("decode"))

        await until(decodes, "the engine shows that b decodes")
        picture = (await http.get(f"{one}/picture")).json()
        places = {node["id"]: place for place, node in enumerate(picture["nodes"])}
        progress = (await http.get(f"{one}/progress")).json()
        assert progress["shape"] == picture["shape"]
        ids = ("call-a", "call-b", "call-c")
        assert [progress["states"][s] for s in ("done", "decode", "waiting")] == [[places[i]] for i in ids]
        (going,) = progress["going"]
        assert (going["node"], going["worker"], going["produced"]) == (places["call-b"], "gated", 1)
        assert [(e["source"], e["target"]) for e in picture["edges"]] == [
            (places["call-a"], places["call-b"]),
            (places["call-b"], places["call-c"]),
        ]
        seen = await fleet(http)
        (engine,) = seen["engines"]
        assert [(c["call"], c["phase"]) for c in engine["calls"]] == [("call-b", "decode")]
        backend.gates["b", 1].set()

        async def over() -> bool:
            (engine,) = (await fleet(http))["engines"]
            return {s["call"] for s in engine["spans"]} == set(ids)

        await until(over, "the engine shows the times of all")
        ended = (await http.get(f"{one}/variables/c")).json()
        assert ended["timing"]["worker"] == "gated"
        assert ended["timing"]["received"] <= ended["timing"]["began"] <= ended["timing"]["ended"]


async def test_a_tenant_sees_its_own_and_only_an_operator_all(house: House, tmp_path: Path) -> None:
    table = tmp_path / "keys.toml"
    made = {name: keys.make(name, name) for name in ("acme", "rival")}
    boss, entry = keys.make("ops", "boss", operator=True)
    table.write_text("\n".join([*(entry for _, entry in made.values()), entry]))
    gateway = await house.open(GatewaySettings(keys=table))
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:

        def as_(key: str, **more: str) -> dict[str, str]:
            return {"authorization": f"Bearer {key}", **more}

        acme, rival = made["acme"][0], made["rival"][0]
        session = (await http.post("/myna/v1/sessions", headers=as_(acme), json={"name": "app"})).json()["session"]
        looks = f"/myna/v1/sessions/{session}/progress"

        async def known() -> bool:
            return bool((await fleet(http, **as_(acme)))["sessions"])

        await until(known, "the scheduler knows the session")
        assert (await fleet(http, **as_(rival)))["sessions"] == []
        everything = await fleet(http, **as_(boss))
        assert (everything["operator"], [s["tenant"] for s in everything["sessions"]]) == (True, ["acme"])
        assert (await http.get(looks, headers=as_(acme))).status_code == 200
        assert (await http.get(looks, headers=as_(rival))).status_code == 404
        assert (await http.get(looks, headers=as_(boss))).status_code == 404
        other = {"myna-tenant": "acme"}
        assert (await http.get(looks, headers=as_(rival, **other))).status_code == 403
        assert (await http.get(looks, headers=as_(boss, **other))).status_code == 200
        assert (await http.delete(looks.removesuffix("/progress"), headers=as_(boss, **other))).status_code == 403
        assert (await http.get(looks, headers=as_(boss, **{"myna-tenant": "no.such"}))).status_code == 400


async def test_the_page_is_served_with_a_strict_policy_and_nothing_beside_it(house: House) -> None:
    gateway = await house.open()
    async with httpx.AsyncClient(base_url=gateway.url, follow_redirects=True) as http:
        page = await http.get("/")
        assert page.url.path == "/window/"
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        script = await http.get("/window/main.js")
        assert script.headers["content-type"].startswith("text/javascript")
        again = await http.get("/window/main.js", headers={"if-none-match": script.headers["etag"]})
        assert again.status_code == 304
        for path in ("/window/../app.py", "/window/%2e%2e/__init__.py", "/window/none.js", "/window/static/main.js"):
            assert (await http.get(path)).status_code == 404, path
