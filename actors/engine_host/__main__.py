"""The engine host's process: `python -m myna.actors.engine_host [--name NAME] [--noop]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket

from myna.actors import config, process
from myna.actors.config import Settings
from myna.actors.health import Health
from myna.actors.messages import WorkerId
from myna.actors.subjects import token
from myna.actors.telemetry.instruments import instruments
from myna.actors.worker.backend import Backend, BackendDied, BackendRefused
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker, WorkerFailed

GRACE = 10.0
"""Seconds that running calls get to end when the host is asked to stop; what is left goes on elsewhere."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="myna.actors.engine_host", description="Serve a model to a Myna scheduler.")
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
    parser.add_argument("--name", default=f"engine-{host}-{os.getpid()}", type=token, help="this worker's unique name")
    parser.add_argument("--noop", action="store_true", help="no model: make words, for tests and measurements")
    parser.add_argument("--step", type=float, default=0.0, help="seconds that --noop takes for a word")
    parser.add_argument("--capacity", type=int, default=64, help="calls that --noop runs at once")
    return parser.parse_args()


def _backend(arguments: argparse.Namespace, settings: Settings) -> Backend:
    if arguments.noop:
        engine = settings.engine
        name, pace = engine.model or "noop", (arguments.step, arguments.capacity)
        return NoopBackend(NoopModel(name, engine.aliases, *pace))
    from myna.actors.engine_host.backend import EngineBackend  # here, so that a no-op host loads no engine

    return EngineBackend(settings)


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    arguments = _arguments()
    with instruments(settings, "engine-host") as watching:
        bus = await config.connect_bus(settings, arguments.name)
        worker = Worker(bus, WorkerId(arguments.name), _backend(arguments, settings), watching.worker())
        health = Health(settings.health, lambda: worker.ready.is_set() and bus.connected)
        try:
            await process.attend(worker.run(), worker.ready, stop, health=health, drain=worker.drain, grace=GRACE)
        finally:
            await bus.close()


process.run("engine-host", _serve, expected=(WorkerFailed, BackendDied), final=(BackendRefused,))
