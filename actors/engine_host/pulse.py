"""Whether an engine process hangs: it owes an answer, and does nothing to give it.

Law: a pure core; readings and their times come in. An engine answers between two steps, and a step may take long: so it is not
the silence that counts, but silence without work. A process that is stopped, or waits for ever, uses no processor time; one
that computes, or spins until its GPU has, does. One that is busy for ever is given up in the end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

READ_EVERY = 0.5
"""Seconds between two readings, and between an answer and the next question."""
IDLE = 1.5
"""Seconds for which an engine may owe an answer without using the processor."""
BUSY = 120.0
"""Seconds for which it may owe an answer, whatever it does: longer than any step takes."""
WORK = 0.01
"""Seconds of processor time between two readings below which a process is not at work: a thread that wakes and sleeps again."""


@dataclass(slots=True)
class Pulse:
    """One engine process. `owes` and `answered` follow the questions and answers; `read` judges."""

    _asked: float | None = None
    _read: float | None = None
    _used: float = 0.0
    _idle: float = 0.0

    def owes(self, now: float) -> None:
        """The engine was asked something, at `now`."""
        if self._asked is None:
            self._asked = now

    def answered(self) -> None:
        """The engine has answered all that it was asked."""
        self._asked = None
        self._idle = 0.0

    def read(self, now: float, used: float) -> str | None:
        """The process has used so many seconds of processor time by `now`; returns why it is given up, if it is."""
        before, self._read = self._read, now
        worked, self._used = used - self._used, used
        if self._asked is None or before is None:
            return None
        if now - before > 3 * READ_EVERY or worked > WORK:
            self._idle = 0.0  # it works; or we ourselves were stopped, and so perhaps was it
        else:
            self._idle += now - before
        if self._idle >= IDLE:
            return f"the engine process hangs: for {self._idle:.1f} s it has neither answered nor worked"
        if now - self._asked >= BUSY:
            return f"the engine process hangs: it has not answered for {now - self._asked:.0f} s"
        return None


def processor_seconds(pid: int) -> float | None:
    """Processor time that a process and its children (compilers, say) have used so far; None where that can't be known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(child) or 0.0 for child in _children(pid))


def _children(pid: int) -> list[int]:
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in lists for child in text.split()]
