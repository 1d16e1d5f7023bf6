from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Annotated

import pytest

import myna
from myna import Input, Output
from myna.actors import machine
from myna.actors.machine import Plan
from myna.sdk import embedded

pytestmark = [pytest.mark.cluster]


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=2)]) -> None:
    """{{question}}{{answer}}"""


async def application() -> str:
    async with myna.session():
        text: str = await ask("x").get(timeout=60)
        return text


@pytest.fixture
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address, no `myna up`; and the machine that is started has the no-op engine."""
    for name in ("MYNA_URL", "MYNA_USER", "MYNA_PASSWORD", "MYNA_PASSWORD_FILE", "MYNA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MYNA_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "embedded", functools.partial(machine.embedded, plan=Plan(noop=True)))
    monkeypatch.setattr(embedded, "_machine", None)


@pytest.mark.usefixtures("nothing_configured")
def test_without_an_address_the_process_has_a_machine_of_its_own_that_event_loops_share() -> None:
    assert asyncio.run(application()) == "answer0 answer1"
    first = embedded._machine
    assert first is not None
    assert asyncio.run(application()) == "answer0 answer1"
    with myna.sync.session():
        assert ask("x").get(timeout=60) == "answer0 answer1"
    assert embedded._machine is first
    first.stop()
    assert first.ended
    assert asyncio.run(application()) == "answer0 answer1", "the next one starts another"
    assert embedded._machine is not first
    embedded._machine.stop()


@pytest.mark.usefixtures("nothing_configured")
def test_a_machine_that_cant_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_NATS_SERVER", "/does/not/exist")
    with pytest.raises(myna.NotReady, match="/does/not/exist"):
        asyncio.run(application())
