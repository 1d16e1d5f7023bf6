"""How often somebody may ask: a token bucket. Pure: the time comes with the question."""

from __future__ import annotations

from dataclasses import dataclass

BURST_SECONDS = 10.0
"""A bucket holds what comes in in so many seconds, at least one."""


@dataclass(slots=True)
class Bucket:
    """`rate` requests a minute, evenly; after a pause as many at once as come in in `BURST_SECONDS`."""

    rate: float
    _level: float | None = None
    _at: float = 0.0

    @property
    def size(self) -> float:
        """Requests that may come at once."""
        return max(1.0, self.rate / 60.0 * BURST_SECONDS)

    def take(self, now: float) -> float | None:
        """Take one request. None: it is granted; else the seconds after which one will be."""
        level = self.size if self._level is None else self._level + max(0.0, now - self._at) * self.rate / 60.0
        self._level, self._at = min(level, self.size), now
        if self._level < 1.0:
            return (1.0 - self._level) * 60.0 / self.rate
        self._level -= 1.0
        return None


class Limits:
    """A bucket for everybody who has a rate."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def take(self, who: str, rate: float | None, now: float) -> float | None:
        """Whether `who` may ask once more; see `Bucket.take`. `rate` None is without a limit."""
        if rate is None:
            self._buckets.pop(who, None)
            return None
        bucket = self._buckets.get(who)
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[who] = Bucket(rate)
        return bucket.take(now)
