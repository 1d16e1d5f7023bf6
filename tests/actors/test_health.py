from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from myna.actors import health
from myna.actors.health import Health


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "EVERY", 0.001)


class Asked:
    """Whether all is well, and how often that was asked."""

    def __init__(self, answer: Callable[[int], bool]) -> None:
        self._answer = answer
        self._asked = asyncio.Semaphore(0)
        self._times = 0

    def __call__(self) -> bool:
        self._times += 1
        self._asked.release()
        return self._answer(self._times)

    async def times(self, count: int) -> None:
        """Return when it was asked so often again: what was done about all answers but the last is done."""
        async with asyncio.timeout(5.0):
            for _ in range(count):
                await self._asked.acquire()


async def test_a_file_is_touched_again_and_again_while_all_is_well(tmp_path: Path) -> None:
    file, well = tmp_path / "healthy", Asked(lambda _: True)
    async with Health(file, well).told():
        await well.times(2)
        file.unlink()
        await well.times(3)
        assert file.exists()
    file.unlink()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(well.times(20), 0.02)
    assert not file.exists(), "nobody tells any more"


async def test_what_is_not_well_says_nothing_until_it_is(tmp_path: Path) -> None:
    file, well = tmp_path / "healthy", Asked(lambda times: times > 3)
    async with Health(file, well).told():
        await well.times(3)
        assert not file.exists()
        await well.times(2)
        assert file.exists()


async def test_a_file_that_cannot_be_written_is_logged_and_stops_nobody(tmp_path: Path) -> None:
    well = Asked(lambda _: True)
    with structlog.testing.capture_logs() as logs:
        async with Health(tmp_path / "no folder" / "healthy", well).told():
            await well.times(1)
            await asyncio.sleep(0)
    assert [line["event"] for line in logs] == ["health can't be told"]


async def test_without_a_file_nobody_is_asked() -> None:
    async with Health(None, lambda: pytest.fail("asked")).told():
        await asyncio.sleep(0)
