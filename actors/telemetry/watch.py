"""How an actor's shell tells of what passes: to whoever watches, in its own words, and without loading an instrument.

Law: a watch is called on the actor's loop. It waits for nothing, raises nothing, and only looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from myna.actors.messages import Event, LogEntry, Run, SessionId, StreamStatus, Tenant, Value, VarId, WorkerId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.commands import Command
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.worker.backend import Insight, Offer, RunKey


class WorkerWatch(Protocol):
    """What a worker's shell tells. Times are seconds since the epoch."""

    def asked(self, run: Run, headers: Mapping[str, str]) -> None:
        """An attempt was handed to this worker."""

    def made(self, key: RunKey, function: str, value: Value) -> None:
        """An output of an attempt is whole; `value.timing` says when."""

    def told(self, event: Event) -> None:
        """How an attempt fares."""

    def looked(self, worker: WorkerId, offer: Offer, running: int, load: Mapping[str, float], insight: Insight) -> None:
        """Once a second: what is held, and what the backend shows since the last look."""


class SchedulerWatch(Protocol):
    """What a scheduler's shell tells. Times are seconds since the epoch."""

    def logged(
        self, tenant: Tenant, session: SessionId, entry: LogEntry, at: float, headers: Mapping[str, str], *, leads: bool
    ) -> None:
        """A session's log had an entry at `at`; before this scheduler `leads`, it is history."""

    def ended(self, tenant: Tenant, session: SessionId, variable: VarId, status: OutcomeStatus, at: float) -> None:
        """A variable got its outcome."""

    def commanded(self, command: Command) -> None:
        """The core has decided this."""

    def ticked(self, core: SchedulerCore, rejected: int, streams: Sequence[StreamStatus]) -> None:
        """Twice a second: how things stand. `rejected`: messages that were not understood."""
