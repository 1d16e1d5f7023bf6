"""A gateway before a real engine, a tiny model with random weights in a process of its own, and the official client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from myna.actors import config
from myna.actors.engine_host.backend import EngineBackend
from tests.actors.gateway.conftest import furnished
from tests.engine.tiny_folder import tiny_folder
from tests.network import NatsNetwork


@asynccontextmanager
async def asking_an_engine(nats: NatsNetwork, folder: Path, **changes: Any) -> AsyncIterator[AsyncOpenAI]:
    """`changes` are those of the model's configuration."""
    engine = config.EngineSettings(
        model=str(tiny_folder(folder, **changes)), dtype=config.Dtype.FLOAT32, kv_memory=2**20
    )
    settings = replace(config.read({"HOME": str(folder)}), engine=engine)
    async with furnished(nats, worker=False) as house:
        await house.cast.worker("engine", EngineBackend(settings))
        gateway = await house.open()
        async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0, timeout=60) as it:
            yield it
