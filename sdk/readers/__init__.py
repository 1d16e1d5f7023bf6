"""Reading, as two pure cores: which `values` are awaited and must be asked for, and how `chunks` are put in order.

Law: events in, commands out; no network, no clock. A message that was lost is found by a direct get: at once where nobody
listened before, with back-off while somebody waits, and after each loss (reconnect, overflow). So no reader depends on
a message that may be lost, and thousands who wait cost a get each half minute.
"""

from __future__ import annotations

from dataclasses import dataclass

BACK_OFF = 1.0
"""Seconds until what a get did not find is asked for again, at first."""
LONGEST_BACK_OFF = 30.0


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages may have been lost: the connection was gone, or a mailbox overflowed."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now: float
