"""What a scheduler core asks its shell to do."""

from __future__ import annotations

from msgspec import Struct

from myna.actors.messages import (
    Anticipate,
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
    Tried,
    VarId,
    WorkerId,
)


class SayHello(Struct, frozen=True):
    """Tell all workers who leads; they answer with announcements."""

    hello: Hello


class Dispatch(Struct, frozen=True):
    """Give a call to a worker. `waited`: seconds since it was ready."""

    worker: WorkerId
    run: Run
    waited: float = 0.0


class Halt(Struct, frozen=True):
    """Tell a worker to stop an attempt."""

    worker: WorkerId
    stop: Stop


class Keep(Struct, frozen=True):
    """Tell a worker to keep a prefix."""

    worker: WorkerId
    retain: Retain


class Foresee(Struct, frozen=True):
    """Tell a worker of a call that is to begin there by what it makes."""

    worker: WorkerId
    anticipate: Anticipate


class LetGo(Struct, frozen=True):
    """Tell a worker that it need not keep some prefixes any longer."""

    worker: WorkerId
    release: Release


class EndVariable(Struct, frozen=True):
    """Publish that a variable will have no value. The stream decides whether a value came first."""

    tenant: Tenant
    session: SessionId
    variable: VarId
    outcome: Failure | Cancellation


class AppendEntry(Struct, frozen=True):
    """Write into a session's log: its end, on behalf of a client that is gone; or what a later leader must know of a call."""

    tenant: Tenant
    session: SessionId
    entry: Close | Tried


class PurgeSession(Struct, frozen=True):
    """Delete all that a session has stored: values and chunks first, the log last; what it used is recorded before."""

    tenant: Tenant
    session: SessionId
    used: tuple[SessionUsage, ...] = ()


class Inquire(Struct, frozen=True):
    """Find out whether the log, which may be late, has yet to tell of a session; `Unlogged` if it has not."""

    tenant: Tenant
    session: SessionId


class WakeAt(Struct, frozen=True):
    """Send a `Wake` at `at`, by the core's clock."""

    at: float


Command = (
    SayHello | Dispatch | Halt | Keep | Foresee | LetGo | EndVariable | AppendEntry | PurgeSession | Inquire | WakeAt
)
