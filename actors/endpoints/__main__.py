"""The process of all endpoints that a file names: `python -m myna.actors.endpoints [--name NAME] [FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from pathlib import Path

from myna.actors import config, process
from myna.actors.config import ConfigError, Settings
from myna.actors.endpoints.host import Host
from myna.actors.endpoints.settings import read
from myna.actors.health import Health
from myna.actors.subjects import token
from myna.actors.telemetry.instruments import instruments
from myna.actors.worker.backend import BackendDied
from myna.actors.worker.shell import WorkerFailed

GRACE = 10.0
"""Seconds that running calls get to end when the host is asked to stop."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="myna.actors.endpoints", description="Serve OpenAI-compatible endpoints.")
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:30]
    parser.add_argument(
        "file", nargs="?", type=Path, help="TOML or JSON file of the endpoints [default: MYNA_ENDPOINTS]"
    )
    parser.add_argument(
        "--name", default=f"{host}-{os.getpid()}", type=token, help="a unique name, before each endpoint's"
    )
    return parser.parse_args()


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    arguments = _arguments()
    path = arguments.file or settings.endpoints
    if path is None:
        raise ConfigError("no endpoints are configured: set MYNA_ENDPOINTS to a file that describes them")
    endpoints = read(path)
    books = settings.home / "endpoints" / f"{arguments.name}.json"
    with instruments(settings, "endpoints") as watching:
        bus = await config.connect_bus(settings, f"endpoints-{arguments.name}")
        host = Host(bus, arguments.name, endpoints, books, watching.worker())
        health = Health(settings.health, lambda: host.ready.is_set() and bus.connected)
        try:
            await process.attend(host.run(), host.ready, stop, health=health, drain=host.drain, grace=GRACE)
        finally:
            await bus.close()


process.run("endpoints", _serve, expected=(WorkerFailed, BackendDied))
