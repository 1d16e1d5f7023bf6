"""Random applications on a cluster that changes under them: what runs, how often, and what is left."""

from __future__ import annotations

import gc
import random
from collections import Counter
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from myna.actors.messages import (
    PROTOCOL,
    CallId,
    Close,
    Input,
    Leave,
    Message,
    ModelCall,
    Objective,
    ObjectiveKind,
    Open,
    Output,
    Sampling,
    Segment,
    SessionId,
    Submit,
    Text,
    Unwant,
    VarId,
    Want,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallNode, CallState, VarNode
from myna.actors.scheduler.policies.applications import Application
from myna.actors.scheduler.policies.memo import Entry
from myna.actors.scheduler.policies.queue import Waiting
from myna.actors.scheduler.state import SessionKey
from tests.actors.scheduler.world import TENANT, HeldKey, ModelWorker, World

SESSIONS: list[SessionKey] = [(TENANT, SessionId(s)) for s in ("s", "u", "v")]
LONG = "A prompt that many begin with. " * 50


@dataclass
class Graph:
    """An application: calls by name, each with the names of those whose results it reads."""

    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    calls: list[ModelCall] = field(default_factory=list)

    def above(self, names: set[str]) -> set[str]:
        """These, and all that they need."""
        found, stack = set(names), list(names)
        while stack:
            for name in self.needs[stack.pop()]:
                if name not in found:
                    found.add(name)
                    stack.append(name)
        return found


objectives = st.none() | st.builds(
    Objective, kind=st.sampled_from(ObjectiveKind), seconds=st.sampled_from((None, 0.5, 20.0))
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    graph = Graph()
    for n in range(draw(st.integers(1, 14))):
        name = f"v{n}"
        known = sorted(graph.needs)
        needs = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        parts: list[Segment] = [Text(text=LONG)] if draw(st.booleans()) else []
        parts += [Text(text=draw(st.sampled_from(("one", "two"))))]
        parts += [Input(variables=(v,)) for v in needs]
        parts.append(
            Output(variables=(name,), sampling=Sampling(temperature=0.0, max_tokens=draw(st.integers(1, 300))))
        )
        graph.needs[name] = tuple(needs)
        graph.calls.append(
            ModelCall(
                id=f"c-{name}",
                function=f"f{n % 3}",
                messages=(Message(segments=tuple(parts)),),
                objective=draw(objectives),
                priority=draw(st.integers(0, 2)),
                retries=100,
                memoise=draw(st.booleans()),
            )
        )
    return graph


class Cluster:
    """A world in which every call that is begun ends well, unless `trouble` strikes first."""

    def __init__(self, seed: int, trouble: float) -> None:
        self.world = World()
        self.random = random.Random(seed)
        self.trouble = trouble
        self.broken: Counter[HeldKey] = Counter()
        self.begun: Counter[HeldKey] = Counter()
        self.computed: Counter[HeldKey] = Counter()
        for n in range(2):
            self.join(n)
        self.joined = 2

    def join(self, number: int) -> None:
        self.world.join(f"w{number}", capacity=self.random.choice((1, 2, 8)), tokens=self.random.choice((None, 3000)))

    def open(self, graph: Graph, *, lazy: bool, wants: set[str], objective: Objective | None) -> None:
        for key in SESSIONS:
            self.world.append(key, Open(protocol=PROTOCOL, lazy=lazy))
            if wants:
                self.world.append(key, Want(variables=tuple(sorted(wants)), objective=objective))
            self.world.append(key, Submit(calls=tuple(graph.calls)))

    def step(self) -> None:
        world = self.world
        world.carry_out_all()
        for worker in list(world.workers.values()):
            before = len(worker.begun)
            world.take_orders(worker)
            for key, _ in worker.begun[before:]:
                self.begun[key] += 1
                self.computed[key] += key in worker.held and worker.held[key].source is None
            self._work(worker)
        world.read_mail()
        world.read_streams()
        world.tick(0.5)

    def _work(self, worker: ModelWorker) -> None:
        draw = self.random.random
        if draw() < self.trouble / 3 and len(self.world.workers) > 1:
            self._leave(worker)
            return
        for key in list(worker.held):
            fate = draw()
            if fate < self.trouble:
                self.broken[key] += 1
                self.world.fail(worker, key, retryable=True)
            elif fate > 0.3:
                self.world.finish(worker, key)
        self.world.say(worker, worker.beat())

    def _leave(self, worker: ModelWorker) -> None:
        """An engine is gone, with all that it held and was told; another comes."""
        self.broken.update(worker.held.keys())
        for order in worker.inbox:
            assert not hasattr(order, "call"), "orders were taken first"
        del self.world.workers[worker.id]
        self.world.mail.append(Leave(worker=worker.id, incarnation=worker.incarnation))
        self.join(self.joined)
        self.joined += 1

    def settle(self, most: int) -> int:
        """Steps until nothing runs and nothing can; at most so many."""
        for n in range(most):
            self.step()
            graphs = [s.graph for s in self.world.core.sessions.values()]
            busy = any(c.state in (CallState.READY, CallState.RUNNING) for g in graphs for c in g.calls.values())
            if n > 2 and not busy and not self.world.mail and not self.world.commands:
                return n
        raise AssertionError(f"calls still run after {most} steps")

    def ended(self, name: str) -> list[OutcomeStatus | None]:
        return [self.world.ended.get((key, VarId(name))) for key in SESSIONS]


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 2**16), trouble=st.sampled_from((0.0, 0.0, 0.1, 0.3)), objective=objectives)
def test_every_call_runs_exactly_as_often_as_it_must(
    graph: Graph, seed: int, trouble: float, objective: Objective | None
) -> None:
    cluster = Cluster(seed, trouble)
    cluster.open(graph, lazy=False, wants={"v0"}, objective=objective)
    # Each call takes a few steps, and one more for each of its attempts that broke: nothing starves.
    cluster.settle(40 * len(graph.calls) + 200)
    for name in graph.needs:
        assert cluster.ended(name) == [OutcomeStatus.VALUE] * 3
        for key in SESSIONS:
            call = (*key, CallId(f"c-{name}"))
            assert cluster.begun[call] == 1 + cluster.broken[call], f"{call}: one attempt, and one for each that broke"
    for key in SESSIONS:
        cluster.world.append(key, Close())
    for _ in range(8):
        cluster.step()
    assert not cluster.world.core.sessions
    for worker in cluster.world.workers.values():
        assert not worker.kept, "nobody is to come, and prefixes are still kept"
    retention = cluster.world.core.planner.retention
    assert retention is not None
    assert not retention.readers._counts
    assert not cluster.world.core.planner.memo._entries


@settings(max_examples=40, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 2**16), data=st.data())
def test_in_a_lazy_session_what_is_wanted_runs_and_nothing_else(graph: Graph, seed: int, data: st.DataObject) -> None:
    names = sorted(graph.needs)
    first = set(data.draw(st.lists(st.sampled_from(names), max_size=2)))
    dropped = set(data.draw(st.lists(st.sampled_from(names), max_size=2)))
    cluster = Cluster(seed, 0.0)
    cluster.open(graph, lazy=True, wants=first | dropped, objective=None)
    for key in SESSIONS:  # before anything has run
        if dropped:
            cluster.world.append(key, Unwant(variables=tuple(sorted(dropped))))
    cluster.settle(40 * len(names) + 200)
    needed = graph.above(first - dropped)
    for name in names:
        assert cluster.ended(name) == [OutcomeStatus.VALUE if name in needed else None] * 3, name


@settings(max_examples=30, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 2**16))
def test_identical_calls_are_computed_once_in_all_sessions(graph: Graph, seed: int) -> None:
    cluster = Cluster(seed, 0.0)
    cluster.open(graph, lazy=False, wants=set(), objective=None)
    cluster.settle(40 * len(graph.calls) + 200)
    for call in graph.calls:
        times = sum(cluster.computed[(*key, CallId(call.id))] for key in SESSIONS)
        assert times <= 1 if call.memoise else times == 3, call.id


@settings(max_examples=10, deadline=None)
@given(width=st.integers(2, 60), capacity=st.integers(1, 16), engines=st.integers(1, 4))
def test_a_group_larger_than_its_engines_is_split_and_finishes(width: int, capacity: int, engines: int) -> None:
    world = World()
    for n in range(engines):
        world.join(f"w{n}", capacity, tokens=10**6)
    names = [f"m{i}" for i in range(width)]
    calls = [
        ModelCall(id=f"c-{n}", messages=(Message(segments=(Text(text=LONG + n), Output(variables=(n,)))),))
        for n in names
    ]
    joined = (Input(variables=tuple(names)), Output(variables=("r",)))
    calls.append(ModelCall(id="c-r", messages=(Message(segments=joined),)))
    world.append(SESSIONS[0], Open(protocol=PROTOCOL))
    world.append(SESSIONS[0], Want(variables=("r",), objective=Objective(kind=ObjectiveKind.LATENCY)))
    world.append(SESSIONS[0], Submit(calls=tuple(calls)))
    world.read_streams()
    rounds = -(-width // (capacity * engines))
    for _ in range(rounds + 6):
        world.step()
    assert world.ended[SESSIONS[0], VarId("r")] is OutcomeStatus.VALUE
    assert len(world.dispatched) == width + 1
    assert set(world.workers) == {WorkerId(f"w{n}") for n in range(engines)}


@pytest.mark.parametrize("cancelled", [False, True])
def test_of_a_large_graph_that_was_run_and_closed_nothing_is_left(cancelled: bool) -> None:
    world = World()
    world.join("w0", 64, tokens=100_000)
    world.core.check = lambda: None  # type: ignore[method-assign]  # at every event it would cost what the graph is large
    size, width = 3000, 50
    calls = []
    for n in range(size):
        above = [f"v{m}" for m in range(max(0, n - n % width - 3), n - n % width)]
        parts = (Text(text=LONG + str(n % 7)), *(Input(variables=(v,)) for v in above))
        output = Output(variables=(f"v{n}",), sampling=Sampling(temperature=0.0))
        calls.append(
            ModelCall(id=f"c{n}", function="f", messages=(Message(segments=(*parts, output)),), memoise=n % 2 == 0)
        )
    before = living()
    world.append(SESSIONS[0], Open(protocol=PROTOCOL))
    for start in range(0, size, 500):
        world.append(SESSIONS[0], Submit(calls=tuple(calls[start : start + 500])))
    for _ in range(10 if cancelled else size):
        world.step()
        if not world.core.sessions[SESSIONS[0]].graph.unfinished:
            break
    assert cancelled or not world.core.sessions[SESSIONS[0]].graph.unfinished
    world.append(SESSIONS[0], Close())
    for _ in range(10):
        world.step()
    assert SESSIONS[0] in world.purged
    assert not world.core.sessions
    assert not world.core.planner.busy
    assert living() == before, "calls, variables or applications outlive their session"


def living() -> Counter[str]:
    """The scheduler's own objects, by kind."""
    gc.collect()
    kinds = {CallNode, VarNode, SessionGraph, Application, Waiting, Entry}
    # By type: isinstance would ask other libraries' objects, and some warn.
    return Counter(type(o).__name__ for o in gc.get_objects() if type(o) in kinds)
