"""How the servers of a cluster are configured: as one machine's is, with routes between them that have their own password."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from myna.actors.server import ServerConfig, ServerTls
from myna.actors.tenants.authority import Authority
from myna.actors.tenants.trust import server_lines

ROUTES_USER = "route"


@dataclass(frozen=True, slots=True)
class Node:
    """One server: the name by which the others reach it, and where it keeps its data on its own machine."""

    name: str
    store: Path
    address: str = ""
    """Where others reach it: its name, if this is empty."""
    listen: str = "0.0.0.0"
    port: int = 4222
    route_port: int = 6222

    @property
    def route(self) -> str:
        """Host and port of its routes."""
        return f"{self.address or self.name}:{self.route_port}"


def configs(
    authority: Authority,
    nodes: Sequence[Node],
    *,
    tls: ServerTls | None = None,
    routes_ca: Path | None = None,
    monitor_port: int | None = None,
) -> list[ServerConfig]:
    """The configuration of each server. `tls`: files on the servers' machines, for clients and routes. `routes_ca`: by which
    servers know each other's certificates, where that is not `tls.ca`, nor what their systems know. `monitor_port`: where a
    server tells its own machine, and no other, how it is (HTTP, `/healthz`)."""
    between = tls if tls is None or routes_ca is None else replace(tls, ca=routes_ca)
    return [
        ServerConfig(
            node.store,
            host=node.listen,
            port=node.port,
            name=node.name,
            trust=partial(server_lines, authority, node.store / "accounts"),
            tls=tls,
            extra="\n".join((_leaving(monitor_port), _routes(node, nodes, authority.routes_password, between))),
        )
        for node in nodes
    ]


def _leaving(monitor_port: int | None) -> str:
    """How a server tells its health, and how it leaves when it is asked to (SIGUSR2): its streams lead elsewhere first, then its
    clients are sent away one by one, in at most 30 s, which is the least that it takes."""
    lines = ['lame_duck_duration: "30s"', 'lame_duck_grace_period: "1s"']
    return "\n".join(lines if monitor_port is None else [f'http: "127.0.0.1:{monitor_port}"', *lines])


def _routes(node: Node, nodes: Sequence[Node], password: str, tls: ServerTls | None) -> str:
    who = f"{ROUTES_USER}:{password}"
    others = [f"nats-route://{who}@{other.route}" for other in nodes if other is not node]
    lines = [
        "name: myna",
        f"listen: {json.dumps(f'{node.listen}:{node.route_port}')}",
        f"authorization {{ user: {ROUTES_USER}, password: {json.dumps(password)} }}",
        f"routes: {json.dumps(others)}",
        "no_advertise: true",
        *([] if tls is None else [tls.text()]),
    ]
    return "\n  ".join(["cluster {", *lines]) + "\n}" if len(nodes) > 1 else ""
