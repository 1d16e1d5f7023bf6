"""Metrics of a scheduler: what it decides, how long calls and sessions take, what fails, and how things stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Gauge

from myna.actors.messages import Close, Failure, LogEntry, Open, SessionId, StreamStatus, Tenant, Tried, VarId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.commands import AppendEntry, Command, Dispatch, EndVariable
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.telemetry.tallies import Tally, Times
from myna.actors.telemetry.worker_meters import SECONDS

MOST_SESSIONS = 50_000
"""Open sessions whose times are kept."""


class SchedulerMeters:
    """See the module."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Tally(registry, "myna_scheduler_decisions", "What was decided.", ("kind",))
        self._queue = Times(
            registry,
            "myna_scheduler_queue_seconds",
            "From a call's being ready, or ready again, to its dispatch.",
            SECONDS,
        )
        self._retries = Tally(registry, "myna_scheduler_retries", "Attempts that failed and are made again.")
        self._failures = Tally(registry, "myna_scheduler_failures", "Variables that fail, by why.", ("code",))
        self._cancelled = Tally(registry, "myna_scheduler_cancelled", "Variables that are cancelled.")
        self._jct = Times(
            registry,
            "myna_session_seconds",
            "Job completion time: from a session's opening to the last outcome before its close.",
            SECONDS,
        )
        self._rejected = Tally(registry, "myna_scheduler_rejected_messages", "Messages that were not understood.")
        self._standing = {
            name: Gauge(f"myna_scheduler_{name}", help, registry=registry)
            for name, help in (
                ("leading", "1 in the scheduler that leads, 0 in one that stands by."),
                ("queued_calls", "Calls that are ready and wait for a place."),
                ("running_calls", "Calls at workers."),
                ("workers", "Workers that are known."),
                ("sessions", "Sessions that are open."),
            )
        }
        self._messages = Gauge("myna_stream_messages", "Messages that a stream holds.", ["stream"], registry=registry)
        self._bytes = Gauge(
            "myna_stream_bytes", "Bytes that each replica of a stream takes.", ["stream"], registry=registry
        )
        self._sessions: dict[tuple[Tenant, SessionId], tuple[float, float | None]] = {}

    def logged(
        self, tenant: Tenant, session: SessionId, entry: LogEntry, at: float, headers: Mapping[str, str], *, leads: bool
    ) -> None:
        """Time sessions."""
        key = (tenant, session)
        match entry:
            case Open() if len(self._sessions) < MOST_SESSIONS:
                self._sessions.setdefault(key, (at, None))
            case Close():
                opened, last = self._sessions.pop(key, (at, None))
                if leads and last is not None:
                    self._jct.observe(last - opened)
            case _:
                pass

    def ended(self, tenant: Tenant, session: SessionId, variable: VarId, status: OutcomeStatus, at: float) -> None:
        """A variable got its outcome."""
        times = self._sessions.get((tenant, session))
        if times is not None:
            self._sessions[tenant, session] = (times[0], at)

    def commanded(self, command: Command) -> None:
        """Count what is decided."""
        self._decisions.add(1, _LABELS[type(command)])
        match command:
            case Dispatch(waited=waited):
                self._queue.observe(waited)
            case EndVariable(outcome=Failure(code=code)):
                self._failures.add(1, (code.value,))
            case EndVariable():
                self._cancelled.add(1)
            case AppendEntry(entry=Tried()):
                self._retries.add(1)
            case _:
                pass

    def ticked(self, core: SchedulerCore, rejected: int, streams: Sequence[StreamStatus]) -> None:
        """How things stand."""
        workers = core.fleet.workers.values()
        for name, value in (
            ("leading", core.lease is not None),
            ("queued_calls", core.planner.queued),
            ("running_calls", sum(len(w.held) for w in workers)),
            ("workers", len(workers)),
            ("sessions", len(core.sessions)),
        ):
            self._standing[name].set(value)
        self._rejected.reach(rejected)
        for stream in streams:
            self._messages.labels(stream.name).set(stream.messages)
            self._bytes.labels(stream.name).set(stream.bytes)


_LABELS = {
    command: ("".join(f"_{c.lower()}" if c.isupper() else c for c in command.__name__).lstrip("_"),)
    for command in Command.__args__
}
