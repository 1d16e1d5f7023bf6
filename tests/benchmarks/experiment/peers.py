"""Servers of others, asked by the same waiting client: (c) transformers' continuous batching, (d) llama.cpp's server.

Law: a peer gets the calls of the same applications, texts of the same tokens and lengths, each call the moment its inputs have
come back, siblings at once. It runs as it comes, prefix cache included; texts differ from run to run, so that each begins cold.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import myna
from myna.actors.messages import Usage
from myna.sdk.examples._callers import Result, Run
from myna.sdk.function import Function
from tests.benchmarks.experiment.arms import Load, Outcome
from tests.benchmarks.experiment.cluster import Cluster
from tests.ports import free_port

LLAMA_SERVER = "tests.actors.endpoints.llama_server"
START = 120.0
"""Seconds in which a peer must answer for the first time."""


class Peer(Protocol):
    """A server. `name` says what, in which version."""

    name: str

    async def complete(self, prompt: str, tokens: int) -> str:
        """So many tokens after a prompt, the likeliest each."""


@dataclass
class PeerCalls:
    """What one application makes its calls through (`Calls`). Native functions run here."""

    peer: Peer
    half: float
    made: list[asyncio.Task[Any]] = field(default_factory=list)

    def call(self, label: str, function: Function | myna.Agent, **arguments: Any) -> Result:
        """See `Calls`."""
        task = asyncio.create_task(self._answer(function, arguments), name=label)
        self.made.append(task)
        return task

    async def _answer(self, function: Function | myna.Agent, arguments: dict[str, Any]) -> str:
        given = {name: await _text(argument) for name, argument in arguments.items()}
        if isinstance(function, myna.Agent):
            made = function.function(**given)
            return str(await made if asyncio.iscoroutine(made) else made)
        await asyncio.sleep(self.half)
        text = await self.peer.complete(given["head"] + "".join(given["body"]), given["answer"].sampling.max_tokens)
        await asyncio.sleep(self.half)
        return text


async def _text(argument: Any) -> Any:
    if isinstance(argument, list):
        return [await _text(item) for item in argument]
    return await argument if isinstance(argument, asyncio.Task) else argument


async def perform(peer: Peer, loads: Sequence[Load], round_trip: float = 0.0, timeout: float = 120.0) -> list[Outcome]:
    """Run all loads; those of the foreground come back, in their order. Raises the first failure, or TimeoutError."""
    began = time.perf_counter()

    async def one(load: Load) -> Outcome:
        await asyncio.sleep(max(load.at - (time.perf_counter() - began), 0.0))
        calls, start, since = PeerCalls(peer, round_trip / 2), time.time(), time.perf_counter()
        try:
            texts = [await task for task in load.application(calls)]
        finally:
            for task in calls.made:
                task.cancel()
        seconds = time.perf_counter() - since
        return Outcome(load.kind, Run(seconds, start, start + seconds, tuple(texts), (), Usage()))

    tasks = [asyncio.create_task(one(load)) for load in loads]
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.gather(*(t for t, load in zip(tasks, loads, strict=True) if not load.background))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Transformers:
    """A model of transformers, driven by its continuous batching. Made by `transformers_peer`."""

    def __init__(self, manager: Any, tokenizer: Any) -> None:
        self.name = f"(c) transformers {version('transformers')}"
        self._manager = manager
        self._tokenizer = tokenizer
        self._numbers = itertools.count()

    async def complete(self, prompt: str, tokens: int) -> str:
        """See `Peer`."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = f"r{next(self._numbers)}"
        self._manager.register_result_handler(name, lambda result: _settle(done, result))
        ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        self._manager.add_request(ids, request_id=name, max_new_tokens=tokens, eos_token_id=-1)
        try:
            result = await done
        except asyncio.CancelledError:
            self._manager.cancel_request(name)
            raise
        return " " + str(self._tokenizer.decode(result.generated_tokens)).strip()


def _settle(done: asyncio.Future[Any], result: Any) -> None:
    if done.done() or not result.is_finished():
        return
    if result.error is not None:
        done.set_exception(RuntimeError(str(result.error)))
    else:
        done.set_result(result)


@asynccontextmanager
async def transformers_peer(network: Any, tokenizer: Any) -> AsyncIterator[Transformers]:
    """Continuous batching of `network`, on the device where it is. Its memory is bounded: without FlashAttention it makes masks
    and copies of keys, which grow with it."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    drawing = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
    gpu = network.device.type == "cuda"
    batching = ContinuousBatchingConfig(num_blocks=512 if gpu else 96, max_batch_tokens=2048 if gpu else None)
    manager = network.init_continuous_batching(drawing, batching)
    manager.start()
    try:
        yield Transformers(manager, tokenizer)
    finally:
        await asyncio.to_thread(manager.stop, block=True, timeout=30.0, hard_stop=True)


async def peers_of(shape: str, device: str) -> AsyncIterator[Peer]:
    """The peers that can serve a model of this shape, one after another: llama.cpp has the default model only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from myna.engine import loading
    from tests.benchmarks.experiment.made import DEFAULT, SHAPES, network
    from tests.benchmarks.experiment.words import made_tokenizer

    if shape == DEFAULT:
        source = loading._find(loading.DEFAULT_MODEL, loading._default_cache())
        tokenizer = AutoTokenizer.from_pretrained(source)
        made = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    else:
        made, tokenizer = network(shape, device, 0), made_tokenizer(SHAPES[shape]["vocab_size"])
    async with transformers_peer(made, tokenizer) as transformers:
        yield transformers
    if shape == DEFAULT:
        async with llama_peer() as llama:
            yield llama


class Completions:
    """A server that speaks OpenAI's API. Made by `llama_peer` and `gateway_peer`."""

    def __init__(self, name: str, client: Any, model: str) -> None:
        self.name = name
        self._client = client
        self._asked = {"model": model, "temperature": 0.0, "seed": 0, "ignore_eos": True}

    async def complete(self, prompt: str, tokens: int) -> str:
        """See `Peer`."""
        asked = self._asked | {"prompt": prompt, "max_tokens": tokens, "min_tokens": tokens}
        answer = await self._client.post("/v1/completions", json=asked)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])


@asynccontextmanager
async def _connected(name: str, port: int) -> AsyncIterator[Completions]:
    """The first model of a server on this machine, over connections that are kept."""
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(120.0), limits=limits
    ) as client:
        models = (await client.get("/v1/models")).json()["data"]
        yield Completions(name, client, models[0]["id"])


@asynccontextmanager
async def gateway_peer(cluster: Cluster) -> AsyncIterator[Completions]:
    """Our own engine behind our own gateway, with the scheduler that the cluster has: a server like any other."""
    port = free_port()
    await cluster.gateway(port)
    try:
        async with _connected("(b) through the gateway", port) as peer:
            yield peer
    finally:
        await cluster.stop("gateway")


@asynccontextmanager
async def llama_peer() -> AsyncIterator[Completions]:
    """llama.cpp's server with the default model, in a process of its own, with all cores. Raises TimeoutError, RuntimeError."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", LLAMA_SERVER, str(port)),
        *("--n_ctx", "8192", "--n_threads", str(os.cpu_count())),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START):
            while b"Uvicorn running" not in (line := await process.stderr.readline()):
                if not line:
                    raise RuntimeError("llama.cpp's server ended before it served")
        async with _connected(f"(d) llama.cpp ({version('llama-cpp-python')})", port) as peer:
            yield peer
    finally:
        process.kill()
        await process.wait()
