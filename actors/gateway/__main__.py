"""`python -m myna.actors.gateway [--port N | --socket FD]`: a gateway as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket
from dataclasses import replace

from myna.actors import config, process
from myna.actors.config import Settings
from myna.actors.gateway.server import DRAIN, Gateway
from myna.actors.health import Health
from myna.actors.telemetry.instruments import instruments


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until told to stop."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a client is a file: the usual 1024 are soon open
    held: list[Gateway] = []

    def reconnected() -> None:
        for gateway in held:
            gateway.reconnected()

    with instruments(settings, "gateway") as watching:
        bus = await config.connect_bus(settings, "gateway", on_reconnect=reconnected)
        try:
            where = _arguments()
            listening = replace(settings.gateway, port=where.port or settings.gateway.port)
            given = None if where.socket is None else socket.socket(fileno=where.socket)
            gateway = Gateway(bus, listening, settings.tenant, watching.requests(), watching.writer, given)
            held.append(gateway)
            health = Health(settings.health, lambda: gateway.ready.is_set() and bus.connected)
            grace = DRAIN + 5.0
            await process.attend(gateway.run(), gateway.ready, stop, health=health, drain=gateway.stop, grace=grace)
        finally:
            await bus.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="myna.actors.gateway", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, help="the port to listen on, in place of the configured one")
    where.add_argument("--socket", type=int, help="the descriptor of a socket to listen on, which was opened before")
    return parser.parse_args()


if __name__ == "__main__":
    process.run("gateway", serve, expected=(OSError,))
