"""A cluster of real processes, all of them watched: `/metrics` on ports of their own, spans at a collector, logs.

A scheduler, an engine with a tiny model, agents, a gateway, and an endpoint that is the gateway's own API.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from myna.actors import config
from myna.actors.machine.process import ModuleProgram, Process
from myna.actors.machine.programs import ENDPOINTS, ENGINE_HOST, GATEWAY, SCHEDULER
from myna.actors.server import Server, ServerConfig
from tests.actors.stage import until
from tests.actors.telemetry.collector import Collector, collecting
from tests.engine.tiny_folder import tiny_folder
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
MODEL = "tiny-llama"


@dataclass
class Watched:
    """The cluster, as its operator sees it."""

    folder: Path
    http: httpx.AsyncClient
    collector: Collector
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)

    def lines(self, process: str) -> list[dict[str, Any]]:
        """What a process has logged."""
        return [json.loads(line) for line in self.log(process).splitlines() if line.startswith("{")]

    def log(self, process: str) -> str:
        return (self.folder / f"{process}.log").read_text()

    async def post(self, path: str, body: Any, **headers: str) -> Any:
        answer = await self.http.post(path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    async def session(self, **headers: str) -> str:
        session: str = (await self.post("/myna/v1/sessions", {}, **headers))["session"]
        return session

    async def native(self, session: str, function: str, text: str) -> dict[str, Any]:
        """Call an agent's function, and wait for how it ends."""
        spec = {"native": function, "inputs": {"text": {"text": text}}, "outputs": {"result": {}}}
        made = await self.post(f"/myna/v1/sessions/{session}/calls", {"calls": [{**spec, "retries": 0}]})
        (variable,) = made["calls"][0]["outputs"]["result"]
        answer = await self.http.get(f"/myna/v1/sessions/{session}/variables/{variable}", params={"timeout": 60})
        ended: dict[str, Any] = answer.json()
        return ended

    async def chat(self, text: str, model: str = MODEL, tokens: int = 8, **headers: str) -> httpx.Response:
        body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    """One that serves."""
    server = await Server.start(ServerConfig(folder / "nats"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "endpoints.toml").write_text(
        f'[[endpoint]]\nname = "own"\nurl = "{url}/v1"\nmodels = {{ own = "{MODEL}" }}\n'
    )
    with collecting() as collector:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            it = Watched(folder, client, collector)
            try:
                await _start(it, server, port)
                yield it
            finally:
                for process in it.processes.values():
                    process.signal(signal.SIGTERM)
                await asyncio.gather(*(process.wait() for process in it.processes.values()))
                await server.stop()


async def _start(it: Watched, server: Server, port: int) -> None:
    own = {
        "HOME": str(it.folder),
        "MYNA_URL": server.url,
        "MYNA_USER": server.config.user,
        "MYNA_PASSWORD": server.config.password,
        "MYNA_MODEL": str(tiny_folder(it.folder, MODEL)),
        "MYNA_ALIASES": MODEL,
        "MYNA_DTYPE": "float32",
        "MYNA_KV_MEMORY": "1M",
        "MYNA_ENDPOINTS": str(it.folder / "endpoints.toml"),
    }
    environment = config.child_environment(config.read(own)) | {
        "PYTHONPATH": f"{ROOT / '.src'}:{ROOT}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": it.collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    parts = {
        "scheduler": (SCHEDULER,),
        "engine": (ENGINE_HOST, "--name", "engine"),
        "gateway": (GATEWAY, "--port", str(port)),
        "agents": ("myna", "agent", "tests.actors.telemetry.agents"),
    }
    await asyncio.gather(*(_launch(it, name, environment, *part) for name, part in parts.items()))
    await asyncio.gather(*(it.processes[name].ready() for name in ("scheduler", "engine", "gateway")))
    await _launch(it, "endpoints", environment, ENDPOINTS, "--name", "endpoint")
    await it.processes["endpoints"].ready()
    await until(lambda: "serving" in it.log("agents"), "the agents serve")


async def _launch(it: Watched, name: str, environment: dict[str, str], module: str, *arguments: str) -> None:
    it.ports[name] = free_port()
    mine = environment | {"MYNA_METRICS_PORT": str(it.ports[name])}
    program = ModuleProgram(module, *arguments, environment=lambda: mine, log=it.folder / f"{name}.log")
    process = await program.launch()
    assert isinstance(process, Process)
    it.processes[name] = process
