"""The prompts that wait on an engine, which computes them in the scheduler's order.

Law: this is belief, by the engine's own measured times, and decides only whether a call is handed over now. What is computed
first is the engine's affair.
"""

from __future__ import annotations

import heapq


class Backlog:
    """Seconds of prompts, by the order of their calls, the least first."""

    __slots__ = ("_at", "_prompts")

    def __init__(self) -> None:
        self._at = 0.0
        self._prompts: list[tuple[float, float]] = []

    def add(self, order: float, seconds: float, now: float) -> None:
        """A call is handed over whose prompt takes so long."""
        self._advance(now)
        heapq.heappush(self._prompts, (order, seconds))

    def before(self, order: float, now: float) -> float:
        """Seconds until a call with this order can be begun: those of the prompts that go before it."""
        self._advance(now)
        return sum(seconds for other, seconds in self._prompts if other <= order)

    def clear(self, now: float) -> None:
        """None waits."""
        self._at = now
        self._prompts.clear()

    def _advance(self, now: float) -> None:
        """Time has passed, in which the first were computed."""
        passed, prompts = now - self._at, self._prompts
        self._at = now
        while prompts and passed > 0.0:
            order, seconds = prompts[0]
            if seconds > passed:
                prompts[0] = order, seconds - passed  # it stays the least
                return
            heapq.heappop(prompts)
            passed -= seconds
