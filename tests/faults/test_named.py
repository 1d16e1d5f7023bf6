"""Defects that schedules have shown, each with numbers of some that did: they pass now, and fail with the remedy taken away.

A change of timing or of the wire turns a schedule into another one, in which the defect need not show. While one of its numbers
still does, all is well; when none does, look for new ones: take the remedy away by hand and run `python -m tests.faults`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from myna.actors.scheduler import attempts
from myna.actors.scheduler.shell import Scheduler
from myna.sdk.readers.chunks import ChunkCommand, ChunkReader
from tests.faults.play import perform


@dataclass(frozen=True)
class Defect:
    """`undo` takes its remedy away; then at least one of `seeds` shows it."""

    name: str
    seeds: tuple[int, ...]
    undo: Callable[[pytest.MonkeyPatch], None]


def _end_at_the_last_chunk(patch: pytest.MonkeyPatch) -> None:
    def over(reader: ChunkReader) -> list[ChunkCommand]:
        return [reader._finish(True)] if reader._last else []

    patch.setattr(ChunkReader, "_over", over)


def _trust_the_network(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "LOST_BEATS", 10**9)


def _trust_the_servers(patch: pytest.MonkeyPatch) -> None:
    async def wait(_: Scheduler) -> None:
        await asyncio.Event().wait()

    patch.setattr(Scheduler, "_keep_streams", wait)


DEFECTS = (
    Defect("a dispatch that was lost was waited for for ever", (33, 40, 60, 68), _trust_the_network),
    Defect("a stream that servers had lost was not made again", (12, 17, 150), _trust_the_servers),
    Defect(
        "a stream ended before its value, which then came out otherwise", (1, 43, 60, 86, 88), _end_at_the_last_chunk
    ),
)


ONCE = {
    56: "an order that came twice, the second time late, was carried out again: worker/test_core, "
    "test_an_order_that_comes_again_after_its_attempt_has_ended_is_not_carried_out_twice",
    42646: "a sleeper wrote into a session that was purged, and a late reader believed it: test_takeover, "
    "test_a_worker_that_was_away_writes_nothing_into_a_session_that_was_purged_meanwhile",
    53167: "a timer was not yet due at its time by a clock that had leapt, and was set again for ever (a rounding)",
    12780: "a session could not be opened in its time, and was told so: no defect, and the verdict said that it was",
}
"""Schedules that showed something once, and show it no more even without the remedy: what shows it now."""


@pytest.mark.parametrize("seed", ONCE)
def test_a_schedule_that_once_showed_something_passes(seed: int) -> None:
    assert perform(seed).problems == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_schedule_that_showed_a_defect_passes_and_would_show_it_again(
    defect: Defect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in defect.seeds:
        assert perform(seed).problems == []
    defect.undo(monkeypatch)
    assert any(perform(seed).problems for seed in defect.seeds)
