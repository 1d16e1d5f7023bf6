"""Parrot's own client, from a checkout of its source that MYNA_PARROT names, unmodified, against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.actors.gateway.conftest import House

pytestmark = [pytest.mark.nats, pytest.mark.parrot]

PROGRAM = Path(__file__).parent / "parrot_program.py"


async def test_its_programs_run_unmodified(house: House) -> None:
    gateway = await house.open()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Wignore",  # its source warns of itself where it is compiled
        str(PROGRAM),
        gateway.url,
        env={**os.environ, "PYTHONPATH": os.environ["MYNA_PARROT"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    printed = out.decode()
    assert "Traceback" not in printed, printed
    got = json.loads(printed.splitlines()[-1])
    short = "short0 short1 short2"
    assert "no engine serves any of vicuna" in got.pop("refused")
    assert got == {
        "outputs": ["joke0 joke1 joke2", "why0 why1"],
        "chained": short,
        "waiting": short,
        "preallocated": short,
        "defined": "y0 y1 y2",
        "async": [short] * 3,
        "ended": True,
    }
