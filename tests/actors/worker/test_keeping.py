"""What a worker does beside computing calls: it takes over results that stand already, and keeps prompts for calls to come."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from myna.actors.messages import (
    EventKind,
    FinishReason,
    Hello,
    ModelCall,
    Release,
    Retain,
    Run,
    Source,
    Usage,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.worker.backend import Produced
from myna.actors.worker.core import WorkerCore
from myna.actors.worker.events import (
    Asked,
    Draining,
    Fetch,
    Fetched,
    Forgo,
    Hoard,
    Present,
    PutValue,
    Read,
    ReadInputs,
    Reported,
    Stored,
    Tell,
)
from myna.actors.worker.keeping import PIECE
from tests.actors.stage import call

KEY: Any = ("t", "s", "call-a", 1)
MADE = Value(
    text="made",
    tokens=(1, 2),
    tokenizer="tok",
    finish=FinishReason.STOP,
    usage=Usage(prompt_tokens=9, output_tokens=2),
    attempt=5,
    call="call-other",
)


@pytest.fixture
def core() -> WorkerCore:
    return WorkerCore(WorkerId("w"), resumable=True)


def copy_of(spec: ModelCall, *variables: str) -> Run:
    source = Source(session="u", call="call-other", variables=variables)
    return Run(tenant="t", session="s", call=spec, attempt=1, lease=7, source=source)


# --- results that stand already ---------------------------------------------------------------------------------------


def test_a_copied_result_is_published_as_the_calls_own_without_chunks_and_without_use(core: WorkerCore) -> None:
    run = copy_of(call("a", "x"), "other")
    (reads,) = core.handle(Asked(run, 1.0))
    assert isinstance(reads, ReadInputs)
    assert (reads.inputs, reads.source) == ((), run.source)
    told, put = core.handle(Read(KEY, {}, {}, {}, None, 1.0, (MADE,)))
    assert isinstance(told, Tell)
    assert isinstance(put, PutValue)
    assert (put.value.text, put.value.tokens, put.value.finish) == ("made", (1, 2), FinishReason.STOP)
    assert (put.value.call, put.value.attempt, put.value.usage) == ("call-a", 1, Usage())
    assert core.running
    core.check()
    (ended,) = core.handle(Stored(KEY, VarId("a"), None, 2.0))
    assert isinstance(ended, Tell)
    assert (ended.event.kind, ended.event.usage) == (EventKind.FINISHED, Usage())
    assert not core.running


def test_every_output_is_copied_from_the_one_at_its_place(core: WorkerCore) -> None:
    core.handle(Asked(copy_of(call("a", outputs=2), "p", "q"), 1.0))
    values = (MADE, Value(text="second"))
    puts = [c for c in core.handle(Read(KEY, {}, {}, {}, None, 1.0, values)) if isinstance(c, PutValue)]
    assert [(p.variable, p.value.text) for p in puts] == [("a-0", "made"), ("a-1", "second")]


# --- prompts that are kept --------------------------------------------------------------------------------------------


def retain(name: str = "k1", *, lease: int = 7) -> Retain:
    return Retain(tenant="t", session="s", id=name, call=call("a", "x"), lease=lease, distance=3.0)


def kept(core: WorkerCore, name: str = "k1", **options: Any) -> Hoard:
    order = retain(name, **options)
    (fetch,) = [c for c in core.handle(Asked(order, 1.0)) if isinstance(c, Fetch)]
    assert fetch.order is order
    (hoard,) = core.handle(Fetched(order, {VarId("x"): MADE}))
    assert isinstance(hoard, Hoard)
    return hoard


def test_a_prompt_is_kept_with_the_values_of_its_inputs_until_it_is_released(core: WorkerCore) -> None:
    hold = kept(core).hold
    assert (hold.id, hold.tenant, hold.inputs, hold.distance) == ("k1", "t", {"x": MADE}, 3.0)
    assert core.handle(Asked(Release(ids=("k0", "k1"), lease=7), 1.0)) == [Forgo("k1")]
    assert core.handle(Asked(Release(ids=("k1",), lease=7), 1.0)) == []


def test_a_prompt_whose_last_input_is_being_generated_here_grows_as_its_chunks_are_stored(core: WorkerCore) -> None:
    core.handle(Asked(Run(tenant="t", session="s", call=call("a"), attempt=1, lease=7), 1.0))
    core.handle(Read(KEY, {}, {}, {}, None, 1.0))
    order = structs.replace(retain(), stream="a", call=call("b", "x", "a"))
    core.handle(Asked(order, 1.0))
    (first,) = core.handle(Fetched(order, {VarId("x"): MADE}))
    assert isinstance(first, Hoard)
    assert (first.hold.inputs[VarId("x")], first.hold.inputs[VarId("a")].text) == (MADE, "")

    def stored(n: int, tokens: int) -> list[Any]:
        """The variable grows by so many tokens, and the stream takes them."""
        core.handle(Reported(Produced(KEY, VarId("a"), f"{n} ", tuple(range(tokens))), 2.0 + n))
        return [c for c in core.handle(Stored(KEY, VarId("a"), n, 2.5 + n)) if isinstance(c, Hoard | Forgo)]

    assert stored(0, PIECE - 1) == []
    gone, grown = stored(1, 1)
    assert gone == Forgo("k1")
    assert (grown.hold.id, grown.hold.made_here) == ("k1", "a")
    value = grown.hold.inputs[VarId("a")]
    assert (value.text, len(value.tokens), grown.hold.inputs[VarId("x")]) == ("0 1 ", PIECE, MADE)
    assert stored(2, PIECE - 1) == []
    assert len(stored(3, PIECE)) == 2
    core.handle(Asked(Release(ids=("k1",), lease=7), 9.0))
    assert stored(4, 2 * PIECE) == [], "it is kept no longer"


def test_a_prompt_released_before_its_inputs_were_read_is_not_kept(core: WorkerCore) -> None:
    core.handle(Asked(retain(), 1.0))
    core.handle(Asked(Release(ids=("k1",), lease=7), 1.0))
    assert core.handle(Fetched(retain(), {})) == []


def test_a_prompt_whose_inputs_can_not_be_read_is_not_kept(core: WorkerCore) -> None:
    core.handle(Asked(retain(), 1.0))
    assert core.handle(Fetched(retain(), None)) == []
    assert core.handle(Asked(Release(ids=("k1",), lease=7), 1.0)) == []


def test_with_a_new_leader_what_the_old_one_had_kept_goes_and_its_orders_count_no_more(core: WorkerCore) -> None:
    kept(core)
    commands = core.handle(Asked(Hello(protocol=1, scheduler="s", lease=8), 1.0))
    assert Forgo("k1") in commands
    assert any(isinstance(c, Present) for c in commands)
    assert core.handle(Asked(retain("k2"), 1.0)) == []
    assert kept(core, "k1", lease=8).hold.id == "k1"


def test_a_draining_worker_keeps_nothing_new(core: WorkerCore) -> None:
    core.handle(Asked(copy_of(call("a"), "other"), 1.0))
    core.handle(Draining(1.0))
    assert core.handle(Asked(retain(), 1.0)) == []
