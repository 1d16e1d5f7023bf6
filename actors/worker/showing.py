"""What a worker shows of itself to people who look: what it holds, what has ended lately, and what its backend tells.

Law: it is bounded, and pure; times come in as the wall clock's. Nobody depends on it, so that what is lost is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from msgspec.structs import replace

from myna.actors.messages import CallSight, Phase, SpanSight, Value
from myna.actors.worker.backend import Insight, Progress, RunKey

MOST_CALLS = 256
MOST_ENDED = 256
"""Calls that have ended since the last look, and are told of."""


class Showing:
    """The calls that have ended since it was looked at last."""

    def __init__(self) -> None:
        self._ended: dict[RunKey, SpanSight] = {}

    def ended(self, key: RunKey, function: str, value: Value) -> None:
        """An output of a call is whole, with its times by the wall clock."""
        timing = value.timing
        if timing is None or (len(self._ended) >= MOST_ENDED and key not in self._ended):
            return
        tenant, session, call, attempt = key
        before = self._ended.get(key)
        used, first = value.usage, timing.first
        if before is not None:
            used, first = before.usage + used, min(before.first, first)
        self._ended[key] = SpanSight(
            tenant=tenant,
            session=session,
            call=call,
            attempt=attempt,
            function=function[:80],
            received=timing.received,
            began=timing.began,
            first=first,
            ended=timing.ended,
            usage=used,
        )

    def take(self) -> tuple[SpanSight, ...]:
        """What has ended since it was taken last."""
        ended, self._ended = self._ended, {}
        return tuple(ended.values())


def calls(held: Iterable[tuple[RunKey, CallSight]], insight: Insight, offset: float) -> tuple[CallSight, ...]:
    """What the worker knows of its calls, each beside its backend's name for it, with what that knows better; `MOST_CALLS` at
    most. `offset`: from the worker's clock to the wall clock."""
    return tuple(_shown(call, insight.progress.get(job), offset) for job, call in islice(held, MOST_CALLS))


def _shown(call: CallSight, progress: Progress | None, offset: float) -> CallSight:
    call = replace(call, since=call.since + offset, first=None if call.first is None else call.first + offset)
    if progress is None or call.phase in (Phase.READING, Phase.STORING):
        return call
    return replace(
        call,
        phase=progress.phase,
        tokens=progress.tokens,
        computed=progress.computed,
        cached=progress.cached,
        prefix=progress.prefix,
    )
