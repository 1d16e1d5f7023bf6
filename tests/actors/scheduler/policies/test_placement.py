from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from myna.actors.messages import (
    Beat,
    CallId,
    EventKind,
    Input,
    Message,
    ModelCall,
    Objective,
    ObjectiveKind,
    Output,
    Running,
    Sampling,
    Text,
    Usage,
    VarId,
    Why,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Heard
from myna.actors.scheduler.policies import Policies, Spread
from myna.actors.scheduler.policies.capacity import SOLE_BACKLOG
from myna.actors.scheduler.policies.lengths import CHARACTERS
from myna.actors.scheduler.policies.placement import Because
from myna.actors.scheduler.policies.residents import OVERDUE
from tests.actors.scheduler.world import SESSION, World, opened

LONG = "the instructions of a very thorough assistant that reads every document twice. " * 100
LATENCY = Objective(kind=ObjectiveKind.LATENCY)


def call(name: str, prompt: str = "", objective: Objective | None = None) -> ModelCall:
    segments = (Text(text=prompt), Text(text=f"question {name}"), Output(variables=(name,), sampling=Sampling()))
    return ModelCall(id=f"call-{name}", function="f", messages=(Message(segments=segments),), objective=objective)


def placed(*calls: ModelCall, workers: int = 3, policies: Policies | None = None) -> dict[str, WorkerId]:
    """Where each call goes, all of them ready at once."""
    world = World()
    world.core = SchedulerCore(policies)
    world.lead_again()
    for n in range(workers):
        world.join(f"w{n}", capacity=64)
    world.read_mail()
    world.open_with(*calls)
    return {c.run.call.id.removeprefix("call-"): c.worker for c in world.dispatches()}


def test_calls_that_share_a_long_prefix_meet_on_one_worker_and_short_ones_are_spread() -> None:
    together = placed(*(call(f"c{n}", LONG) for n in range(6)))
    assert len(set(together.values())) == 1
    spread = placed(*(call(f"c{n}") for n in range(6)))
    assert len(set(spread.values())) == 3


def test_with_the_policy_off_they_are_spread_by_load_or_in_turn() -> None:
    for policies in (
        replace(Policies(), prefixes=False),
        Policies.none(),
        Policies.none(spread=Spread.ROUND_ROBIN),
    ):
        where = placed(*(call(f"c{n}", LONG) for n in range(6)), policies=policies)
        assert sorted(where.values()) == ["w0", "w0", "w1", "w1", "w2", "w2"]


def test_a_prefix_is_computed_once_more_elsewhere_when_its_engine_is_the_bottleneck() -> None:
    where = placed(*(call(f"c{n}", LONG) for n in range(190)))
    assert set(where.values()) == {"w0", "w1", "w2"}


def test_a_hot_prefix_is_there_twice_before_its_engine_is_full_and_both_are_used_then() -> None:
    world = World()
    for n in range(3):
        world.join(f"w{n}", capacity=1000, tokens=10**7)
    world.read_mail()
    world.open_with(*(call(f"c{n}", LONG) for n in range(400)))
    first = [c.worker for c in world.dispatches()]
    assert len(set(first)) > 1, "the engine was the bottleneck, with room for 600 more"
    chain = next(iter(world.core.sessions[SESSION].graph.calls.values())).chain
    assert chain is not None
    holders = {w for w, _ in world.core.planner.belief.holders(chain, 8, 256.0)}
    assert holders == set(first)
    world.add(*(call(f"later{n}", LONG) for n in range(20)))
    matched = [c.placed.matched for c in world.core.sessions[SESSION].graph.calls.values() if c.placed]
    assert all(m > 1000 for m in matched[-20:]), "none of them computes it again"


def test_a_worker_that_is_gone_is_believed_to_hold_nothing() -> None:
    world = opened(call("a", LONG), workers=1)
    world.core.planner.lost(WorkerId("w0"))
    chain = world.core.sessions[SESSION].graph.calls[CallId("call-a")].chain
    assert chain is not None
    assert world.core.planner.belief.matched(chain, WorkerId("w0")) == 0.0


def test_what_an_engine_says_it_has_evicted_is_believed() -> None:
    world = opened(call("a", LONG), workers=1)
    chain = world.core.sessions[SESSION].graph.calls[CallId("call-a")].chain
    assert chain is not None
    assert world.core.planner.belief.matched(chain, WorkerId("w0")) > 0
    worker = world.workers[WorkerId("w0")]
    for evicted in (0.0, 1e6):
        beat = Beat(
            worker=worker.id,
            incarnation=worker.incarnation,
            running=tuple(_running(world)),
            load={"evicted_tokens": evicted},
        )
        world.feed(Heard(beat, world.now))
    assert world.core.planner.belief.matched(chain, WorkerId("w0")) == 0.0


def _running(world: World) -> list[Running]:
    return [Running(tenant=r.tenant, session=r.session, call=r.call.id, attempt=r.attempt) for r in world.dispatched]


def test_an_engine_is_reserved_for_calls_whose_tokens_are_waited_for() -> None:
    batch = Objective(kind=ObjectiveKind.THROUGHPUT)
    chats = [call(f"chat{n}", objective=LATENCY) for n in range(2)]
    floods = [call(f"flood{n}", objective=batch) for n in range(60)]
    world = opened(*chats, workers=2, capacity=64)
    for worker in world.core.fleet.workers.values():
        for drawn, prompt in ((1, 0), (60, 500), (10, 1500), (120, 100)) * 10:
            worker.occupancy.steps.observe(drawn, prompt, 0.01 + 1e-3 * drawn + 1e-5 * prompt)
    world.add(*floods)
    homes = [w for w in world.core.fleet.workers.values() if world.core.fleet.is_home(w)]
    assert len(homes) == 1
    (home,) = homes
    assert home.occupancy.other < 10
    other = next(w for w in world.core.fleet.workers.values() if w is not home)
    assert other.occupancy.other > 40


def test_an_engine_with_prompts_enough_is_given_a_call_that_goes_before_those() -> None:
    world = opened(workers=1, capacity=64)
    steps = world.core.fleet.workers[WorkerId("w0")].occupancy.steps
    steps.observe(1.0, 0.0, 0.01)
    long = "x" * round(0.75 * SOLE_BACKLOG / steps.prompt_seconds * CHARACTERS)
    for n in range(5):
        world.add(call(f"a{n}", f"{n} {long}"), said(f"b{n}", f"{n} {long}", f"a{n}"))
    assert [run.call.id for run in world.dispatched] == ["call-a0", "call-a1"]
    answer(world, "a1")
    assert [run.call.id for run in world.dispatched[2:]] == ["call-b1"]
    placed = world.core.sessions[SESSION].graph.calls[CallId("call-b1")].placed
    assert placed is not None
    assert placed.because == Because.ORDER


def test_an_engine_that_rests_takes_a_call_whose_end_is_waited_for_and_keeps_others_waiting_and_says_so() -> None:
    world = opened(workers=2, capacity=99)
    for worker in world.core.fleet.workers.values():
        worker.occupancy.steps.observe(1.0, 0.0, 0.01)
    world.add(*(call(f"chat{n}", objective=LATENCY) for n in range(80)))
    world.add(*(call(f"batch{n}", f"{n} {LONG}") for n in range(3)))
    assert len(world.dispatched) == 82
    world.add(call("late", objective=LATENCY))
    graph = world.core.sessions[SESSION].graph
    placed = graph.calls[CallId("call-late")].placed
    assert placed is not None
    assert placed.because == Because.PRESSING
    waits = next(c for c in graph.calls.values() if c.placed is None)
    (reasons,) = world.core.why(Why(call=waits.id), world.now).calls
    assert "2 rest from prompts for the sake of calls that run there" in reasons.reasons[0]


def said(name: str, instructions: str, *before: str, function: str = "agent", role: str | None = "user") -> ModelCall:
    """A turn of a conversation, which has said `before` so far."""
    segments = (
        Text(text=instructions),
        *(Input(variables=(variable,)) for variable in before),
        Output(variables=(name,), sampling=Sampling(max_tokens=50)),
    )
    return ModelCall(id=f"call-{name}", function=function, messages=(Message(segments=segments, role=role),))


def answer(world: World, name: str) -> None:
    """A call that was dispatched ends, with 20 tokens."""
    run = next(run for run in world.dispatched if run.call.id == f"call-{name}")
    world.ended[SESSION, VarId(name)] = OutcomeStatus.VALUE
    value = (VarId(name), OutcomeStatus.VALUE, run.attempt, world.now, None, Usage(output_tokens=20), 80)
    world.feed(Ended(*SESSION, *value, name))
    world.feed(Heard(world.workers[WorkerId("w0")].event(EventKind.FINISHED, run), world.now))


@pytest.mark.parametrize("declared", [True, False])
def test_a_plain_prompts_context_is_kept_room_for_where_a_declared_call_goes_on_with_it(declared: bool) -> None:
    world = opened(workers=1, capacity=64)
    then = said("b", LONG if declared else f"not {LONG}", "a", "tool", role=None)
    world.add(said("a", LONG, role=None), call("tool"), then)
    answer(world, "a")
    assert world.core.planner.residents.any == declared


def test_a_context_that_would_not_stay_waits_for_room_and_not_for_ever_and_keeps_no_other_call_waiting() -> None:
    world, turns = World(), Counter[str]()
    world.join("w0", capacity=64, tokens=4000)
    world.read_mail()
    world.open_with()

    def go_on(agent: str) -> None:
        before = [f"{agent}{n}" for n in range(turns[agent])]
        world.add(said(f"{agent}{turns[agent]}", agent * 4000, *before))
        answer(world, f"{agent}{turns[agent]}")
        turns[agent] += 1
        world.now += 1.0

    for _ in range(10):  # it is learned that agents go on
        go_on("a")
        go_on("b")
    occupancy = world.core.fleet.workers[WorkerId("w0")].occupancy
    assert occupancy.kept == 2 * (1000 + 10 * 20)
    world.add(said("c0", "c" * 4000), said("chat", "?" * 400, function="chat"))
    answer(world, "chat")
    began = world.now
    reasons = world.core.why(Why(call="call-c0"), world.now).calls[0].reasons
    assert any("waits until its own has room to stay" in reason for reason in reasons)
    waiting = world.core.sessions[SESSION].graph.calls[CallId("call-c0")]
    while waiting.placed is None:
        assert world.now <= began + OVERDUE + 1.0
        go_on("ab"[sum(turns.values()) % 2])
    assert waiting.placed.at > began + OVERDUE
    assert waiting.placed.because == Because.OVERDUE
