"""What engines have shown lately: a fold over their sights, bounded in time and in number.

Laws:
- Pure: times come with the sights, by the engines' wall clocks; what is silent is judged by the watcher's own.
- A tenant is shown what is its own: its calls and its prefixes, not what others keep an engine busy with.
- Nothing hangs on it: what is lost is not shown, and a watcher that begins knows nothing of what was before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from myna.actors.messages import CallSight, PrefixSight, Sight, SpanSight, StepSight

KEEP = 180.0
"""Seconds of history."""
SILENT = 10.0
"""Seconds after which an engine that shows nothing is gone."""
MOST_SPANS = 2000
"""Ended calls of one engine that are kept."""
MOST_STEPS = 2000
MOST_TOLD = 3000
"""Calls, spans, steps or prefixes that are told at once of all engines: the newest of each."""
_LEAST_TOLD = 12
"""Of one engine, however many there are."""

CallKey = tuple[str, str, str]
"""A call: its tenant, session and id."""

T = TypeVar("T")


@dataclass(slots=True)
class _Engine:
    last: Sight
    heard: float
    calls: dict[CallKey, CallSight] = field(default_factory=dict)
    steps: deque[StepSight] = field(default_factory=lambda: deque(maxlen=MOST_STEPS))
    spans: deque[SpanSight] = field(default_factory=lambda: deque(maxlen=MOST_SPANS))


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine. `steps` and `spans` are those after the time that was asked for; `load` and `steps` are for the operator."""

    worker: str
    serves: tuple[str, ...]
    capacity: int
    at: float
    load: dict[str, float]
    calls: tuple[CallSight, ...]
    steps: tuple[StepSight, ...]
    spans: tuple[SpanSight, ...]
    prefixes: tuple[PrefixSight, ...]
    left_out: int


class History:
    """See the module."""

    def __init__(self) -> None:
        self._engines: dict[str, _Engine] = {}

    def add(self, sight: Sight, now: float) -> None:
        """An engine has shown itself; `now` is the watcher's own clock."""
        engine = self._engines.get(sight.worker)
        if engine is None:
            engine = self._engines[sight.worker] = _Engine(sight, now)
        engine.last, engine.heard = sight, now
        engine.calls = {(call.tenant, call.session, call.call): call for call in sight.calls}
        engine.steps.extend(sight.steps)
        engine.spans.extend(sight.ended)
        _drop_before(engine.steps, sight.at - KEEP, _step_time)
        _drop_before(engine.spans, sight.at - KEEP, _span_time)

    def forget(self, now: float) -> None:
        """Forget engines that have been silent for long."""
        for worker in [w for w, engine in self._engines.items() if now - engine.heard > SILENT]:
            del self._engines[worker]

    def call(self, key: CallKey) -> CallSight | None:
        """A call that is at an engine now, as its latest attempt is."""
        found = [call for engine in self._engines.values() if (call := engine.calls.get(key)) is not None]
        return max(found, key=lambda call: call.attempt, default=None)

    def engines(self, *, tenant: str | None = None, since: float = 0.0) -> tuple[EngineView, ...]:
        """Every engine, with what was noted after `since`; for a tenant, or for the operator."""
        most = max(MOST_TOLD // max(len(self._engines), 1), _LEAST_TOLD)
        return tuple(_view(engine, tenant, since, most) for _, engine in sorted(self._engines.items()))


def _view(engine: _Engine, tenant: str | None, since: float, most: int) -> EngineView:
    last = engine.last
    spans = _after(engine.spans, since, _span_time)
    if tenant is None:
        calls, prefixes, steps, load = last.calls, last.prefixes, _after(engine.steps, since, _step_time), last.load
    else:
        calls = tuple(c for c in last.calls if c.tenant == tenant)
        prefixes = tuple(p for p in last.prefixes if p.cache.partition("/")[0] == tenant)
        spans, steps, load = tuple(s for s in spans if s.tenant == tenant), (), {}
    left_out = (last.left_out if tenant is None else 0) + max(len(calls) - most, 0)
    told = (calls[:most], steps[-most:], spans[-most:], prefixes[:most])
    return EngineView(last.worker, last.serves, last.capacity, last.at, load, *told, left_out)


def _step_time(step: StepSight) -> float:
    return step.at


def _span_time(span: SpanSight) -> float:
    return span.ended


def _after(noted: Iterable[T], since: float, time_of: Callable[[T], float]) -> tuple[T, ...]:
    return tuple(item for item in noted if time_of(item) > since)


def _drop_before(noted: deque[T], before: float, time_of: Callable[[T], float]) -> None:
    while noted and time_of(noted[0]) < before:
        noted.popleft()
