from __future__ import annotations

import pytest

from myna.actors.messages import Call, CallId, ErrorCode, Failure, Input, ModelCall, Output, Text, VarId
from myna.actors.scheduler.nodes import CallState
from tests.actors.scheduler.play import FAILURE, VALUE, Play, program
from tests.actors.stage import call


def test_an_unknown_input_is_refused_by_the_names_of_call_function_and_placeholder() -> None:
    play = Play()
    play.submit(
        program("c", Input(variables=("ghost",), name="topic"), Output(variables=("o",)), function="essay"), call("ok")
    )
    failure = play.failure("o")
    assert failure.code is ErrorCode.UNKNOWN_VARIABLE
    assert (failure.call, failure.function, failure.variable) == ("c", "essay", "ghost")
    for part in ("'c'", "'essay'", "'topic'", "'ghost'"):
        assert part in failure.message
    assert play.names == ["call-ok"], "the other calls of the entry stand"


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (program("c", Text(text="no output")), "no output"),
        (program("c", Output(variables=("o",)), Output(variables=("o",))), "twice: o, o"),
        (program("c", Output(variables=("o", "p")), Output(variables=("q",))), "only the last output"),
    ],
)
def test_a_malformed_call_is_refused_and_every_output_it_names_fails(bad: ModelCall, part: str) -> None:
    play = Play()
    effects = play.submit(bad)
    assert {v for v, _ in effects.doomed} == {
        v for m in bad.messages for s in m.segments if isinstance(s, Output) for v in s.variables
    }
    for _, outcome in effects.doomed:
        assert isinstance(outcome, Failure)
        assert outcome.code is ErrorCode.INVALID_CALL
        assert part in outcome.message
        assert "'c'" in outcome.message
    play.settle()
    assert play.graph.calls[CallId("c")].state is CallState.ENDED


def test_a_second_producer_is_refused_and_the_first_keeps_its_variable() -> None:
    play = Play()
    play.submit(call("a"))
    second = program("second", Output(variables=("extra",)), Output(variables=("a",)))
    play.submit(second)
    failure = play.failure("extra")
    assert "'call-a'" in failure.message
    assert "'a'" in failure.message
    assert "a" not in play.stream
    play.run_all()
    assert play.stream["a"] == (VALUE, None)


def test_the_same_entry_twice_is_one_call() -> None:
    play = Play()
    play.submit(call("a"), call("b", "a"))
    play.submit(call("a"), call("b", "a"))
    assert play.pending == []
    play.run_all()
    assert play.runs == ["call-a", "call-b"]


@pytest.mark.parametrize("together", [True, False])
def test_another_call_under_a_used_id_fails_its_outputs_instead_of_vanishing(together: bool) -> None:
    play = Play()
    one, two = program("same", Output(variables=("x",))), program("same", Output(variables=("y",)))
    entries: list[list[Call]] = [[one, two, call("z", "y")]] if together else [[one], [two], [call("z", "y")]]
    for entry in entries:
        play.submit(*entry)
    failure = play.failure("y")
    assert failure.code is ErrorCode.INVALID_CALL
    assert "'same'" in failure.message
    assert play.graph.variables[VarId("z")].status is FAILURE
    play.run_all()
    assert play.runs == ["same"]
