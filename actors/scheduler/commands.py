"""What a scheduler core asks its shell to do."""

from __future__ import annotations

from dataclasses import dataclass

from myna.actors.messages import (
    Cancellation,
    Close,
    Failure,
    Hello,
    Run,
    SessionId,
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
    """Delete all that a session has stored: values and chunks first, the log last."""

    tenant: Tenant
    session: SessionId


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a `Wake` at `at`, by the core's clock."""

    at: float


Command = SayHello | Dispatch | Halt | EndVariable | AppendClose | PurgeSession | WakeAt
