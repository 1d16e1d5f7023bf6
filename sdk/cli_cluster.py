"""`myna tenants init`: what a cluster of NATS servers, and the processes around it, must find in their folders before they start.

Law: to run it again changes nothing that is right already. What is there stays valid, so that it can run before every start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from myna.actors import config

if TYPE_CHECKING:
    from myna.actors.server import ServerTls
    from myna.actors.tenants.cluster import Node


@click.command()
@click.argument("nodes", nargs=-1, required=True, metavar="NODE[=ADDRESS]...")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for what is made.")
@click.option("--data", default="/data", show_default=True, help="Where a server keeps its data, on its own machine.")
@click.option("--certificate", help="With a certificate, its key")
@click.option("--key", help="and --ca, on the servers' machines, connections are encrypted.")
@click.option("--ca", help="With it, clients need certificates, too.")
@click.option("--routes-ca", help="By which servers know each other's certificates, if that is not --ca.")
@click.option(
    "--monitor", type=click.IntRange(1, 65535), help="Port on which a server tells its own machine its health."
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also lay out credentials there, a folder for each role and for the agents, with a table of API keys for gateways.",
)
@click.option("--renew", is_flag=True, help="New credentials for our own processes: the old ones are void.")
def init(
    nodes: tuple[str, ...],
    out: Path,
    data: str,
    certificate: str | None,
    key: str | None,
    ca: str | None,
    routes_ca: str | None,
    monitor: int | None,
    keys: Path | None,
    renew: bool,
) -> None:
    """Make an authority for a cluster of NATS servers, or use the one in MYNA_HOME. Servers reach each other by the names NODE,
    or at other ADDRESSes.

    For each of them OUT/NODE becomes the folder that it is to find as --data; `nats-server -c DATA/nats.conf` starts it.
    Credentials for schedulers, engines and gateways are in MYNA_HOME/keys.
    """
    from myna.actors.messages import Tenant
    from myna.actors.tenants.cluster import configs
    from myna.actors.tenants.credentials import write_private
    from myna.actors.tenants.keyring import Keyring
    from myna.actors.tenants.trust import lay_out

    settings = config.read()
    tenant = Tenant(settings.tenant)
    keyring = Keyring.at(settings.home)
    if renew:
        keyring.begin(tenant)
    else:
        keyring.complete(tenant)
    cluster = [_node(text, data) for text in nodes]
    made = configs(
        keyring.authority,
        cluster,
        tls=_tls(certificate, key, ca),
        routes_ca=Path(routes_ca) if routes_ca else None,
        monitor_port=monitor,
    )
    for node, server in zip(cluster, made, strict=True):
        write_private(out / node.name / "nats.conf", server.text(node.port))
        lay_out(keyring.authority, out / node.name / "accounts")
        click.echo(f"{node.name}: {out / node.name}")
    click.echo(f"keys of our own processes, and of tenant {tenant}: {settings.home / 'keys'}")
    if keys is not None:
        _hand_out(settings.home, tenant, keys)
        click.echo(f"a folder of keys for each of them: {keys}")


def _node(text: str, data: str) -> Node:
    from myna.actors.tenants.cluster import Node

    name, _, address = text.partition("=")
    return Node(name, Path(data), address)


def _tls(certificate: str | None, key: str | None, ca: str | None) -> ServerTls | None:
    from myna.actors.server import ServerTls

    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key belong together")
    if certificate is None or key is None:
        return None
    return ServerTls(Path(certificate), Path(key), Path(ca) if ca else None)


def _hand_out(home: Path, tenant: str, folder: Path) -> None:
    """Copy credentials into folders that are given to one kind of process each."""
    from myna.actors.gateway import keys as api_keys
    from myna.actors.messages import Tenant
    from myna.actors.tenants.credentials import write_private
    from myna.actors.tenants.keyring import role_file, tenant_file
    from myna.actors.tenants.rights import Role

    files = {folder / role / f"{role}.creds": role_file(home, role) for role in Role if role is not Role.OPERATOR}
    files[folder / "agents" / "tenant.creds"] = tenant_file(home, Tenant(tenant))
    for copy, original in files.items():
        write_private(copy, original.read_text())
    table = folder / "gateway" / "api-keys.toml"
    if not table.exists():
        key, entry = api_keys.make(tenant, tenant)
        write_private(home / "keys" / "api" / f"{tenant}.key", f"{key}\n")
        write_private(table, entry)
