"""Whether an endpoint takes calls, and how many at once. Pure: the time comes with each event.

Laws:
- Whoever says when to come again is obeyed. Otherwise the pause grows with each failure in a row, from `FIRST` to `LONGEST`.
- Calls that were begun before a failure was known, and fail too, tell nothing new.
- After a failure one call at a time is let through, until one succeeds.
- An endpoint that says "too many" gets half as many at once; with each success there is room for a little more.
- What has failed for `DOWN` seconds, or can't be right as it is configured, serves nothing: calls for it need not wait.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 0.5
"""Seconds of the pause after a first failure."""
LONGEST = 30.0
"""Seconds of a pause, where the endpoint itself does not ask for more."""
MOST = 3600.0
"""Seconds of a pause that an endpoint may ask for."""
DOWN = 20.0
"""Seconds of failure after which an endpoint serves nothing."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How far the gate is open: `paused` says why it is shut, until `until`. `serves`: whether it is worth waiting for."""

    capacity: int
    paused: str = ""
    until: float | None = None
    serves: bool = True


class Gate:
    """See the module. It begins shut, until it is known that somebody is there."""

    def __init__(self, concurrency: int, now: float) -> None:
        self._concurrency = concurrency
        self._limit = float(concurrency)
        self._reason = "nobody has answered there yet"
        self._until = now
        self._failures = 0
        self._failing_since: float | None = now
        self._failed_at = now
        self._limited_at: float | None = None
        self._limits = 0
        self._broken = False

    def opening(self, now: float) -> Opening:
        """How far it is open."""
        if self._untried or now < self._until:
            down = self._failing_since is not None and now - self._failing_since >= DOWN
            return Opening(1, self._reason, max(self._until, now), serves=not (down or self._broken))
        return Opening(1 if self._failing_since is not None else max(1, int(self._limit)))

    @property
    def _untried(self) -> bool:
        """It failed, and nobody has looked since whether it is there again."""
        return self._failing_since is not None and bool(self._reason)

    @property
    def due(self) -> float | None:
        """When it should be looked at whether the endpoint is there again; None while nothing is wrong."""
        return self._until if self._untried else None

    def answered(self, now: float) -> None:
        """Somebody is there: a look at the endpoint has succeeded. Calls will tell whether it works."""
        if self._until <= now:
            self._reason = ""
        if not self._failures and not self._broken:
            self._failing_since = None  # nothing has failed yet: it was only not known

    def succeeded(self) -> None:
        """A call has succeeded."""
        self._failures, self._limits, self._failing_since, self._broken = 0, 0, None, False
        self._limit = min(self._concurrency, self._limit + 1.0 / self._limit)

    def limited(self, began: float, now: float, retry_after: float | None) -> None:
        """A call that began then was refused as one too many."""
        fresh = self._limited_at is None or began > self._limited_at
        if fresh:
            self._limits += 1
            self._limit = max(1.0, self._limit / 2)
            self._limited_at = now
        if fresh or retry_after is not None:
            pause = _growing(self._limits) if retry_after is None else min(retry_after, MOST)
            self._shut(now + pause, "the endpoint limits its rate")

    def exhausted(self, now: float, seconds: float) -> None:
        """The endpoint says that its allowance is used up, for so many seconds."""
        self._shut(now + min(seconds, MOST), "the endpoint's allowance is used up")

    def failed(self, began: float, now: float, reason: str, *, broken: bool = False) -> None:
        """A call that began then, or a look, has failed through the endpoint's fault. `broken`: it can't be right as it is."""
        if self._failures and began <= self._failed_at:
            return
        self._failures += 1
        self._broken = broken
        self._failed_at = now
        if self._failing_since is None:
            self._failing_since = now
        self._shut(now + (LONGEST if broken else _growing(self._failures)), reason)

    def _shut(self, until: float, reason: str) -> None:
        self._until = max(self._until, until)
        self._reason = reason


def _growing(times: int) -> float:
    return min(FIRST * 2.0 ** min(times - 1, 16), LONGEST)
