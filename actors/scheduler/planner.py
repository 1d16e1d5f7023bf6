"""When and where ready calls run: the policies put together. The core asks; each policy is a module of its own.

Law: nothing here changes whether a call runs. What is kept of a call is dropped when it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from myna.actors.messages import Beat, ModelCall, Objective, Usage, VarId, WorkerId, WorkerKind
from myna.actors.scheduler.fleet import Demand, Fleet, HeldKey, Worker, demand_of
from myna.actors.scheduler.graph import CallNode, CallState, Placed, SessionGraph
from myna.actors.scheduler.policies import Policies, applications, objectives
from myna.actors.scheduler.policies.lengths import CHARACTERS, Lengths, work_of
from myna.actors.scheduler.policies.objectives import Need
from myna.actors.scheduler.policies.placement import Because, Place, Placement
from myna.actors.scheduler.policies.prefixes import Belief, Chain, chain_of
from myna.actors.scheduler.policies.queue import ReadyQueue, leave
from myna.actors.scheduler.policies.tenants import Accounts

_Asks = tuple[bool, tuple[str, ...]]  # of engines or of agents, and the names: an enum's hash is slow

_ANY = ("",)


class Planner:
    """The policies' state."""

    def __init__(self, policies: Policies, fleet: Fleet) -> None:
        self.policies = policies
        self.lengths = Lengths()
        self.belief = Belief()
        self.accounts = Accounts(policies.shares)
        self._fleet = fleet
        self._placement = Placement(policies, fleet, self.belief)
        self._queues: dict[_Asks, ReadyQueue] = {}
        self._evicted: dict[WorkerId, float] = {}

    # --- what the graph learns ---

    def added(self, graph: SessionGraph, calls: list[CallNode], now: float) -> None:
        """Calls were submitted: estimate them, and find what they belong to and are needed for."""
        for call in calls:
            if call.spec is None:
                continue
            output = self.lengths.output(graph.tenant, call.function, call.limit)
            for variable in call.outputs:
                node = graph.variables[variable]
                if node.status is None:
                    node.size = output / len(call.outputs)
            prompt = call.constant + sum(graph.variables[v].size for v in call.inputs)
            call.work = work_of(prompt, output)
            applications.add(graph, call)
        if self.policies.applications:
            applications.measure_paths(graph, calls)
        if self.policies.objectives:
            for call in reversed(calls):
                self._deduce(graph, call, now)

    def _deduce(self, graph: SessionGraph, call: CallNode, now: float) -> None:
        if call.spec is None:
            return
        need = objectives.need_of(call.spec.objective, now)
        for output in call.outputs:
            variable = graph.variables[output]
            need = objectives.strictest(need, variable.need)
            for consumer in variable.consumers:
                if consumer.need is not None and consumer.unended:
                    grouped = self.policies.groups and len(graph.producers(consumer)) > 1
                    seconds = consumer.work * self.lengths.pace
                    need = objectives.strictest(need, objectives.upstream(consumer.need, seconds, grouped=grouped))
        if need is not None:
            self._spread(graph, [call], need)

    def wanted(self, graph: SessionGraph, variables: Iterable[VarId], objective: Objective | None, now: float) -> None:
        """Somebody waits for these with an objective: all that they need is needed so."""
        need = objectives.need_of(objective, now) if self.policies.objectives else None
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
        if self.policies.capacity and isinstance(call.spec, ModelCall):
            patient = call.need is not None and call.need.patient
            self._fleet.demanded.add(call.work, self._fleet.now, patient=patient)
        self._push(call)

    def _push(self, call: CallNode) -> None:
        assert call.spec is not None
        assert call.session is not None
        asks = _asks(call)
        queue = self._queues.get(asks)
        if queue is None:
            queue = self._queues[asks] = ReadyQueue(self.policies, self.accounts)
        queue.push(call, call.session.tenant, call.spec.priority + call.session.priority, self._fleet.now)

    def choose(self, now: float) -> Iterator[tuple[CallNode, Place]]:
        """Calls that may be dispatched now, each with its place. The caller starts each before it asks for the next."""
        for asks, queue in list(self._queues.items()):
            while (found := queue.choose(now, lambda call: self._place(call, now))) is not None:
                call = found[0]
                assert call.session is not None
                queue.take(call, call.session.tenant, now)
                yield found
            if queue.empty:
                del self._queues[asks]

    def _place(self, call: CallNode, now: float) -> Place | None:
        assert call.spec is not None
        assert call.session is not None
        graph = call.session
        demand = demand_of(call.spec, graph.tenant)
        output = self.lengths.output(graph.tenant, call.function, call.limit)
        return self._placement.choose(call, demand, self._chain(call), output, now)

    def _chain(self, call: CallNode) -> Chain | None:
        policies = self.policies
        if not (policies.prefixes or policies.capacity) or not isinstance(call.spec, ModelCall):
            return None
        if call.chain is None:
            graph = call.session
            assert graph is not None

            def describe(variable: VarId) -> tuple[object, float]:
                node = graph.variables[variable]
                return (node.content or (graph.tenant, graph.id, variable)), node.size

            call.chain = chain_of(call.spec, graph.tenant, describe)
        return call.chain

    # --- running ---

    def started(
        self, call: CallNode, worker: Worker, key: HeldKey, attempt: int, place: Place | None, now: float
    ) -> None:
        """A call is dispatched, or was found running."""
        self._fleet.hold(worker, key, attempt, place.cost if place else None)
        leave(call)
        self.accounts.serve(self.accounts.of(key[0]), call.work)
        if place is not None and call.chain is not None and self.policies.prefixes:
            self.belief.placed(call.chain, worker.id, worker.offer.tokens)
        call.placed = Placed(
            at=now,
            worker=worker.id,
            because=(place.because if place else Because.ADOPTED).value,
            waited=now - call.since,
            prompt=call.chain.tokens if call.chain else 0.0,
            matched=place.matched if place else 0.0,
        )

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
        if call is None:
            node.content = content
        if call is None or call.state is not CallState.RUNNING:
            return
        call.produced += usage.output_tokens
        if call.chain is not None and call.worker is not None and usage.prompt_tokens and variable == call.outputs[0]:
            self._compare(call, call.chain, call.worker, usage)
        if call.unended == 1:
            self.lengths.learn(graph.tenant, call.function, call.produced, call.work, now - call.since)
            actual = work_of(max(usage.prompt_tokens - usage.cached_tokens, 0), call.produced)
            self.accounts.of(graph.tenant).charge(actual - call.work if call.produced else 0.0)

    def _compare(self, call: CallNode, chain: Chain, worker: WorkerId, usage: Usage) -> None:
        placed = call.placed
        if placed is not None and self.policies.prefixes and usage.cached_tokens < 0.5 * placed.matched:
            self.belief.evicted(worker, placed.matched - usage.cached_tokens)

    def ended(self, call: CallNode) -> None:
        """A call has ended, whether it ran or not: nothing is kept of it."""
        call.chain = None
        application = applications.done(call)
        if application is not None and application.waiting is not None:
            application.waiting.promote()

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
        self._evicted.pop(worker, None)

    # --- questions ---

    def waiting(self) -> Iterator[CallNode]:
        """All ready calls that wait for a worker."""
        for queue in self._queues.values():
            yield from queue.calls()

    def unserved(self) -> list[tuple[Demand, CallNode]]:
        """Ready calls that nobody serves, busy or not, with what they ask for."""
        found: list[tuple[Demand, CallNode]] = []
        for (engine, names), queue in self._queues.items():
            for tenant in queue.tenants():
                demand = Demand(WorkerKind.ENGINE if engine else WorkerKind.AGENT, names, tenant)
                if not self._fleet.serves(demand):
                    found += [(demand, c) for c in queue.calls() if c.session and c.session.tenant == tenant]
        return found

    @property
    def busy(self) -> bool:
        """Whether any ready call waits."""
        return bool(self._queues)

    @property
    def queued(self) -> int:
        """How many ready calls wait."""
        return sum(len(queue) for queue in self._queues.values())

    def check(self) -> None:
        """Raise AssertionError if the policies' books contradict each other."""
        self.accounts.check()
        self.belief.check()


def _asks(call: CallNode) -> _Asks:
    spec = call.spec
    if isinstance(spec, ModelCall):
        return True, spec.models or _ANY
    return False, (call.function,)
