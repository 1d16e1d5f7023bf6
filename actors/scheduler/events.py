"""What can happen to a scheduler. Time enters with the event: `now` is monotonic seconds of the scheduler's own clock."""

from __future__ import annotations

from dataclasses import dataclass

from myna.actors.messages import (
    Announce,
    Beat,
    Event,
    Failure,
    Leave,
    LogEntry,
    SessionId,
    Tenant,
    TenantPolicy,
    Usage,
    VarId,
)
from myna.actors.outcomes import OutcomeStatus


@dataclass(frozen=True, slots=True)
class Led:
    """This scheduler holds the lease of revision `lease`, and has read the streams to their ends."""

    scheduler: str
    lease: int
    now: float


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry of a session's log."""

    tenant: Tenant
    session: SessionId
    entry: LogEntry
    now: float
    size: int = 0
    """Bytes that it takes in the stream."""


@dataclass(frozen=True, slots=True)
class Garbled:
    """An entry of a session's log that can't be understood."""

    tenant: Tenant
    session: SessionId
    now: float


@dataclass(frozen=True, slots=True)
class Unlogged:
    """All that the log holds of this session, if anything, has been handled."""

    tenant: Tenant
    session: SessionId
    now: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The values' stream holds an outcome of a variable. `failure` is the whole of it where the status is failure. Of a value,
    headers tell the usage, the characters of its text, and a digest of the text."""

    tenant: Tenant
    session: SessionId
    variable: VarId
    status: OutcomeStatus
    attempt: int
    now: float
    failure: Failure | None = None
    usage: Usage = Usage()
    characters: int = 0
    content: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class PolicySet:
    """The operator has said what a tenant may have."""

    policy: TenantPolicy
    now: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """There is a record of what so many calls of a session that is no more have used."""

    tenant: Tenant
    usage: Usage
    calls: int
    now: float


@dataclass(frozen=True, slots=True)
class Heard:
    """A worker spoke."""

    message: Announce | Beat | Event | Leave
    now: float


@dataclass(frozen=True, slots=True)
class Touched:
    """A client still holds its session."""

    tenant: Tenant
    session: SessionId
    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. `healthy`: the bus is there; while it is not, silence proves nothing about workers."""

    now: float
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Wake:
    """The time that a `WakeAt` named has come."""

    now: float


SchedulerEvent = Led | Logged | Garbled | Unlogged | Ended | PolicySet | Recorded | Heard | Touched | Tick | Wake
