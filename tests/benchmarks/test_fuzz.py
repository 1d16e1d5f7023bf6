"""A small run of the fuzzer: a million frames are `python -m tests.benchmarks.fuzz`."""

from __future__ import annotations

from tests.benchmarks.fuzz import borders, bus_round


async def test_garbage_stops_no_actor_and_what_messages_hold_is_in_no_log() -> None:
    found = await bus_round(frames=3000, seed=5)
    assert (found["errors"], found["leaks"]) == (0, 0)
    assert found["bus"] == 3000
    assert found["rejected"] > 1000


def test_decoders_templates_and_settings_raise_what_they_promise_and_nothing_else() -> None:
    found = borders(frames=8000, seed=5)
    assert sum(found.values()) == 8000
