"""The OpenAPI document is valid, and whatever it allows causes no server error."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest
from msgspec import structs
from openapi_spec_validator import validate

from myna.actors.config import GatewaySettings
from myna.actors.gateway.openapi import document
from myna.actors.gateway.paths import ENDPOINTS
from myna.actors.messages import Output, VarId
from myna.actors.worker.backend import Job
from myna.actors.worker.noop import NoopBackend
from tests.actors.gateway.conftest import House

EXAMPLES = int(os.environ.get("MYNA_SCHEMATHESIS_EXAMPLES", "8"))


def test_the_openapi_document_is_valid_and_names_every_endpoint() -> None:
    described = document(ENDPOINTS)
    validate(described)
    operations = [o for path in described["paths"].values() for o in path.values()]
    assert len(operations) == len(ENDPOINTS)
    assert len({o["operationId"] for o in operations}) == len(ENDPOINTS)


@pytest.mark.nats
async def test_the_document_is_served(http: httpx.AsyncClient) -> None:
    assert (await http.get("/openapi.json")).json()["openapi"] == "3.1.0"


CONFIGURATION = """
[parameters]
"path.session" = "{session}"
"path.variable" = "known"
"path.model" = "noop"

[[operations]]
include-name = "DELETE /myna/v1/sessions/{{session}}"
parameters = {{ "path.session" = "another" }}
"""


class Brief(NoopBackend):
    """Says little, however much it is asked for."""

    async def _generate(self, job: Job, variable: VarId, output: Output) -> None:
        sampling = structs.replace(output.sampling, max_tokens=1)
        await super()._generate(job, variable, structs.replace(output, sampling=sampling))


@pytest.mark.nats
async def test_schemathesis_finds_no_server_error(house: House, tmp_path: Path) -> None:
    await house.cast.crash("worker")
    await house.cast.worker("brief", Brief())
    gateway = await house.open(GatewaySettings(timeout=1))
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        session = (await http.post("/myna/v1/sessions", json={})).json()["session"]
        await http.post(f"/myna/v1/sessions/{session}/variables", json={"id": "known", "text": "there"})
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(session=session))
    program = Path(sys.executable).parent / "schemathesis"
    checks = "not_a_server_error,content_type_conformance"
    process = await asyncio.create_subprocess_exec(
        *(
            str(program),
            "run",
            f"{gateway.url}/openapi.json",
            "--checks",
            checks,
            "--phases",
            "fuzzing",
        ),
        *("--max-examples", str(EXAMPLES), "--request-timeout", "15", "--workers", "2", "--seed", "1"),
        *("--generation-database", "none", "--suppress-health-check", "all"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-6000:]
