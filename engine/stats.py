"""What an engine tells about itself, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Times are in seconds; `lookup_tokens` were looked for in the prefix cache, `hit_tokens` found."""

    running: int
    waiting: int
    contexts: int
    pins: int
    pages: int
    free_pages: int
    evictable_pages: int
    lookup_tokens: int
    hit_tokens: int
    evicted_tokens: int
    preemptions: int
    steps: int
    computed_tokens: int
    drawn_tokens: int
    step_seconds: float
    model_seconds: float
    last_step_seconds: float
