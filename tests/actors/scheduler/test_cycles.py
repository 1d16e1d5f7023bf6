from __future__ import annotations

from myna.actors.messages import Call, CallId, ErrorCode, Input, Output, VarId
from tests.actors.scheduler.play import FAILURE, Play, program
from tests.actors.stage import call


def cyclic(play: Play, *variables: str) -> None:
    for variable in variables:
        failure = play.failure(variable)
        assert failure.code is ErrorCode.CYCLE
        assert failure.call == f"call-{variable}"
        assert f"'call-{variable}'" in failure.message


def test_a_call_that_needs_its_own_output_is_refused() -> None:
    play = Play()
    play.submit(call("a", "a"), call("b", "a"))
    cyclic(play, "a")
    assert play.failure("b").call == "call-a", "what needs it fails with the first cause"


def test_two_calls_that_need_each_other_are_refused_and_the_chain_is_shown() -> None:
    play = Play()
    play.submit(call("a", "b"), call("b", "a"), call("free"))
    cyclic(play, "a", "b")
    assert "'call-a' -> 'call-b' -> 'call-a'" in play.failure("a").message
    assert play.names == ["call-free"]


def test_a_cycle_closed_later_through_a_declared_variable_fails_the_call_that_closed_it() -> None:
    play = Play()
    play.graph.declare([VarId("x")])
    play.submit(call("a", "x"))
    play.submit(call("b", "a"))
    play.submit(call("x", "b"))
    cyclic(play, "x")
    assert play.failure("a").call == "call-x"
    assert play.failure("b").call == "call-x"
    assert play.graph.unfinished == 0


def test_a_long_cycle_is_found_and_calls_beside_it_run() -> None:
    play = Play()
    ring = [call(f"r{i}", f"r{(i + 1) % 500}") for i in range(500)]
    play.submit(*ring, call("before"), call("after", "r0"))
    cyclic(play, "r0", "r499")
    assert play.names == ["call-before"]
    assert play.failure("after").code is ErrorCode.CYCLE


def test_two_cycles_joined_by_a_bridge_all_end() -> None:
    play = Play()
    play.submit(call("a", "b"), call("b", "a"), call("bridge", "b"), call("c", "d", "bridge"), call("d", "c"))
    cyclic(play, "a", "b", "c", "d")
    assert play.graph.variables[VarId("bridge")].status is FAILURE
    assert play.graph.unfinished == 0


def test_what_is_a_cycle_does_not_depend_on_values_so_that_a_rebuilt_graph_judges_alike() -> None:
    entries: list[list[Call]] = [
        [call("m", "n")],
        [program("late", Input(variables=("m",)), Output(variables=("n",)), Output(variables=("k",)))],
    ]
    live, rebuilt = Play(), Play()
    for play in (live, rebuilt):
        play.graph.declare([VarId("n")])
    live.submit(*entries[0])
    live.value("n")  # set by hand before the second entry is read; a rebuilding scheduler reads all entries first
    live.submit(*entries[1])
    for entry in entries:
        rebuilt.submit(*entry)
    rebuilt.value("n")
    assert live.failure("k") == rebuilt.failure("k")
    assert live.graph.calls[CallId("call-m")].state == rebuilt.graph.calls[CallId("call-m")].state
