"""A whole `myna up` on one GPU, and on two that share a model: applications and clients hear what they hear of a CPU."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import torch

import myna
from myna.actors import config
from myna.actors.machine import home
from myna.sdk.client import connect
from tests.actors.machine.processes import descendants
from tests.actors.machine.up import Up
from tests.engine.small_models import build
from tests.engine.tiny_tokenizers import byte_level
from tests.ports import free_ports

DEVICES = ["cuda:0", "cuda:0,cuda:1"] if torch.cuda.device_count() > 1 else ["cuda:0"]
CLEAR = 0.01
"""How much likelier the token that was taken has to be, so that another order of additions takes no other one."""
pytestmark = [pytest.mark.cluster, pytest.mark.gpu, pytest.mark.timeout(150)]


@myna.function
def summarize(
    chunk: myna.Input, summary: Annotated[str, myna.Output(max_tokens=12, temperature=0.0, ignore_eos=True)]
) -> None:
    """{{#user}}the quick brown fox: {{chunk}}{{/user}}
    {{#assistant}}{{summary}}{{/assistant}}"""


def saved(parent: Path) -> Path:
    folder = parent / "small"
    build("llama, heads of 128", torch.float32, torch.device("cpu")).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@asynccontextmanager
async def machine(folder: Path, port: int, device: str, model: Path) -> AsyncIterator[Up]:
    """One that is ready; it ends as for a person who presses Ctrl-C, and leaves nothing."""
    settings = {"MYNA_MODEL": str(model), "MYNA_DEVICE": device, "MYNA_DTYPE": "float32", "MYNA_KV_MEMORY": "128M"}
    up = await Up.start(folder, **settings, MYNA_GATEWAY_PORT=str(port))
    try:
        await up.lines_until("ready at", seconds=90)
        yield up
        living = descendants(up.process.pid)
        up.process.send_signal(signal.SIGINT)
        await up.lines_until("no process is left")
        assert await up.process.wait() == 0
        assert not living.keys() & descendants(1).keys()
    finally:
        if up.process.returncode is None:
            up.process.kill()
        await up.process.communicate()


async def applied(up: Up) -> list[str]:
    """A map and a reduce over the SDK: the parts, then what is made of them, as it streams."""
    settings = home.located(config.read({"MYNA_HOME": str(up.home)}))
    bus = await config.connect_bus(settings, "test")
    try:
        async with connect(bus=bus, tenant=settings.tenant) as client, client.session():
            parts: list[Any] = [
                summarize(chunk=chunk) for chunk in ("it rains in Spain", "今天天气很好", "plain", "Sylt")
            ]
            whole = summarize(chunk=parts)
            streamed = "".join([text async for text in whole.stream()])
            assert streamed == await whole
            return [*[await part for part in parts], streamed]
    finally:
        await bus.close()


async def answered(up: Up) -> list[str]:
    """A request to the gateway, in tokens. Each is clearly the likeliest."""
    info = home.find(up.home)
    assert info is not None
    asked = {
        "model": "small", "messages": [{"role": "user", "content": "Viktor"}], "max_tokens": 24, "temperature": 0,
        "logprobs": True, "top_logprobs": 2, "ignore_eos": True,
    }  # fmt: skip
    async with httpx.AsyncClient(base_url=info.gateway, timeout=60) as http:
        answer = (await http.post("/v1/chat/completions", json=asked)).raise_for_status().json()
    tokens = answer["choices"][0]["logprobs"]["content"]
    for token in tokens:
        first, second = token["top_logprobs"]
        assert first["logprob"] - second["logprob"] > CLEAR
    return [token["token"] for token in tokens]


async def heard(folder: Path, port: int, device: str, model: Path) -> tuple[list[str], list[str]]:
    async with machine(folder, port, device, model) as up:
        return await applied(up), await answered(up)


@pytest.mark.parametrize("device", DEVICES)
async def test_what_is_heard_of_a_machine_with_gpus_is_what_one_without_says(device: str, tmp_path: Path) -> None:
    model = saved(tmp_path)
    first, second = free_ports(2)
    expected, found = await asyncio.gather(
        heard(tmp_path / "cpu", first, "cpu", model), heard(tmp_path / "gpu", second, device, model)
    )
    assert found == expected
    texts, tokens = expected
    assert len(tokens) == 24
    assert all(texts)
