"""What the parts of a scheduler core share: who leads, sessions, workers, policies, and what is to be done.

Law: state only. Who changes what: `ledger` sessions and graphs, `dispatch` what runs, `attempts` the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from myna.actors.messages import PROTOCOL, Attempt, Failure, Hello, Open, SessionId, Stop, Tenant, WorkerId
from myna.actors.scheduler.commands import Command, Halt, SayHello
from myna.actors.scheduler.fleet import Fleet, HeldKey
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallNode
from myna.actors.scheduler.planner import Planner
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.quotas import Quotas, Stake

SessionKey = tuple[Tenant, SessionId]

HAUNTED = 60.0
"""Seconds for which a worker that was lost may still write: what it must not change is kept so long. One that slept, or was cut
off, for longer than `worker.shell.ASLEEP` writes nothing more."""


@dataclass(slots=True, eq=False)
class Session:
    """A session and the calls of it that run."""

    key: SessionKey
    opened: Open
    graph: SessionGraph
    last_active: float
    running: int = 0
    closing_at: float | None = None
    closed_because: str = "it was closed"
    stake: Stake = field(default_factory=Stake)
    haunted_until: float = 0.0
    """Until when an attempt of which nobody has said that it ended may still write what it had begun."""
    refused: Failure | None = None
    """Why it was never let in, or was shut out: over its tenant's quota."""


class State:
    """See the module. `out`: the commands that follow from the event that is being handled, in order."""

    def __init__(self, policies: Policies) -> None:
        self.lease: int | None = None
        self.name = ""
        self.sessions: dict[SessionKey, Session] = {}
        self.fleet = Fleet(late=policies.capacity)
        self.quotas = Quotas()
        self.planner = Planner(policies, self.fleet, self.cache_of)
        self.out: list[Command] = []
        self.greets = False
        """A worker is to present itself anew: said at the next tick, for one that refuses for ever must not make us spin."""
        self._attempts = 0

    def find(self, key: HeldKey) -> tuple[Session, CallNode] | None:
        """A call and its session, if they are known."""
        session = self.sessions.get((key[0], key[1]))
        call = session.graph.calls.get(key[2]) if session else None
        return None if session is None or call is None else (session, call)

    def cache_of(self, tenant: Tenant, session: SessionId) -> str:
        """The prefix cache that a session's calls share; empty for its tenant's own."""
        known = self.sessions.get((tenant, session))
        return self.quotas.cache_of(tenant, known.opened.cache if known is not None else "")

    def coming_attempt(self) -> Attempt:
        """The number of the next dispatch: larger than all before it, of this leader and of earlier ones."""
        return Attempt(((self.lease or 0) << 20) + self._attempts + 1)

    def next_attempt(self) -> Attempt:
        """The number of a dispatch, taken."""
        self._attempts += 1
        return Attempt(((self.lease or 0) << 20) + self._attempts)

    def say_hello(self) -> None:
        """Have all workers present themselves."""
        if self.lease is not None:
            self.out.append(SayHello(Hello(protocol=PROTOCOL, scheduler=self.name, lease=self.lease)))

    def haunt(self, key: SessionKey, now: float) -> None:
        """An attempt of the session's calls was given up without its worker's say."""
        session = self.sessions.get(key)
        if session is not None:
            session.haunted_until = now + HAUNTED

    def stopping(self) -> set[SessionKey]:
        """Sessions of whose calls a worker has yet to show that it no longer runs them."""
        return {key[:2] for worker in self.fleet.workers.values() for key in worker.stopping}

    def halt(self, worker: WorkerId, key: HeldKey, attempt: int) -> None:
        """Have a worker stop an attempt."""
        told = self.fleet.workers.get(worker)
        if told is None:
            self.haunt(key[:2], self.fleet.now)
        else:
            told.stopping[key] = 0
        if self.lease is not None:
            stop = Stop(tenant=key[0], session=key[1], call=key[2], attempt=attempt, lease=self.lease)
            self.out.append(Halt(worker, stop))
