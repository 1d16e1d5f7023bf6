"""When and where ready calls run: the policies put together. The core asks; each policy is a module of its own.

Law: nothing here changes whether a call runs. What is kept of a call is dropped when it ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from myna.actors.messages import Beat, Call, ModelCall, Objective, SessionId, Tenant, Usage, VarId, WorkerId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.fleet import Demand, Fleet, HeldKey, Worker, demand_of
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import READY, RUNNING, WAITING, CallNode, Placed
from myna.actors.scheduler.policies import Policies, applications, objectives
from myna.actors.scheduler.policies.lengths import CHARACTERS, Lengths, work_of
from myna.actors.scheduler.policies.lines import NEW, RESUMES, Lines
from myna.actors.scheduler.policies.memo import Memo
from myna.actors.scheduler.policies.objectives import Need
from myna.actors.scheduler.policies.placement import Because, Place, Placement
from myna.actors.scheduler.policies.prefixes import Belief, Chain, chain_of, head_of
from myna.actors.scheduler.policies.queue import ReadyQueue, leave, order_of
from myna.actors.scheduler.policies.residents import Residents
from myna.actors.scheduler.policies.retention import AHEAD, WORTH, Lead, Retention, Waiver, Wish
from myna.actors.scheduler.policies.tenants import Accounts

_COPIED = Because.COPIED


class Planner:
    """The policies' state."""

    def __init__(self, policies: Policies, fleet: Fleet, cache_of: Callable[[Tenant, SessionId], str]) -> None:
        self.policies = policies
        self._cache_of = cache_of
        self.order = order_of if policies.applications else _no_order
        """Of a call among its worker's: where prompts wait there, this order goes on."""
        self.lengths = Lengths()
        self.belief = Belief()
        self.accounts = Accounts(policies.shares)
        self.memo = Memo()
        self.residents = Residents(fleet.keep)
        keeps = policies.retention and policies.prefixes
        self.retention = Retention(fleet, self._refresh, returns=self._returns) if keeps else None
        self._fleet = fleet
        self._reserves = policies.residents and policies.prefixes and policies.capacity
        self._placement = Placement(policies, fleet, self.belief, self.residents)
        numbers = itertools.count(1)
        self._lines = Lines(lambda: ReadyQueue(policies, self.accounts, self.lengths, numbers))
        self._copies: dict[CallNode, None] = {}
        self._evicted: dict[WorkerId, float] = {}

    # --- what the graph learns ---

    def added(self, graph: SessionGraph, calls: list[CallNode], now: float) -> None:
        """Calls were submitted: estimate them, and find what they belong to and are needed for."""
        variables, long = graph.variables, list[CallNode]()
        for call in calls:
            if call.spec is None:
                continue
            habit = call.habit = self.lengths.of(graph.tenant, call.function)
            output = habit.output(call.limit)
            for variable in call.outputs:
                node = variables[variable]
                if node.status is None:
                    node.size = output / len(call.outputs)
            prompt = call.constant
            if call.inputs:
                prompt += sum([variables[v].size for v in call.inputs])
            call.work = work_of(prompt * habit.fresh, output)
            applications.add(graph, call, now)
            if prompt >= AHEAD:
                long.append(call)
        if self.retention is not None:
            for call in long:
                self._chain(call)
                self._count(call)
        if self.policies.applications:
            applications.measure_paths(graph, calls)
        if self.policies.objectives:
            for call in reversed(calls):
                self._deduce(graph, call, now)

    def _deduce(self, graph: SessionGraph, call: CallNode, now: float) -> None:
        if call.spec is None:
            return
        own = call.spec.objective
        if own is None and graph.objective is not None and not any(graph.variables[o].consumers for o in call.outputs):
            own = graph.objective  # a result of the session; what results need follows from them
        need = None if own is None else objectives.need_of(own, now)
        for output in call.outputs:
            variable = graph.variables[output]
            if variable.need is not None:
                need = objectives.strictest(need, variable.need)
            for consumer in variable.consumers:
                if consumer.need is not None and consumer.unended:
                    grouped = self.policies.groups and len(graph.producers(consumer)) > 1
                    seconds = consumer.work * self.lengths.pace
                    need = objectives.strictest(need, objectives.upstream(consumer.need, seconds, grouped=grouped))
        if need is not None:
            self._spread(graph, [call], need)

    def wanted(self, graph: SessionGraph, variables: Iterable[VarId], objective: Objective | None, now: float) -> None:
        """Somebody waits for these, perhaps with an objective: all that they need is needed so."""
        need = objectives.need_of(objective or graph.objective, now) if self.policies.objectives else None
        if need is None:
            return
        calls: list[CallNode] = []
        for variable in variables:
            node = graph.variables[variable]
            node.need = objectives.strictest(node.need, need)
            if node.producer is not None and node.producer not in calls:
                calls.append(node.producer)
        self._spread(graph, calls, need)

    def _spread(self, graph: SessionGraph, calls: list[CallNode], need: Need) -> None:
        changed = objectives.spread(graph, calls, need, self.lengths.pace, groups=self.policies.groups)
        for call in changed:
            if call.queued:
                self._push(call)

    # --- the queue ---

    def ready(self, call: CallNode) -> None:
        """A call may run."""
        if isinstance(call.spec, ModelCall):
            if self.retention is not None and call.chain is not None:
                if call.inputs:
                    self._refresh(call)
                self._count(call)
            if call.spec.memoise and self.policies.memoisation and not self.memo.ready(call):
                self._hasten(call)
                return
            if call.memo is not None and self.memo.source(call) is not None:
                self._copies[call] = None
                return
            if self.policies.capacity:
                patient = call.need is not None and call.need.patient
                self._fleet.demanded.add(call.work, self._fleet.now, patient=patient)
        self._push(call)

    def _hasten(self, call: CallNode) -> None:
        """The call that this one follows is needed for what this one is needed for."""
        leader = self.memo.leader(call)
        if leader is not None and leader.session is not None and call.need is not None:
            self._spread(leader.session, [leader], call.need)

    def _push(self, call: CallNode) -> None:
        resumes = bool(call.inputs) and self._resumes(call)
        self._lines.push(call, self._fleet.now, RESUMES if resumes else NEW)

    def _resumes(self, call: CallNode) -> bool:
        """Whether it goes on with a context that room is kept for: it goes before new ones, which would take that room."""
        if not self.residents.any or (call.need is not None and call.need.patient):
            return False
        chain = self._chain(call)
        return chain is not None and self.residents.where(chain) is not None

    def choose(self, now: float) -> Iterator[tuple[CallNode, Place]]:
        """Calls that may be dispatched now, each with its place. The caller starts each before it asks for the next."""
        self.residents.expire(now)
        found = self._lines.choose(self._fleet, partial(self._place, now), now) if self._fleet.takers else iter(())
        return itertools.chain(self._copied(), found) if self._copies else found

    def _copied(self) -> Iterator[tuple[CallNode, Place]]:
        while self._copies:
            call = next(iter(self._copies))
            del self._copies[call]
            if (place := self._copy(call)) is not None:
                yield call, place
            else:
                self._push(call)

    def _place(self, now: float, call: CallNode, first: bool) -> Place | None:
        assert call.spec is not None
        assert call.session is not None
        graph = call.session
        assert call.habit is not None
        demand, chain = demand_of(call.spec, graph.tenant), self._chain(call)
        place = self._placement.choose(call, demand, chain, call.habit.output(call.limit), now, first=first)
        if place is None and self.residents.any and chain is not None and self._placement.crowded(call, demand, chain):
            self._lines.park(call, now)
        return place

    def _copy(self, call: CallNode) -> Place | None:
        """Where a call goes whose results stand already: to copy them takes no capacity."""
        found = self.memo.source(call)
        if found is None:
            return None
        assert call.spec is not None
        assert call.session is not None
        demand = demand_of(call.spec, call.session.tenant)
        source, near = found
        worker = self._fleet.workers.get(near) if near is not None else None
        if worker is None or worker.offer.draining or not self._fleet.answers(worker, demand):
            worker = self._fleet.any(demand)
        return None if worker is None else Place(worker, None, Because.COPIED, source=source)

    def _refresh(self, call: CallNode) -> Chain | None:
        """The call's prefixes, with what is known now of its inputs."""
        counted = call.counted
        self._uncount(call)
        call.chain = None
        chain = self._chain(call)
        if counted:
            self._count(call)
        return chain

    def _count(self, call: CallNode) -> None:
        """A call is to come, and reads its prefixes then."""
        chain = call.chain
        if self.retention is not None and chain is not None and not call.counted and chain.tokens >= AHEAD:
            self.retention.readers.add(chain)
            call.counted = True

    def _uncount(self, call: CallNode) -> None:
        if call.counted:
            assert self.retention is not None
            assert call.chain is not None
            self.retention.readers.remove(call.chain)
            call.counted = False

    @property
    def has_orders(self) -> bool:
        """Whether there is something to tell workers, which is seldom."""
        return self.retention is not None and self.retention.pending

    def orders(self, now: float, *, leading: bool) -> list[Wish | Lead | Waiver]:
        """What workers are to keep, need keep no more, or are to begin ahead, as follows from what has just happened."""
        if self.retention is None:
            return []
        if not leading:
            self.retention.forget()
            return []
        return self.retention.take(self.lengths.pace, now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.retention is not None:
            self.retention.tick(now)

    def _chain(self, call: CallNode) -> Chain | None:
        policies = self.policies
        if not (policies.prefixes or policies.capacity) or not isinstance(call.spec, ModelCall):
            return None
        if call.chain is None:
            graph = call.session
            assert graph is not None

            def describe(variable: str) -> tuple[object, float]:
                node = graph.variables[VarId(variable)]
                by_hand = node.content if node.producer is None else ""
                return (by_hand or (graph.tenant, graph.id, variable)), node.size

            cache = self._cache_of(graph.tenant, graph.id) or graph.tenant
            call.chain = chain_of(call.spec, cache, describe)
        return call.chain

    # --- running ---

    def started(
        self, call: CallNode, worker: Worker, key: HeldKey, attempt: int, place: Place | None, now: float
    ) -> None:
        """A call is dispatched, or was found running."""
        copied = place is not None and place.source is not None
        self._fleet.hold(worker, key, attempt, place.cost if place else None, guest=copied)
        if call.queued:
            leave(call)
        if call.counted:
            self._uncount(call)
        if call.memo is not None:
            self.memo.started(call)
            self._copies.pop(call, None)
        self.accounts.serve(self.accounts.of(key[0]), 0.0 if copied else call.work)
        chain = call.chain
        if place is not None and chain is not None and self.policies.prefixes:
            self.belief.placed(chain, worker.id, worker.offer.tokens)
            self.residents.began(call, chain, now)
        call.placed = Placed(
            at=now,
            worker=worker.id,
            because=place.because if place is not None else Because.ADOPTED,
            waited=now - call.since,
            prompt=chain.tokens if chain is not None else 0.0,
            matched=place.matched if place is not None else 0.0,
        )
        if self.retention is not None and place is not None and not copied and worker.offer.tokens is not None:
            self._foresee(self.retention, call, worker, now)

    def _returns(self, call: CallNode) -> tuple[float, float] | None:
        """In how many seconds calls of this function are commonly continued, and how long that is worth waiting for."""
        assert call.session is not None
        return self.residents.returns((call.session.tenant, call.function))

    def _foresee(self, retention: Retention, call: CallNode, worker: Worker, now: float) -> None:
        """What is kept and computed ahead where a call was dispatched. Mostly nothing is, which is to cost little."""
        if call.chain is not None and call.chain.tokens >= WORTH:
            retention.began(call, worker, self.lengths.pace, now)
        if not self.policies.early or call.session is None:
            return
        variables = call.session.variables
        for output in call.outputs:
            consumers = variables[output].consumers
            if consumers and not (len(consumers) == 1 and consumers[0].prepared):
                for chain in retention.prepare(call, consumers, worker, self.lengths.pace, now):
                    self.belief.placed(chain, worker.id, worker.offer.tokens)

    def stopped(self, key: HeldKey) -> None:
        """A running call runs no more."""
        self.accounts.of(key[0]).running -= 1

    def produced(
        self, graph: SessionGraph, variable: VarId, usage: Usage, characters: int, content: str, now: float
    ) -> None:
        """A variable has a value: lengths are learned from it, and what was believed of its worker's cache is corrected. Called
        before the graph hears of it."""
        node = graph.variables.get(variable)
        if node is None or node.status is not None:
            return
        node.size = characters / CHARACTERS
        call = node.producer
        node.content = content
        if call is None or call.state is not RUNNING or was_copied(call):
            return
        assert call.habit is not None
        call.produced += usage.output_tokens
        computed = usage.prompt_tokens - usage.cached_tokens if usage.prompt_tokens > usage.cached_tokens else 0
        chain = call.chain
        if chain is not None and call.worker is not None and usage.prompt_tokens and variable == call.outputs[0]:
            self._compare(call, chain, call.worker, usage)
            call.habit.learn_fresh(computed / usage.prompt_tokens)
        if call.unended == 1:
            long = chain is not None and chain.total >= WORTH
            if long and self.retention is not None:
                self.retention.finishing(call)
            if self._reserves and call.worker is not None and (long or _spoken(call.spec)):
                self._leave(graph, call, call.worker, now)
            self.lengths.took(call.work, now - call.since)
            if call.produced:
                call.habit.learn_output(call.produced)
                self.accounts.of(graph.tenant).charge(work_of(computed, call.produced) - call.work)

    def _leave(self, graph: SessionGraph, call: CallNode, worker_id: WorkerId, now: float) -> None:
        """A call leaves its context where it ran, if it may be gone on with."""
        spec, chain = call.spec, call.chain
        if chain is None or not isinstance(spec, ModelCall) or not (_spoken(spec) or _goes_on(graph, call, chain)):
            return
        worker = self._fleet.workers.get(worker_id)
        memory = None if worker is None else worker.offer.tokens
        self.residents.left(call, chain, head_of(chain, spec), (graph.tenant, call.function), worker_id, memory, now)

    def _compare(self, call: CallNode, chain: Chain, worker: WorkerId, usage: Usage) -> None:
        placed, there = call.placed, self._fleet.workers.get(worker)
        if there is None or there.offer.tokens is None:
            return  # who does not tell its memory may not tell either what it had cached
        if placed is not None and self.policies.prefixes and usage.cached_tokens < 0.5 * placed.matched:
            self.belief.evicted(worker, placed.matched - usage.cached_tokens)

    def ended(self, call: CallNode) -> list[CallNode]:
        """A call has ended, whether it ran or not: nothing is kept of it. Returns ready calls that followed it."""
        if call.counted:
            self._uncount(call)
        self.residents.ended(call)
        call.chain = None
        application = applications.done(call)
        if application is not None and application.waiting is not None:
            application.waiting.promote()
        if call.memo is None:
            return []
        assert call.session is not None
        self._copies.pop(call, None)
        variables = call.session.variables
        return self.memo.ended(call, valued=all(variables[o].status is OutcomeStatus.VALUE for o in call.outputs))

    def left(self, call: CallNode) -> list[CallNode]:
        """A call will end without results, or nobody needs it now. Returns ready calls that followed it."""
        if call.state is WAITING:
            self._count(call)
        else:
            self._uncount(call)
        self.residents.ended(call)
        if call.memo is None:
            return []
        self._copies.pop(call, None)
        return self.memo.left(call)

    def copy_failed(self, call: CallNode) -> None:
        """The results that a call was to take over can't be had."""
        self.memo.distrust(call)

    def closed(self, graph: SessionGraph) -> None:
        """A session ends."""
        self.memo.closed((graph.tenant, graph.id))
        if self.retention is not None:
            self.retention.closed((graph.tenant, graph.id))

    # --- workers ---

    def heard(self, worker: Worker, beat: Beat) -> None:
        """What an engine tells of itself."""
        worker.occupancy.hear(beat.load, self._fleet.now)
        self._fleet.refresh(worker)
        evicted = beat.load.get("evicted_tokens")
        if evicted is not None:
            before = self._evicted.get(worker.id, evicted)
            self._evicted[worker.id] = evicted
            if evicted > before:
                self.belief.evicted(worker.id, evicted - before)

    def lost(self, worker: WorkerId) -> None:
        """A worker is gone, and what it had cached."""
        self.belief.forget(worker)
        self.residents.lost(worker)
        self._evicted.pop(worker, None)
        if self.retention is not None:
            self.retention.lost(worker)

    # --- questions ---

    def waiting(self) -> Iterator[CallNode]:
        """All ready calls that wait for a worker."""
        yield from self._lines.calls()
        yield from self._copies

    def follows(self, call: CallNode) -> CallNode | None:
        """The identical call whose results a ready one waits for, instead of a worker."""
        return self.memo.leader(call)

    def kept_for(self, call: CallNode) -> list[tuple[WorkerId, float]]:
        """Workers that keep a part of the call's prompt, and how many tokens of it."""
        if self.retention is None or call.chain is None:
            return []
        names = {boundary.name for boundary in call.chain.boundaries[: call.chain.prompt]}
        found = []
        for worker in self._fleet.workers:
            tokens = [t for name, t in self.retention.kept(worker).items() if name in names]
            found += [(worker, max(tokens))] if tokens else []
        return found

    def unserved(self) -> list[tuple[Demand, CallNode]]:
        """Ready calls that nobody serves, busy or not, with what they ask for."""
        return self._lines.unserved(self._fleet)

    @property
    def busy(self) -> bool:
        """Whether any ready call waits."""
        return bool(self._lines) or bool(self._copies)

    @property
    def queued(self) -> int:
        """How many ready calls wait."""
        return len(self._lines)

    def check(self, calls: Iterable[CallNode]) -> None:
        """Raise AssertionError if the policies' books contradict each other, or `calls`, which are all that there are."""
        if self.retention is not None:
            to_come: list[Chain] = []
            for call in calls:
                if call.counted:
                    assert call.chain is not None
                    to_come.append(call.chain)
                    comes = call.state in (WAITING, READY)
                    assert comes, f"{call.id} is {call.state}, and counted among those to come"
            self.retention.check(to_come)
        self.accounts.check()
        self.belief.check()
        self.memo.check()
        self.residents.check()


def _spoken(spec: Call | None) -> bool:
    """Whether its prompt has roles: others are seldom gone on with, unless that is declared."""
    return isinstance(spec, ModelCall) and spec.messages[0].role is not None


def _goes_on(graph: SessionGraph, call: CallNode, chain: Chain) -> bool:
    """Whether a declared call begins with its whole context."""
    name = chain.boundaries[-1].name
    return any(
        consumer.chain is not None and any(b.name == name for b in consumer.chain.boundaries)
        for output in call.outputs
        for consumer in graph.variables[output].consumers
    )


def _no_order(call: CallNode) -> float:
    return 0.0


def was_copied(call: CallNode) -> bool:
    """Whether a call's last attempt took the results of an identical one."""
    return call.placed is not None and call.placed.because == _COPIED
