"""The cluster in its other forms: by each compose command, with TLS, with an engine elsewhere. Each starts, and serves."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

import myna
from tests.deploy.applications import Load, write
from tests.deploy.cluster import LIGHT, PORTS, PROJECT, deployed
from tests.deploy.docker import DEPLOY, Compose, compose_commands, docker, run

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

ELSEWHERE = Path(__file__).with_name("elsewhere.yaml")


@pytest.mark.parametrize("command", compose_commands()[1:], ids=" ".join)
async def test_every_compose_command_starts_a_cluster_that_serves_and_restarts_it_under_load(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    async with (
        deployed(command, LIGHT, tmp_path) as cluster,
        cluster.client() as client,
        cluster.gateways() as gateways,
    ):
        async with Load(client, gateways).running(applications=1, requests=1) as tally:
            await tally.progress(1, 1)
            await run(str(DEPLOY / "roll"), "noop", "gateway-1", environment=cluster.compose.environment)
            await tally.progress(1, 1)
        assert tally.wrong == []


async def test_with_tls_an_engine_on_another_host_is_reached_by_nobody_and_serves(tmp_path: Path) -> None:
    """The other host is a network of its own, from which only this machine's address is reached, as from behind NAT."""
    command, *_ = compose_commands()
    subnet = await docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
    here = str(ip_network(subnet)[1])
    certificates(tmp_path, here)
    own = {"MYNA_TLS_FOLDER": str(tmp_path), "MYNA_LISTEN": here}
    services = [service for service in LIGHT if service != "noop"]
    async with deployed(command, services, tmp_path, files=("compose.tls.yaml",), own=own) as cluster:
        key = tmp_path / "engine.creds"
        key.write_text(await cluster.compose.operator("cat", "/var/lib/myna/keys/roles/engine.creds"))
        key.chmod(0o644)
        settings = {
            "MYNA_URL": ",".join(f"tls://{here}:{cluster.compose.settings[port]}" for port in PORTS[:3]),
            "MYNA_ENGINE_KEY": str(key),
            "MYNA_CA": str(tmp_path / "ca.pem"),
            "MYNA_VERSION": cluster.compose.settings["MYNA_VERSION"],
        }
        elsewhere = Compose(command, f"{PROJECT}-elsewhere", (DEPLOY / "engine.yaml", ELSEWHERE), settings)
        try:
            await elsewhere("up", "-d", "--no-build")
            await elsewhere.healthy(["engine"], within=120.0)
            async with cluster.client() as client, client.session("elsewhere"):
                text = await write("Begin", word=myna.Output(max_tokens=3)).get()
            assert text == "word0 word1 word2"
        finally:
            await elsewhere("down", "--volumes", "--timeout", "2")


def certificates(folder: Path, *addresses: str) -> None:
    """What deploy/README.md asks for, in `folder`."""
    names = [f"{kind}-{n}" for kind in ("nats", "route") for n in (1, 2, 3)]
    authority = trustme.CA()
    made = authority.issue_cert(*names, *addresses)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    made.private_key_pem.write_to_path(folder / "server.key")
    for n, blob in enumerate(made.cert_chain_pems):
        blob.write_to_path(folder / "server.pem", append=n > 0)
    for file in folder.iterdir():
        file.chmod(0o644)  # for user 10001
