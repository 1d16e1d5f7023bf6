from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Argument,
    CallId,
    ModelCall,
    NativeCall,
    SessionId,
    Tenant,
    WorkerId,
    WorkerKind,
)
from myna.actors.scheduler.fleet import Demand, Fleet, HeldKey, Worker, demand_of
from myna.actors.scheduler.policies.capacity import BACKLOG, SOLE_BACKLOG, Cost
from tests.actors.stage import call

ANY = Demand(WorkerKind.ENGINE, ("",), Tenant("t"))


def offer(
    name: str,
    *serves: str,
    capacity: int = 2,
    kind: WorkerKind = WorkerKind.ENGINE,
    tenant: str | None = None,
    draining: bool = False,
    paused: str = "",
    named_only: bool = False,
) -> Announce:
    return Announce(
        protocol=PROTOCOL,
        worker=name,
        kind=kind,
        incarnation=name,
        serves=serves or ("m",),
        capacity=capacity,
        tenant=tenant,
        draining=draining,
        paused=paused,
        named_only=named_only,
    )


def key(n: int) -> HeldKey:
    return (Tenant("t"), SessionId("s"), CallId(f"c{n}"))


def test_the_least_loaded_worker_is_chosen_by_share_of_its_capacity() -> None:
    fleet = Fleet()
    small, large = fleet.announce(offer("small", capacity=2), 0.0), fleet.announce(offer("large", capacity=10), 0.0)
    fleet.hold(small, key(0), 1)
    for n in range(1, 5):
        fleet.hold(large, key(n), 1)
    assert fleet.choose(ANY) is large
    fleet.hold(large, key(5), 1)
    fleet.hold(large, key(6), 1)
    assert fleet.choose(ANY) is small


def test_a_full_fleet_offers_nobody_until_a_call_ends() -> None:
    fleet = Fleet()
    worker = fleet.announce(offer("w", capacity=1), 0.0)
    fleet.hold(worker, key(0), 1)
    assert fleet.choose(ANY) is None
    assert fleet.serves(ANY)
    fleet.drop(worker, key(0))
    assert fleet.choose(ANY) is worker


def test_a_paused_worker_serves_and_gets_nothing_until_it_is_open_again() -> None:
    fleet = Fleet()
    fleet.announce(offer("w", paused="its endpoint is away"), 0.0)
    assert fleet.choose(ANY) is None
    assert fleet.serves(ANY), "it is worth waiting for"
    fleet.announce(offer("w"), 1.0)
    assert fleet.choose(ANY) is fleet.workers[WorkerId("w")]


def test_a_worker_for_named_calls_alone_gets_no_others() -> None:
    fleet = Fleet()
    worker = fleet.announce(offer("w", "m", named_only=True), 0.0)
    named = Demand(WorkerKind.ENGINE, ("m",), Tenant("t"))
    assert (fleet.choose(ANY), fleet.serves(ANY), fleet.answers(worker, ANY)) == (None, False, False)
    assert (fleet.choose(named), fleet.answers(worker, named)) == (worker, True)


def test_a_draining_worker_gets_nothing_and_one_that_comes_back_does() -> None:
    fleet = Fleet()
    fleet.announce(offer("w", draining=True), 0.0)
    assert fleet.choose(ANY) is None
    assert fleet.choose(Demand(WorkerKind.ENGINE, ("m",), None)) is None
    assert fleet.announce(offer("w"), 1.0) is fleet.choose(ANY)


def test_models_are_matched_by_name_and_any_of_a_list_will_do() -> None:
    fleet = Fleet()
    fleet.announce(offer("a", "llama"), 0.0)
    b = fleet.announce(offer("b", "qwen"), 0.0)
    assert fleet.choose(demand_of(call("x", models=("qwen",)), Tenant("t"))) is b
    assert fleet.choose(demand_of(call("x", models=("gpt", "qwen")), Tenant("t"))) is b
    assert fleet.choose(demand_of(call("x", models=("gpt",)), Tenant("t"))) is None
    assert fleet.served(WorkerKind.ENGINE) == ["llama", "qwen"]


def test_of_several_models_the_least_loaded_is_taken_and_their_order_counts_only_among_equals() -> None:
    def chosen(*models: str) -> Worker | None:
        return fleet.choose(demand_of(call("x", models=models), Tenant("t")))

    fleet = Fleet()
    llama, qwen = fleet.announce(offer("a", "llama"), 0.0), fleet.announce(offer("b", "qwen"), 0.0)
    assert (chosen("llama", "qwen"), chosen("qwen", "llama")) == (llama, qwen)
    fleet.hold(qwen, key(0), 1)
    assert (chosen("llama", "qwen"), chosen("qwen", "llama")) == (llama, llama)
    fleet.hold(llama, key(1), 1)
    assert (chosen("llama", "qwen"), chosen("qwen", "llama")) == (llama, qwen)
    fleet.announce(offer("b", "qwen", paused="its endpoint is away"), 0.0)
    assert chosen("qwen", "llama") is llama


def test_an_agent_of_a_tenant_serves_that_tenant_alone() -> None:
    fleet = Fleet()
    mine = fleet.announce(offer("mine", "search", kind=WorkerKind.AGENT, tenant="one"), 0.0)
    native = NativeCall(id="c", function="search", variable="o", arguments=(Argument(name="q", constant=1),))
    assert fleet.choose(demand_of(native, Tenant("one"))) is mine
    assert fleet.choose(demand_of(native, Tenant("two"))) is None
    assert not fleet.serves(demand_of(native, Tenant("two")))


def test_a_model_call_never_goes_to_an_agent_of_the_same_name() -> None:
    fleet = Fleet()
    fleet.announce(offer("agent", "m", kind=WorkerKind.AGENT), 0.0)
    assert fleet.choose(demand_of(call("x", models=("m",)), Tenant("t"))) is None
    assert fleet.choose(demand_of(ModelCall(id="x", messages=call("x").messages), Tenant("t"))) is None


def test_a_changed_offer_moves_the_worker_and_keeps_what_it_holds() -> None:
    fleet = Fleet()
    worker = fleet.announce(offer("w", "old"), 0.0)
    fleet.hold(worker, key(0), 1)
    assert fleet.announce(offer("w", "new"), 1.0) is worker
    assert worker.held == {key(0): 1}
    assert fleet.choose(Demand(WorkerKind.ENGINE, ("old",), None)) is None
    assert fleet.choose(Demand(WorkerKind.ENGINE, ("new",), None)) is worker


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50))
def test_choosing_and_holding_thousands_of_calls_keeps_the_heaps_small(workers: int) -> None:
    fleet = Fleet()
    for n in range(workers):
        fleet.announce(offer(f"w{n}", capacity=8), 0.0)
    for n in range(2000):
        worker = fleet.choose(ANY)
        assert worker is not None
        fleet.hold(worker, key(n), n)
        fleet.drop(worker, key(n))
    assert all(len(heap) <= 65 + 4 * workers for heaps in fleet._heaps for heap in heaps.values())
    fleet.check()


MODELS = ("a", "b", "c")
TENANTS = (None, "t", "u")


class FleetMachine(RuleBasedStateMachine):
    """The heaps against a plain search over all workers."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.calls = 0

    @rule(
        n=st.integers(0, 4),
        serves=st.lists(st.sampled_from(MODELS), min_size=1, max_size=4),
        capacity=st.integers(1, 3),
        tenant=st.sampled_from(TENANTS),
        draining=st.booleans(),
        paused=st.sampled_from(("", "away")),
        named_only=st.booleans(),
        kind=st.sampled_from(WorkerKind),
    )
    def announce(self, n: int, serves: list[str], **options: Any) -> None:
        self.fleet.announce(offer(f"w{n}", *serves, **options), 0.0)

    @rule(n=st.integers(0, 4))
    def remove(self, n: int) -> None:
        self.fleet.remove(WorkerId(f"w{n}"))

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        holding = [w for w in self.fleet.workers.values() if w.held]
        if holding:
            worker = data.draw(st.sampled_from(holding))
            self.fleet.drop(worker, data.draw(st.sampled_from(sorted(worker.held))))

    def candidates(self, demand: Demand) -> list[Worker]:
        return [
            w
            for w in self.fleet.workers.values()
            if w.free
            and w.offer.kind is demand.kind
            and w.offer.tenant in (None, demand.tenant)
            and any(
                n in w.offer.serves or (n == "" and demand.kind is WorkerKind.ENGINE and not w.offer.named_only)
                for n in demand.names
            )
        ]

    @rule(
        names=st.lists(st.sampled_from(("", *MODELS)), min_size=1, max_size=2, unique=True),
        tenant=st.sampled_from(TENANTS),
        kind=st.sampled_from(WorkerKind),
        take=st.booleans(),
    )
    def choose(self, names: list[str], tenant: str | None, kind: WorkerKind, take: bool) -> None:
        demand = Demand(kind, tuple(names), None if tenant is None else Tenant(tenant))
        found, there = self.fleet.choose(demand), self.candidates(demand)
        assert (found is None) == (not there)
        if found is not None:
            assert found in there
            assert found.load == pytest.approx(min(w.load for w in there))
            if take:
                self.calls += 1
                self.fleet.hold(found, key(self.calls), self.calls)

    @invariant()
    def consistent(self) -> None:
        self.fleet.check()


FleetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFleetMachine = FleetMachine.TestCase


@pytest.mark.parametrize(("engines", "seconds"), [(1, SOLE_BACKLOG), (2, BACKLOG)])
def test_an_engine_is_given_prompts_for_a_while_ahead_and_for_longer_where_there_is_no_other(
    engines: int, seconds: float
) -> None:
    fleet = Fleet(late=True)
    worker, *_ = [fleet.announce(offer(f"w{n}", "m", capacity=99), 0.0) for n in range(engines)]
    steps = worker.occupancy.steps
    steps.observe(1.0, 0.0, 0.01)
    given = 0
    while worker.free:
        fleet.hold(worker, key(given), 1, Cost(9.0, 0.06 / steps.prompt_seconds, 1.0))
        given += 1
    assert given == int(seconds / 0.06) + 1
    fleet.check()


def test_an_engine_that_rests_takes_pressing_calls_until_its_prompts_are_enough_and_others_when_it_has_rested() -> None:
    fleet = Fleet(late=True)
    workers = [fleet.announce(offer(f"w{n}", "m", capacity=999), 0.0) for n in range(2)]
    demand = demand_of(call("a"), Tenant("t"))
    for n, worker in enumerate(workers):
        steps = worker.occupancy.steps
        steps.observe(1.0, 0.0, 0.01)
        for m in range(100):
            fleet.hold(worker, key(1000 * n + m), 1, Cost(9.0, 0.0, 1.0, pressing=True))
        assert fleet.choose(demand) is not None
        fleet.hold(worker, key(1000 * n + 100), 1, Cost(9.0, 0.1 / steps.prompt_seconds, 1.0))
        fleet.check()
    assert fleet.choose(demand) is None
    worker = fleet.resting(demand)
    assert worker is not None
    fleet.hold(worker, key(5000), 1, Cost(9.0, 0.1 / worker.occupancy.steps.prompt_seconds, 1.0, pressing=True))
    assert fleet.resting(demand) is next(w for w in workers if w is not worker), "it has prompts enough for now"
    alarm = fleet.wake()
    assert alarm == pytest.approx(0.2 - BACKLOG / 2), "when a pressing call may come again"
    fleet.now = alarm
    rested = fleet.wake()
    assert rested is not None
    assert rested > 1.0
    assert fleet.choose(demand) is None
    fleet.now = rested
    fleet.wake()
    assert fleet.choose(demand) is not None
    assert fleet.resting(demand) is not fleet.choose(demand)
    fleet.check()
