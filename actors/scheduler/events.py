"""What can happen to a scheduler. Time enters with the event: `now` is monotonic seconds of the scheduler's own clock."""

from __future__ import annotations

from msgspec import Struct

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


class Led(Struct, frozen=True):
    """This scheduler holds the lease of revision `lease`, and has read the streams to their ends."""

    scheduler: str
    lease: int
    now: float


class Logged(Struct, frozen=True):
    """An entry of a session's log."""

    tenant: Tenant
    session: SessionId
    entry: LogEntry
    now: float
    size: int = 0
    """Bytes that it takes in the stream."""


class Garbled(Struct, frozen=True):
    """An entry of a session's log that can't be understood."""

    tenant: Tenant
    session: SessionId
    now: float


class Unlogged(Struct, frozen=True):
    """All that the log holds of this session, if anything, has been handled."""

    tenant: Tenant
    session: SessionId
    now: float


class Ended(Struct, frozen=True):
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


class PolicySet(Struct, frozen=True):
    """The operator has said what a tenant may have."""

    policy: TenantPolicy
    now: float


class Recorded(Struct, frozen=True):
    """There is a record of what so many calls of a session that is no more have used."""

    tenant: Tenant
    usage: Usage
    calls: int
    now: float


class Heard(Struct, frozen=True):
    """A worker spoke."""

    message: Announce | Beat | Event | Leave
    now: float


class Touched(Struct, frozen=True):
    """A client still holds its session."""

    tenant: Tenant
    session: SessionId
    now: float


class Tick(Struct, frozen=True):
    """Time passed. `healthy`: the bus is there; while it is not, silence proves nothing about workers."""

    now: float
    healthy: bool = True


class Wake(Struct, frozen=True):
    """The time that a `WakeAt` named has come."""

    now: float


SchedulerEvent = Led | Logged | Garbled | Unlogged | Ended | PolicySet | Recorded | Heard | Touched | Tick | Wake
