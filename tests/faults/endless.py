"""A schedule that never ends is a failed one, told with the place where it is: it must not hold up those beside it."""

from __future__ import annotations

import signal
import traceback
from types import FrameType

from tests.faults.play import Report, perform

PATIENCE = 120
"""Seconds of real time after which a schedule is given up; they take a twentieth of one."""
SHOWN = 2500
"""Characters of the place where it was."""


class Endless(KeyboardInterrupt):
    """A schedule does not end. Event loops let only interrupts through from their tasks."""


def perform_bounded(seed: int, patience: int = PATIENCE) -> Report:
    """`perform`, given up after `patience` seconds. For a process's main thread."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Endless("".join(traceback.format_stack(frame)))

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(patience)
    try:
        return perform(seed)
    except Endless as place:
        problem = f"not over after {patience} seconds of real time, here:\n{str(place)[-SHOWN:]}"
        return Report(seed, [problem], [], "", 0.0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
