"""Work of decode steps that follow one another: dealt anew only now and then, in between it grows by a key for each sequence.

While the same sequences decode, a plan differs from the one before by one more key at the end of each own span. The unit
that holds that end takes it in; which unit goes to which slot stays. That is a hundredth of what dealing costs, and
dealing for 256 sequences would take longer than Python can spare beside a step on the GPU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from myna.engine.plan import StepPlan
from myna.engine.work import Tiling, Work, make_work

DEALT_EVERY = 32
"""Steps after which work is dealt anew: until then the longest unit has grown by half a tile."""

_KEYS, _POSITION, _TOKENS, _FIRST_ROW, _CLEAR = 1, 2, 4, 9, 10


class GrowingWork:
    """The works of steps for layers of one kind, one after another. A work is good until the next one is asked for."""

    def __init__(self, tiling: Tiling, window: int | None = None) -> None:
        self._tiling = tiling
        self._window = window
        self._room = -(-DEALT_EVERY // tiling.page_size)
        self._plan: StepPlan | None = None
        self._work: Work | None = None
        self._ends: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self._age = 0

    def of(self, plan: StepPlan) -> Work:
        """The work of a plan."""
        if self._work is None or not self._grow(self._work, plan):
            self._work = make_work(plan, self._tiling, self._window, room=self._room)
            self._age = 0
            units, positions = self._work.units, self._work.positions
            single = units[:, _TOKENS] == 1
            ends = (
                units[:, _POSITION] + units[:, _KEYS] == positions[units[:, _FIRST_ROW]] + 1 if len(units) else single
            )
            self._ends = np.flatnonzero(single & ends)
        self._plan = plan
        return self._work

    def _grow(self, work: Work, plan: StepPlan) -> bool:
        """Let the last work become a plan's. False, with nothing changed, where it has to be dealt anew."""
        last, self._age = self._plan, self._age + 1
        if last is None or self._age >= DEALT_EVERY or self._window is not None or plan.continues != last.number:
            return False
        fresh: dict[int, int] = {}  # row -> the page that its own span has begun
        for before, now in zip(last.spans, plan.spans, strict=True):
            if before.pages is not now.pages:
                if not now.own or before.pages != now.pages[:-1]:
                    return False
                fresh[now.queries[0]] = now.pages[-1]
        units, ends, size = work.units, self._ends, self._tiling.page_size
        if fresh:
            begun = ends[np.isin(units[ends, _FIRST_ROW], list(fresh))]
            places = units[begun, 0] + units[begun, _KEYS] // size
            work.pages[places] = [fresh[row] for row in units[begun, _FIRST_ROW].tolist()]
        units[ends, _KEYS] += 1
        units[ends, _CLEAR] += 1
        np.add(work.positions, 1, out=work.positions)
        return True
