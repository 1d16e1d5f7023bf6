"""What a scheduler core asks its shell to do."""

from __future__ import annotations

from dataclasses import dataclass

from myna.actors.messages import (
    Cancellation,
    Close,
    Failure,
    Hello,
    Release,
    Retain,
    Run,
    SessionId,
    SessionUsage,
    Stop,
    Tenant,
    VarId,
    WorkerId,
)


@dataclass(frozen=True, slots=True)
class SayHello:
    """Tell all workers who leads; they answer with announcements."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Give a call to a worker."""

    worker: WorkerId
    run: Run


@dataclass(frozen=True, slots=True)
class Halt:
    """Tell a worker to stop an attempt."""

    worker: WorkerId
    stop: Stop


@dataclass(frozen=True, slots=True)
class Keep:
    """Tell a worker to keep a prefix."""

    worker: WorkerId
    retain: Retain


@dataclass(frozen=True, slots=True)
class LetGo:
    """Tell a worker that it need not keep some prefixes any longer."""

    worker: WorkerId
    release: Release


@dataclass(frozen=True, slots=True)
class EndVariable:
    """Publish that a variable will have no value. The stream decides whether a value came first."""

    tenant: Tenant
    session: SessionId
    variable: VarId
    outcome: Failure | Cancellation


@dataclass(frozen=True, slots=True)
class AppendClose:
    """Write a session's end into its log, on behalf of a client that is gone."""

    tenant: Tenant
    session: SessionId
    close: Close


@dataclass(frozen=True, slots=True)
class PurgeSession:
    """Delete all that a session has stored: values and chunks first, the log last; what it used is recorded before."""

    tenant: Tenant
    session: SessionId
    used: tuple[SessionUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class Inquire:
    """Find out whether the log, which may be late, has yet to tell of a session; `Unlogged` if it has not."""

    tenant: Tenant
    session: SessionId


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a `Wake` at `at`, by the core's clock."""

    at: float


Command = SayHello | Dispatch | Halt | Keep | LetGo | EndVariable | AppendClose | PurgeSession | Inquire | WakeAt
