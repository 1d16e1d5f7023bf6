"""What an operator sees of a cluster of real processes: its logs, its traces, and, by a real Prometheus, its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from myna.actors.telemetry.context import Context
from tests.actors.stage import until
from tests.actors.telemetry.collector import Seen
from tests.actors.telemetry.test_dashboard import DEPLOY, asked_by_dashboard, asked_by_rules
from tests.actors.telemetry.watched import MODEL, Watched, watched
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

LETTER = "a-letter-that-nobody-may-read"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    async with watched(tmp_path_factory.mktemp("watched")) as it:
        yield it


def ids(lines: list[dict[str, object]], event: str, *names: str) -> list[tuple[object, ...]]:
    return [tuple(line.get(name) for name in names) for line in lines if line["event"] == event]


async def test_the_lines_of_all_actors_about_a_failed_call_say_which_and_not_what_it_was_about(there: Watched) -> None:
    refused = await there.chat(f"{LETTER} " * 4000)
    assert refused.status_code == 400, refused.text
    await until(lambda: bool(ids(there.lines("scheduler"), "a call failed")), "the scheduler tells of it")
    ((tenant, session, call, attempt, code),) = ids(
        there.lines("engine"), "an attempt failed", "tenant", "session", "call", "attempt", "code"
    )
    assert tenant == "default"
    assert all((session, call, attempt))
    assert code == "prompt_too_long"
    names = ("tenant", "session", "call", "code")
    assert ids(there.lines("scheduler"), "a call failed", *names) == [(tenant, session, call, code)]
    assert ids(there.lines("gateway"), "call_failed", *names) == [(tenant, session, call, code)]
    (variable,) = (line["variable"] for line in there.lines("scheduler") if line["event"] == "a call failed")
    assert variable
    for process in there.processes:
        assert LETTER not in there.log(process)


async def test_a_native_call_that_fails_is_told_by_its_agent_with_its_ids(there: Watched) -> None:
    session = await there.session()
    ended = await there.native(session, "broken", LETTER)
    assert ended["state"] == "failed"
    for event in ("agent_call_failed", "an attempt failed"):
        ((named, call, attempt),) = ids(there.lines("agents"), event, "session", "call", "attempt")
        assert named == session
        assert call
        assert attempt
    assert LETTER not in there.log("agents")


async def test_a_request_of_a_traced_caller_is_one_trace_through_gateway_and_engine(there: Watched) -> None:
    caller = Context(0xABC, 0xDEF)
    answer = await there.chat("Good morning", traceparent=caller.header)
    assert answer.status_code == 200
    spans = await traced(there, caller, 5)
    request, call = named(spans, "POST /v1/chat/completions"), named(spans, "call chat")
    assert (request.process, call.process) == ("myna-gateway", "myna-engine-host")
    assert request.parent == f"{caller.span:016x}"
    assert call.parent == request.span
    assert request.began <= call.began <= call.ended <= request.ended
    parts = [named(spans, name) for name in ("queue", "prefill", "decode")]
    assert [part.parent for part in parts] == [call.span] * 3
    assert [part.began for part in parts[1:]] == [part.ended for part in parts[:-1]]
    assert call.began <= parts[0].began
    assert parts[-1].ended <= call.ended
    assert request.attributes["http.response.status_code"] == 200


async def test_what_a_native_function_traces_and_asks_belongs_to_its_callers_trace(there: Watched) -> None:
    caller = Context(0x123, 0x456)
    session = await there.session(traceparent=caller.header)
    result = await there.native(session, "traced", "Good evening")
    trace, _, span = result["text"].partition("-")
    spans = await traced(there, caller, 9)
    assert trace == f"{caller.trace:032x}"
    native, inner = named(spans, "call traced"), named(spans, "call ask")
    assert native.process == "myna-agents"
    assert native.span == span, "the function runs in the span of its call"
    assert native.parent == named(spans, "POST /myna/v1/sessions").span
    assert inner.process == "myna-engine-host"
    assert inner.parent == native.span, "a session that it opens is inside its call"
    assert native.began <= inner.began <= inner.ended <= native.ended


async def traced(there: Watched, caller: Context, least: int) -> list[Seen]:
    def mine() -> list[Seen]:
        return [span for span in there.collector.spans() if span.trace == f"{caller.trace:032x}"]

    await until(lambda: len(mine()) >= least, f"{least} spans")
    return mine()


def named(spans: list[Seen], name: str) -> Seen:
    (one,) = (span for span in spans if span.name == name)
    return one


# --- Prometheus -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def prometheus(there: Watched, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A real one that scrapes all actors, with our rules."""
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in there.ports.items()
    ]
    every = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    rules = [str(DEPLOY / "prometheus/rules/*.yml")]
    configured = {"global": every, "rule_files": rules, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(configured))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    log = (folder / "prometheus.log").open("w")
    arguments = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder}/data"]
    process = await asyncio.create_subprocess_exec(
        "prometheus", *arguments, f"--web.listen-address={address}", stdout=log, stderr=log
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=20) as client:
            await until(lambda: answers(client), "Prometheus is ready")
            yield client
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).is_success
    except httpx.TransportError:
        return False


async def has_data(client: httpx.AsyncClient, expression: str) -> bool:
    """Whether a query gives a number, and not only series without one."""
    answer = (await client.get("/api/v1/query", params={"query": expression})).json()
    assert answer["status"] == "success", (expression, answer)
    return any(found["value"][1] != "NaN" for found in answer["data"]["result"])


@pytest.mark.prometheus
async def test_a_real_prometheus_has_data_for_all_that_the_dashboard_and_the_alerts_ask(
    there: Watched, tmp_path: Path
) -> None:
    async with prometheus(there, tmp_path) as client:
        left = {*asked_by_dashboard(), *(re.split(" (?:<|>|==) ", rule)[0] for rule in asked_by_rules())}
        # No series has these labels while nothing of the kind has failed.
        left -= {rule for rule in left if "code=~" in rule}
        chats = [(f"Good day {n}", model) for n, model in enumerate((MODEL, "own", "default"))]

        async def application() -> None:
            session = await there.session()
            await there.native(session, "broken", "x")
            await there.http.delete(f"/myna/v1/sessions/{session}")

        async def everything() -> bool:
            await asyncio.gather(*(there.chat(*chat) for chat in chats), application())
            left.difference_update([expression for expression in left if await has_data(client, expression)])
            return not left

        with contextlib.suppress(TimeoutError):
            await until(everything, "all that is asked has data", timeout=60)
        assert not left
        targets = (await client.get("/api/v1/targets")).json()["data"]["activeTargets"]
        assert {t["labels"]["job"]: t["health"] for t in targets} == dict.fromkeys(there.ports, "up")


@pytest.mark.prometheus
async def test_all_that_actors_show_passes_prometheus_own_check_of_names_and_units(there: Watched) -> None:
    for name, port in there.ports.items():
        text = (await there.http.get(f"http://127.0.0.1:{port}/metrics")).content
        assert b"myna_" in text
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        check = await asyncio.create_subprocess_exec("promtool", "check", "metrics", stdin=subprocess.PIPE, **both)
        said, _ = await check.communicate(text)
        assert not [line for line in said.decode().splitlines() if line.startswith("myna_")], (name, said)
