"""The scheduler as a pure function: `handle(event) -> commands`. No asyncio, no bus, no clock, no randomness.

Law: until `Led`, events rebuild state and cause no command.

    state      what the parts share
    ledger     sessions and their graphs, folded from the log and the values
    dispatch   what runs
    attempts   what workers say of it: adopted, lost, tried again, given up
    planner    when and where ready calls run; its policies are modules of their own
    quotas     what tenants have and have used, and what is too much
    answers    what it tells people who ask
"""

from __future__ import annotations

from typing import assert_never

from myna.actors.messages import Explanation, GraphRequest, GraphView, Status, Tenant, Why
from myna.actors.scheduler import answers
from myna.actors.scheduler.attempts import Attempts
from myna.actors.scheduler.commands import Command
from myna.actors.scheduler.dispatch import Dispatcher
from myna.actors.scheduler.events import (
    Ended,
    Garbled,
    Heard,
    Led,
    Logged,
    PolicySet,
    Recorded,
    SchedulerEvent,
    Tick,
    Touched,
    Unlogged,
    Wake,
)
from myna.actors.scheduler.fleet import Fleet
from myna.actors.scheduler.ledger import Ledger
from myna.actors.scheduler.nodes import CallState
from myna.actors.scheduler.planner import Planner
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.state import Session, SessionKey, State


class SchedulerCore:
    """State and decisions of one scheduler."""

    def __init__(self, policies: Policies | None = None) -> None:
        self._state = State(policies or Policies())
        self._dispatcher = Dispatcher(self._state)
        self._ledger = Ledger(self._state, self._dispatcher)
        self._attempts = Attempts(self._state, self._dispatcher)

    # --- the mailbox ---

    def handle(self, event: SchedulerEvent) -> list[Command]:
        """Apply one event; returns what is to be done, in order. Before `Led` this is nothing."""
        state = self._state
        state.fleet.now = event.now
        match event:
            case Ended():
                self._ledger.ended(event)
            case Heard():
                self._attempts.heard(event.message, event.now)
            case Logged():
                self._ledger.logged(event)
            case Garbled():
                self._ledger.garbled(event)
            case Unlogged():
                self._ledger.unlogged(event)
            case PolicySet(policy=policy):
                self._ledger.set_policy(policy, event.now)
            case Recorded(tenant=tenant, usage=usage, calls=calls):
                state.quotas.recorded(tenant, usage, calls)
            case Touched():
                self._ledger.touch((event.tenant, event.session), event.now)
            case Tick():
                self._tick(event)
            case Wake():
                self._dispatcher.wake(event.now)
            case Led():
                self._lead(event)
            case _:
                assert_never(event)
        if state.planner.has_orders:
            self._dispatcher.advise(event.now)
        out, state.out = state.out, []
        return out if state.lease is not None else []

    def _lead(self, event: Led) -> None:
        """From now on this scheduler commands. What ran under an earlier leader gets time to say so."""
        state = self._state
        state.lease, state.name, state.out = event.lease, event.scheduler, []
        state.say_hello()
        if any(s.graph.unfinished for s in state.sessions.values()):
            self._dispatcher.settle(event.now)
        self._ledger.take_over(event.now)

    def _tick(self, event: Tick) -> None:
        if self._state.greets:
            self._state.greets = False
            self._state.say_hello()
        self._attempts.tick(event)
        self._dispatcher.tick(event.now)
        self._state.planner.tick(event.now)
        self._ledger.tick(event.now)

    # --- questions ---

    @property
    def lease(self) -> int | None:
        """The revision under which this scheduler leads; None while it does not."""
        return self._state.lease

    @property
    def sessions(self) -> dict[SessionKey, Session]:
        """Every session that is known."""
        return self._state.sessions

    @property
    def fleet(self) -> Fleet:
        """Every worker that is known."""
        return self._state.fleet

    @property
    def planner(self) -> Planner:
        """The policies."""
        return self._state.planner

    @property
    def settling(self) -> bool:
        """Whether nothing is dispatched yet, since workers may still say what they run."""
        return self._dispatcher.settles_at is not None

    def status(self, now: float, rejected: int = 0, tenant: Tenant | None = None) -> Status:
        """What this scheduler sees: all of it, or what is a tenant's."""
        return answers.status(self._state, now, rejected, tenant)

    def why(self, question: Why, now: float, tenant: Tenant | None = None) -> Explanation:
        """Why a call runs where and when it does, or what it waits for; only a tenant's calls, where one is given."""
        return answers.why(self._state, question, now, tenant)

    def graph(self, question: GraphRequest, now: float, tenant: Tenant | None = None) -> GraphView:
        """The graph of a session as it stands."""
        return answers.graph(self._state, question, now, tenant)

    def check(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        state = self._state
        state.fleet.check()
        state.quotas.check()
        state.planner.check(c for s in state.sessions.values() for c in s.graph.calls.values())
        held = {(w.id, key): attempt for w in state.fleet.workers.values() for key, attempt in w.held.items()}
        queued = {id(call) for call in state.planner.waiting()}
        for key, session in state.sessions.items():
            session.graph.check()
            assert session.stake.calls == session.graph.unfinished, f"{key}: its calls in flight are counted wrongly"
            running = 0
            for call in session.graph.calls.values():
                if call.state is CallState.RUNNING:
                    running += 1
                    assert call.worker is not None
                    attempt = held.pop((call.worker, (*key, call.id)), None)
                    assert attempt == call.attempt, f"{call.id} runs on {call.worker}, which does not hold it"
                if call.state is CallState.READY:
                    follows = state.planner.follows(call) is not None
                    assert follows or id(call) in queued, f"{call.id} is ready and in no queue"
            assert running == session.running, f"{key}: {session.running} running counted, {running} found"
        assert not held, f"workers hold calls that do not run: {held}"
