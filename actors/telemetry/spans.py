"""When attempts were received, began, gave their first token and ended: put together from their outputs' times.

Law: pure and bounded. An attempt that is stopped tells nothing, so the oldest is forgotten where there are too many.
"""

from __future__ import annotations

from dataclasses import dataclass

from myna.actors.messages import Usage, Value
from myna.actors.worker.backend import RunKey

MOST = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt's times, in seconds since the epoch, and its tokens; as in `messages.Timing`."""

    function: str
    received: float
    began: float
    first: float
    ended: float
    used: Usage

    @property
    def pace(self) -> float | None:
        """Seconds for each output token after the first; None where there is no second."""
        further = self.used.output_tokens - 1
        return (self.ended - self.first) / further if further > 0 else None


class Spans:
    """The attempts that have made some of their outputs."""

    def __init__(self) -> None:
        self._open: dict[RunKey, Span] = {}

    def made(self, key: RunKey, function: str, value: Value) -> None:
        """An output is whole."""
        timing = value.timing
        if timing is None:
            return
        before = self._open.get(key)
        if before is None and len(self._open) >= MOST:
            del self._open[next(iter(self._open))]
        first = timing.first if before is None else min(before.first, timing.first)
        used = value.usage if before is None else before.used + value.usage
        self._open[key] = Span(function, timing.received, timing.began, first, timing.ended, used)

    def take(self, key: RunKey) -> Span | None:
        """The attempt is over."""
        return self._open.pop(key, None)
