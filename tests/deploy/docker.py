"""The Docker engine and a compose command, as the tests use them: by their command lines, as a person would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BASE = "python:3.12-slim"
"""What images are built on where an image registry is reached."""


class CommandFailed(Exception):
    """A command ended with another status than 0; the text has what it said."""


async def run(*command: str, environment: Mapping[str, str] | None = None, seconds: float = 600.0) -> str:
    """What `command` printed. Raises `CommandFailed`, TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        said = (out + err).decode(errors="replace")
        raise CommandFailed(f"{' '.join(command)} ended with {process.returncode}:\n{said[-4000:]}")
    return out.decode(errors="replace")


async def docker(*arguments: str, seconds: float = 600.0) -> str:
    """`docker ...`, without the blanks around what it says."""
    return (await run("docker", *arguments, seconds=seconds)).strip()


@cache
def compose_commands() -> tuple[tuple[str, ...], ...]:
    """The compose commands of this machine: the plugin (v2), docker-compose (1.29), both or none."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    found = [("docker", "compose")] if plugin.returncode == 0 else []
    return (*found, *([("docker-compose",)] if shutil.which("docker-compose") else []))


@dataclass(frozen=True)
class Compose:
    """One project: `files` under a name, with settings in the environment."""

    command: tuple[str, ...]
    project: str
    files: Sequence[Path]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """With which every compose command of this project runs."""
        files = os.pathsep.join(str(file) for file in self.files)
        return {
            **self.settings,
            "COMPOSE_FILE": files,
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE": " ".join(self.command),
        }

    async def __call__(self, *arguments: str, seconds: float = 600.0) -> str:
        """A compose command."""
        return await run(*self.command, *arguments, environment=self.environment, seconds=seconds)

    async def containers(self, service: str) -> list[str]:
        """The containers of a service that run."""
        return (await self("ps", "-q", service)).split()

    async def operator(self, *command: str) -> str:
        """What a command says that runs as the operator."""
        return await self("run", "--rm", "--no-deps", "-T", "operator", *command)

    async def healthy(self, services: Sequence[str], *, within: float) -> None:
        """Wait until every container of these services says that it is well. Raises TimeoutError with what they say."""
        states: dict[str, str] = {}
        try:
            async with asyncio.timeout(within):
                while not states or any(state != "healthy" for state in states.values()):
                    await asyncio.sleep(1.0)
                    states = await self._states(services)
        except TimeoutError:
            raise TimeoutError(f"not well after {within:g} s: {states}") from None

    async def _states(self, services: Sequence[str]) -> dict[str, str]:
        states: dict[str, str] = {}
        for service in services:
            found = await self.containers(service)
            states |= {f"{service}: {n}": "absent" for n in range(1 - len(found))}
            if found:
                for seen in json.loads(await docker("inspect", *found)):
                    states[f"{service}: {seen['Name']}"] = (
                        seen["State"].get("Health", {}).get("Status", "without health")
                    )
        return states

    async def network(self, name: str) -> str:
        """The full name of one of its networks."""
        return f"{self.project}_{name}"
