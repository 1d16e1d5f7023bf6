"""The documentation builds without a warning, and the tutorial does what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.actors.stage import stage
from tests.network import NatsNetwork, nats

__all__ = ["nats"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "sdk" / "docs"


@pytest.mark.timeout(300)
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page, said in {
        "project/wire.html": "Whoever can speak NATS and MessagePack can take part",
        "reference/sdk.html": "myna.session",
        "reference/wire.html": "Piece n of a variable",
    }.items():
        assert said in re.sub(r"<[^>]+>", "", (tmp_path / page).read_text()), page


@pytest.mark.nats
async def test_the_tutorial_runs_as_it_stands(nats: NatsNetwork, tmp_path: Path) -> None:
    pieces = re.findall(r"^```python\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "tutorial.py").write_text("\n".join(pieces))
    config = nats.server.config
    servers = {"MYNA_URL": nats.server.url, "MYNA_USER": config.user, "MYNA_PASSWORD": config.password}
    async with stage(nats.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        command = (sys.executable, "-W", "error", "tutorial.py")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env=os.environ | servers, stdout=PIPE, stderr=PIPE
        )
        said, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    written = " ".join(f"summary{n}" for n in range(40))
    assert said.decode().splitlines()[:3] == [written, written, written.upper()]
