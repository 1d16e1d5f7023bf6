"""The cluster of deploy/compose.yaml on a real Docker engine: it starts, serves, is broken and restarted, and loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import pytest_asyncio

import myna
from myna import Output
from tests.deploy.applications import Load
from tests.deploy.cluster import LIGHT, DeployedCluster, cut_off, deployed, kill, revive
from tests.deploy.docker import DEPLOY, compose_commands, docker, run

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400), pytest.mark.asyncio(loop_scope="module")]

REAL = "smollm2-135m-instruct"


@myna.function(model=REAL)
def answer(question: str, text: Annotated[str, Output(max_tokens=12, temperature=0.0)]) -> None:
    """{{#user}}{{question}}{{/user}}{{#assistant}}{{text}}{{/assistant}}"""


@myna.function
def far(prompt: str, word: Annotated[str, Output(max_tokens=3)]) -> None:
    """{{prompt}}{{word}}"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DeployedCluster]:
    command, *_ = compose_commands()
    folder = tmp_path_factory.mktemp("cluster")
    async with deployed(command, (*LIGHT, "engine"), folder) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def load(cluster: DeployedCluster) -> AsyncIterator[Load]:
    await cluster.healthy()
    async with cluster.client() as client, cluster.gateways() as gateways:
        yield Load(client, gateways)


async def test_an_application_runs_on_the_real_model_through_the_sdk_and_both_gateways(
    cluster: DeployedCluster,
) -> None:
    question = "What is the capital of France?"
    async with cluster.client() as client, client.session("real"):
        text = await answer(question).get()
    assert "Paris" in text
    async with cluster.gateways() as gateways:
        for gateway in gateways:
            said = await gateway.chat.completions.create(
                model=REAL, messages=[{"role": "user", "content": question}], max_tokens=12, temperature=0.0
            )
            assert str(said.choices[0].message.content).strip()
            assert said.usage is not None
            assert 0 < said.usage.completion_tokens <= 12


async def test_prometheus_finds_every_actor_and_takes_the_rules(cluster: DeployedCluster) -> None:
    actors = {"scheduler": 2, "gateway": 2, "engine": 2, "agents": 1}
    await cluster.compose("up", "-d", "--no-build", "prometheus")
    await cluster.compose.healthy(["prometheus"], within=120.0)
    url = f"http://127.0.0.1:{cluster.compose.settings['PROMETHEUS_PORT']}/api/v1"
    async with httpx.AsyncClient() as http, asyncio.timeout(60.0):
        found = dict[str, int]()
        while found != actors:
            await asyncio.sleep(1.0)
            targets = (await http.get(f"{url}/targets")).json()["data"]["activeTargets"]
            found = Counter(target["labels"]["job"] for target in targets if target["health"] == "up")
        rules = list[dict[str, Any]]()
        while not rules or any(rule["health"] != "ok" for rule in rules):
            await asyncio.sleep(1.0)
            groups = (await http.get(f"{url}/rules")).json()["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
    await cluster.compose("rm", "--stop", "--force", "prometheus")


async def test_a_server_that_speaks_openais_protocol_serves_as_an_engine(
    cluster: DeployedCluster, tmp_path: Path
) -> None:
    """The server is a gateway of the cluster itself."""
    key, endpoints = tmp_path / "endpoint.key", tmp_path / "endpoints.toml"
    key.write_text(await cluster.compose.operator("cat", "/var/lib/myna/keys/api/default.key"))
    where = 'url = "http://gateway:9000/v1"\nkey_file = "/run/secrets/endpoint-key"'
    endpoints.write_text(f'[[endpoint]]\nname = "far"\n{where}\nmodels = {{ far = "noop" }}\n')
    for file in (tmp_path, key, endpoints):
        file.chmod(0o755)  # for user 10001
    own = {"COMPOSE_PROFILES": "endpoints", "MYNA_ENDPOINTS": str(endpoints), "MYNA_ENDPOINT_KEY": str(key)}
    compose = replace(cluster.compose, settings={**cluster.compose.settings, **own})
    try:
        await compose("up", "-d", "--no-build", "endpoints")
        await compose.healthy(["endpoints"], within=60.0)
        async with cluster.client() as client, client.session("far", model="far"):
            assert await far("Begin").get() == "answer0 answer1 answer2"
    finally:
        await compose("rm", "--stop", "--force", "endpoints")


async def test_no_process_has_rights_that_it_does_not_need(cluster: DeployedCluster) -> None:
    for service in cluster.services:
        for container in await cluster.compose.containers(service):
            (seen,) = json.loads(await docker("inspect", container))
            assert seen["Config"]["User"] == "myna", service
            assert seen["HostConfig"]["ReadonlyRootfs"], service
    (gateway,) = await cluster.compose.containers("gateway-1")
    seen = await docker(
        "exec", gateway, "sh", "-c", "cat /keys/*/*; ls /var/lib/myna; touch /opt/code/file 2>&1 || true"
    )
    assert seen.count("BEGIN NATS USER JWT") == 1
    assert "authority" not in seen
    assert "Read-only file system" in seen


async def test_to_start_again_what_runs_changes_no_key(cluster: DeployedCluster) -> None:
    before = await cluster.compose.operator("sh", "-c", "cat /var/lib/myna/keys/*/* /keys/gateway/*")
    await cluster.compose("up", "-d", "--no-build", *cluster.services)
    assert await cluster.compose.operator("sh", "-c", "cat /var/lib/myna/keys/*/* /keys/gateway/*") == before


async def test_nothing_is_lost_when_a_server_the_leader_and_an_engine_are_killed(
    cluster: DeployedCluster, load: Load
) -> None:
    async with load.running() as tally:
        await tally.progress()
        for service in ("nats-2", await cluster.leader(), "noop"):
            (container, *_) = await cluster.compose.containers(service)
            await kill(container)
            await tally.progress()
            await revive(container)
            await cluster.healthy()
    assert tally.wrong == []


async def test_nothing_is_lost_when_the_network_is_cut(cluster: DeployedCluster, load: Load) -> None:
    outside, routes = await cluster.compose.network("default"), await cluster.compose.network("routes")
    async with load.running() as tally:
        await tally.progress()
        leader = await cluster.leader()
        for service in ("noop", leader):
            (container, *_) = await cluster.compose.containers(service)
            async with cut_off(container, outside, service):
                await tally.progress()
            await cluster.healthy()
        (container,) = await cluster.compose.containers("nats-3")
        # Its clients stay connected to it until they find out, also those that only listen, as the agents' only host may.
        async with cut_off(container, routes, "route-3"):
            await tally.progress()
            await tally.progress()
        await cluster.healthy()
        await tally.progress()
    assert tally.wrong == []


async def test_every_service_is_restarted_under_load_and_no_call_fails(cluster: DeployedCluster, load: Load) -> None:
    ids = {service: await cluster.compose.containers(service) for service in cluster.services}
    async with load.running() as tally:
        await tally.progress()
        said = await run(
            str(DEPLOY / "roll"), *cluster.services, environment=cluster.compose.environment, seconds=1200.0
        )
        assert said.rstrip().endswith("all is well")
        await tally.progress()
    assert tally.wrong == []
    for service, before in ids.items():
        after = await cluster.compose.containers(service)
        assert len(after) == len(before)
        assert not set(after) & set(before), f"{service} was not restarted"


async def test_nothing_is_left_of_what_ran(cluster: DeployedCluster) -> None:
    """But the sessions that gateways share between requests, which end when they were idle for a while."""
    async with asyncio.timeout(60.0):
        seen = await cluster.status()
        while any(session["name"] == "deploy" for session in seen["sessions"]):
            seen = await cluster.status()
    assert seen["queued"] == 0
    assert all(worker["running"] == 0 for worker in seen["workers"])
