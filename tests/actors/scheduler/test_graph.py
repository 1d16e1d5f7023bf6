from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from myna.actors.messages import (
    Argument,
    CallId,
    ErrorCode,
    Failure,
    Input,
    Message,
    ModelCall,
    NativeCall,
    Output,
    Segment,
    Text,
    VarId,
)
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallNode, CallState
from tests.actors.scheduler.play import FAILURE, VALUE, Play, program, status_of
from tests.actors.stage import call

# --- readiness --------------------------------------------------------------------------------------------------------


def test_a_diamond_runs_from_top_to_bottom_and_each_call_once() -> None:
    play = Play()
    play.submit(call("d", "b", "c"), call("c", "a"), call("b", "a"), call("a"))
    assert play.names == ["call-a"]
    play.run_all()
    assert play.runs[0] == "call-a"
    assert play.runs[-1] == "call-d"
    assert sorted(play.runs) == ["call-a", "call-b", "call-c", "call-d"]
    assert play.graph.unfinished == 0


def test_fan_out_readies_all_consumers_at_once_and_fan_in_waits_for_the_last() -> None:
    play = Play()
    play.submit(call("a"), *(call(f"m{i}", "a") for i in range(50)), call("r", *(f"m{i}" for i in range(50))))
    play.start(play.ready[0])
    play.value("a")
    assert len(play.ready) == 50
    for node in play.ready[1:]:
        play.start(node)
        play.value(*node.outputs)
        assert "call-r" not in play.names
    play.start(play.ready[0])
    play.value("m0")
    assert play.names == ["call-r"]


def test_a_list_as_one_input_waits_for_every_member_and_counts_a_repeated_one_once() -> None:
    play = Play()
    play.graph.declare([VarId("x"), VarId("y")])
    play.submit(program("c", Input(variables=("x", "y", "x")), Input(variables=("x",)), Output(variables=("o",))))
    play.value("x")
    assert play.names == []
    play.value("y")
    assert play.names == ["c"]


def test_a_call_ends_when_each_of_several_outputs_has_an_outcome() -> None:
    play = Play()
    play.submit(call("a", outputs=3), call("b", "a-0"))
    play.start(play.ready[0])
    play.value("a-0")
    assert play.names == ["call-b"], "a consumer of the first output need not wait for the last"
    assert play.graph.calls[CallId("call-a")].state is CallState.RUNNING
    play.value("a-1", "a-2")
    assert play.graph.calls[CallId("call-a")].state is CallState.ENDED


def test_several_siblings_of_the_last_output_are_variables_of_their_own() -> None:
    play = Play()
    play.submit(program("c", Text(text="x"), Output(variables=("p", "q"))), call("d", "q"))
    play.start(play.ready[0])
    play.value("q")
    assert play.names == ["call-d"]


def test_native_calls_are_nodes_like_any_other() -> None:
    play = Play()
    native = NativeCall(
        id="n", function="search", variable="o", arguments=(Argument(name="q", input=Input(variables=("a",))),)
    )
    play.submit(native, call("a"), call("b", "o"))
    play.run_all()
    assert play.runs == ["call-a", "n", "call-b"]


def test_a_variable_set_by_hand_serves_before_and_after_the_calls_are_submitted() -> None:
    play = Play()
    play.graph.declare([VarId("before"), VarId("after")])
    play.value("before")
    play.submit(call("c", "before", "after"))
    assert play.names == []
    play.value("after")
    assert play.names == ["call-c"]


def test_an_output_set_by_hand_makes_its_call_unnecessary() -> None:
    play = Play()
    play.value("a")
    play.submit(call("a"), call("b", "a"))
    assert play.names == ["call-b"]
    assert play.graph.calls[CallId("call-a")].state is CallState.ENDED


def test_an_outcome_heard_twice_changes_nothing() -> None:
    play = Play()
    play.submit(call("a"), call("b", "a", "a2"), call("a2"))
    play.value("a", "a", "a")
    assert play.names == ["call-a2"]
    assert play.graph.calls[CallId("call-b")].missing == 1


# --- lazy sessions ----------------------------------------------------------------------------------------------------


def test_a_lazy_session_runs_what_is_wanted_and_all_that_it_needs_and_nothing_else() -> None:
    play = Play(lazy=True)
    play.submit(call("a"), call("b", "a"), call("c", "a"), call("d", "b"))
    assert play.names == []
    play.take(play.graph.want([VarId("b")]))
    play.run_all()
    assert play.runs == ["call-a", "call-b"]
    play.take(play.graph.want([VarId("d")]))
    play.run_all()
    assert play.runs == ["call-a", "call-b", "call-d"]


def test_wanting_before_submitting_starts_the_call_when_it_comes_even_in_parts() -> None:
    play = Play(lazy=True)
    play.take(play.graph.want([VarId("b")]))
    play.graph.declare([VarId("a")])
    play.submit(call("b", "a"))
    play.submit(call("a"))
    play.run_all()
    assert play.runs == ["call-a", "call-b"]


def test_a_wanted_variable_that_nobody_names_ends_with_the_session() -> None:
    play = Play(lazy=True)
    play.take(play.graph.want([VarId("dream")]))
    play.take(play.graph.close("over"))
    assert play.cancellation("dream").reason == "over"


# --- failure, cancellation, close -------------------------------------------------------------------------------------


def test_failure_flows_down_naming_the_call_that_failed_first() -> None:
    play = Play()
    play.submit(call("a"), call("b", "a"), call("c", "b"), call("other"), call("d", "other", "c"))
    node = play.ready[0]
    play.start(node)
    cause = Failure(code=ErrorCode.ENGINE_ERROR, message="out of paper", call="call-a", function="a")
    play.take(play.graph.fail(node, cause))
    for variable in ("a", "b", "c", "d"):
        assert play.failure(variable) == cause
    assert play.names == ["call-other"]


def test_a_value_that_came_first_wins_over_a_failure_and_its_consumers_run() -> None:
    play = Play()
    play.submit(call("a", outputs=2), call("b", "a-0"), call("c", "a-1"))
    node = play.ready[0]
    play.start(node)
    play.take(play.graph.fail(node, Failure(code=ErrorCode.WORKER_LOST, message="gone")))
    play.stream["a-0"] = (VALUE, None)  # the zombie's value reached the stream before our failure
    play.settle()
    assert play.names == ["call-b"]
    assert play.failure("c").code is ErrorCode.WORKER_LOST


def test_cancelling_a_call_cancels_what_needs_it_and_halts_what_runs() -> None:
    play = Play()
    play.submit(call("a"), call("b", "a"), call("c"))
    node = play.ready[0]
    play.start(node)
    effects = play.take(play.graph.cancel([CallId("call-a"), CallId("unknown")], "enough"))
    assert effects.halted == [node]
    assert play.cancellation("a").reason == "enough"
    assert play.cancellation("b").call == "call-a"
    assert play.names == ["call-c"]


def test_closing_ends_every_variable_with_or_without_a_call() -> None:
    play = Play()
    play.graph.declare([VarId("by-hand")])
    play.submit(call("a"), call("b", "a", "by-hand"), call("bad", "ghost"))
    play.take(play.graph.close("the session has ended"))
    play.settle()
    assert all(v.status is not None for v in play.graph.variables.values())
    assert play.graph.unfinished == 0
    assert play.cancellation("by-hand").reason == "the session has ended"


# --- size -------------------------------------------------------------------------------------------------------------


class Counted(dict):  # type: ignore[type-arg]
    """A dictionary that counts look-ups: the work that a graph does, without a clock."""

    lookups = 0

    def __getitem__(self, key: object) -> object:
        self.lookups += 1
        return super().__getitem__(key)

    def get(self, key: object, default: object = None) -> object:
        self.lookups += 1
        return super().get(key, default)


def counted() -> SessionGraph:
    graph = SessionGraph()
    graph.variables = Counted()
    return graph


def work(graph: SessionGraph) -> int:
    assert isinstance(graph.variables, Counted)
    return graph.variables.lookups


def test_a_chain_of_100_000_calls_is_submitted_run_and_failed_in_linear_work() -> None:
    graph, size = counted(), 100_000
    effects = graph.submit([call("v0"), *(call(f"v{i}", f"v{i - 1}") for i in range(1, size))])
    assert len(effects.ready) == 1
    for i in range(size // 2):
        effects = graph.ended(VarId(f"v{i}"), VALUE)
        assert len(effects.ready) == 1
    cause = Failure(code=ErrorCode.ENGINE_ERROR, message="half-way")
    doomed = graph.fail(effects.ready[0], cause).doomed
    ends = 0
    while doomed:
        (variable, outcome), *more = doomed
        assert outcome is cause
        assert not more
        doomed = graph.ended(variable, FAILURE, cause).doomed
        ends += 1
    assert ends == size // 2
    assert graph.unfinished == 0
    assert work(graph) < 25 * size


def test_a_fan_in_of_5000_and_a_fan_out_of_5000_take_linear_work() -> None:
    graph, size = counted(), 5000
    graph.submit(
        [call("root"), *(call(f"m{i}", "root") for i in range(size)), call("r", *(f"m{i}" for i in range(size)))]
    )
    assert len(graph.ended(VarId("root"), VALUE).ready) == size
    ready = [graph.ended(VarId(f"m{i}"), VALUE).ready for i in range(size)]
    assert [len(r) for r in ready] == [0] * (size - 1) + [1]
    assert work(graph) < 40 * size


def test_a_late_entry_costs_its_own_size_and_not_the_graphs() -> None:
    graph = counted()
    graph.submit([call("v0"), *(call(f"v{i}", f"v{i - 1}") for i in range(1, 2000))])
    before = work(graph)
    graph.submit([call("late", "v1999")])
    assert work(graph) - before < 30


# --- what nobody needs any more ---------------------------------------------------------------------------------------


def states(play: Play) -> dict[str, CallState]:
    return {n.id.removeprefix("call-"): n.state for n in play.graph.calls.values()}


def test_in_a_lazy_session_what_only_a_dropped_want_needed_stops_and_starts_again_when_wanted() -> None:
    play = Play(lazy=True)
    play.submit(call("a"), call("b", "a"), call("c", "a"))
    play.take(play.graph.want([VarId("b")], "ann"))
    play.start(play.ready[0])
    effects = play.take(play.graph.unwant([VarId("b")], "ann"))
    assert [n.id for n in effects.withdrawn] == ["call-a"]
    assert states(play) == dict.fromkeys("abc", CallState.WAITING)
    play.take(play.graph.want([VarId("c")], "bob"))
    play.run_all()
    assert play.runs == ["call-a", "call-a", "call-c"]
    assert states(play)["b"] is CallState.WAITING


def test_a_want_that_somebody_else_shares_is_not_dropped() -> None:
    play = Play(lazy=True)
    play.submit(call("a"), call("b", "a"))
    play.take(play.graph.want([VarId("b")], "ann"))
    play.take(play.graph.want([VarId("a")], "bob"))
    play.take(play.graph.unwant([VarId("b")], "ann"))
    assert play.names == ["call-a"]
    play.take(play.graph.unwant([VarId("a")], "nobody"))
    assert play.names == ["call-a"]


def test_in_a_lazy_session_a_failed_consumer_takes_its_needs_with_it() -> None:
    play = Play(lazy=True)
    play.submit(call("a"), call("b"), call("c", "a", "b"), call("d", "b"))
    play.take(play.graph.want([VarId("c"), VarId("d")]))
    for node in list(play.ready):
        play.start(node)
    failed = next(n for n in play.graph.calls.values() if n.id == "call-a")
    effects = play.take(play.graph.fail(failed, Failure(code=ErrorCode.ENGINE_ERROR, message="no")))
    play.settle()
    assert [n.id for n in effects.halted] == ["call-a"]
    assert states(play) == {
        "a": CallState.ENDED,
        "b": CallState.RUNNING,  # d needs it
        "c": CallState.ENDED,
        "d": CallState.WAITING,
    }


def test_in_a_lazy_session_what_was_needed_for_a_result_set_by_hand_stops() -> None:
    play = Play(lazy=True)
    play.submit(call("a"), call("b", "a"))
    play.take(play.graph.want([VarId("b")]))
    play.start(play.ready[0])
    play.value("b")
    assert states(play) == {"a": CallState.WAITING, "b": CallState.ENDED}


def test_in_a_lazy_session_a_result_that_is_there_does_not_start_the_call_whose_other_results_are_not() -> None:
    play = Play(lazy=True)
    both = program("both", Output(variables=("x",)), Output(variables=("y",)))
    play.submit(both, call("z", "x"))
    play.value("x")
    play.take(play.graph.want([VarId("z")]))
    assert play.names == ["call-z"]
    assert not play.graph.calls[CallId("both")].wanted


def test_in_an_eager_session_results_are_wanted_by_default_whatever_becomes_of_their_consumers() -> None:
    play = Play()
    play.submit(call("a"), call("b", "a"))
    play.take(play.graph.cancel([CallId("call-b")], "no more"))
    play.settle()
    assert play.names == ["call-a"]


def test_upstream_a_cancellation_takes_what_was_made_for_nobody_else_and_nobody_waits_for() -> None:
    play = Play()
    play.submit(call("a"), call("b", "a"), call("c", "b"), call("d", "a"), call("e"), call("f", "e", "c"))
    play.take(play.graph.want([VarId("e")], "ann"))
    effects = play.take(play.graph.cancel([CallId("call-f")], "no more", upstream=True))
    assert [v for v, _ in effects.doomed] == ["f", "c", "b"]
    play.settle()
    assert play.names == ["call-a", "call-e"]  # d needs a, and somebody waits for e
    assert "nobody needs it now: no more" in play.cancellation("b").reason


# --- everything at once -----------------------------------------------------------------------------------------------


NAMES = [f"v{i}" for i in range(9)]


names = st.sampled_from(NAMES)


@st.composite
def some_call(draw: st.DrawFn) -> ModelCall:
    """A call that makes sense, or, one time in five, any call at all."""
    base = draw(st.integers(0, len(NAMES) - 1))
    wild = draw(st.integers(0, 4)) == 0
    before, after = (NAMES, NAMES) if wild else (NAMES[:base], NAMES[base : base + 2])
    inputs = draw(st.lists(st.sampled_from(before), max_size=3)) if before else []
    outputs = (
        draw(st.lists(st.lists(st.sampled_from(after), min_size=1, max_size=2), max_size=2))
        if wild
        else [[v] for v in after]
    )
    segments: list[Segment] = [Input(variables=(v,), name=v) for v in inputs]
    segments += [Output(variables=tuple(group)) for group in outputs]
    identity = draw(st.sampled_from([f"c{i}" for i in range(12)]))
    return ModelCall(id=identity, messages=(Message(segments=tuple(segments)),))


class GraphMachine(RuleBasedStateMachine):
    """Any log, in any order with values, failures and cancellations: nothing runs twice at once or after its end, and a closed
    session leaves no variable without an outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.play = Play()
        self.submitted: set[str] = set()
        self.ends_well = True

    @initialize(lazy=st.booleans(), declared=st.integers(0, len(NAMES)), calls=st.lists(some_call(), max_size=4))
    def open(self, lazy: bool, declared: int, calls: list[ModelCall]) -> None:
        self.play = Play(lazy=lazy)
        self.play.graph.declare(VarId(v) for v in NAMES[:declared])
        self.submit(calls)

    @rule(calls=st.lists(some_call(), min_size=1, max_size=4))
    def submit(self, calls: list[ModelCall]) -> None:
        self.play.submit(*calls)
        self.submitted |= {
            v for c in calls for m in c.messages for s in m.segments if isinstance(s, Output) for v in s.variables
        }

    @rule(variables=st.lists(names, min_size=1, max_size=3))
    def declare(self, variables: list[str]) -> None:
        self.play.graph.declare(VarId(v) for v in variables)

    @rule(variables=st.lists(names, min_size=1, max_size=3), reader=st.sampled_from(("", "ann")))
    def want(self, variables: list[str], reader: str) -> None:
        self.play.take(self.play.graph.want((VarId(v) for v in variables), reader))

    @rule(variables=st.lists(names, min_size=1, max_size=3), reader=st.sampled_from(("", "ann")))
    def unwant(self, variables: list[str], reader: str) -> None:
        self.play.take(self.play.graph.unwant((VarId(v) for v in variables), reader))

    @rule(variable=names)
    def set_by_hand(self, variable: str) -> None:
        if variable not in self.play.stream:
            self.play.value(variable)

    @rule(data=st.data())
    def run(self, data: st.DataObject) -> None:
        if self.play.ready:
            self.play.start(data.draw(st.sampled_from(self.play.ready)))

    def running(self) -> list[CallNode]:
        return [n for n in self.play.graph.calls.values() if n.state is CallState.RUNNING]

    @rule(data=st.data())
    def produce(self, data: st.DataObject) -> None:
        if running := self.running():
            node = data.draw(st.sampled_from(running))
            left = [o for o in node.outputs if o not in self.play.stream]
            self.play.value(data.draw(st.sampled_from(left or list(node.outputs))))

    @rule(data=st.data(), again=st.booleans())
    def fail(self, data: st.DataObject, again: bool) -> None:
        if running := self.running():
            node = data.draw(st.sampled_from(running))
            if again:
                node.state, node.worker = CallState.READY, None
                self.play.ready.append(node)
            else:
                failure = Failure(code=ErrorCode.ENGINE_ERROR, message="no", call=node.id)
                self.play.take(self.play.graph.fail(node, failure))

    @rule(calls=st.lists(st.sampled_from([f"c{i}" for i in range(12)]), max_size=3), upstream=st.booleans())
    def cancel(self, calls: list[str], upstream: bool) -> None:
        self.play.take(self.play.graph.cancel([CallId(c) for c in calls], "no more", upstream=upstream))

    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        """The stream takes one of the outcomes asked for; outcomes of different variables may come in any order."""
        if self.play.pending:
            i = data.draw(st.integers(0, len(self.play.pending) - 1))
            self.play.pending = [self.play.pending[i], *self.play.pending[:i], *self.play.pending[i + 1 :]]
            rest, self.play.pending = self.play.pending[1:], self.play.pending[:1]
            variable, outcome = self.play.pending.pop()
            self.play.stream.setdefault(variable, (status_of(outcome), outcome))
            status, stored = self.play.stream[variable]
            failure = stored if isinstance(stored, Failure) else None
            self.play.take(self.play.graph.ended(variable, status, failure))
            self.play.pending += rest

    @invariant()
    def consistent(self) -> None:
        self.play.graph.check()
        for node in self.play.ready:
            assert node.wanted
            assert any(o not in self.play.stream for o in node.outputs)
        for variable, (status, _) in self.play.stream.items():
            known = self.play.graph.variables.get(VarId(variable))
            assert known is None or known.status in (None, status)

    def live_on(self) -> None:
        """With everything wanted, every hand's variable set, and every call that can run run, nothing is left waiting."""
        self.play.take(self.play.graph.want(VarId(v) for v in self.submitted))
        for node in list(self.play.graph.variables.values()):
            if node.producer is None and node.status is None:
                self.play.value(node.id)
        for call_node in self.running():
            self.play.value(*(o for o in call_node.outputs if o not in self.play.stream))
        self.play.settle()
        self.play.run_all()
        assert self.play.graph.unfinished == 0

    @rule(live_on=st.booleans())
    def pause(self, live_on: bool) -> None:
        self.ends_well = live_on

    def teardown(self) -> None:
        if self.ends_well:
            self.live_on()
        self.play.take(self.play.graph.close("the end"))
        self.play.settle()
        assert all(v.status is not None for v in self.play.graph.variables.values())
        assert self.play.graph.unfinished == 0
        assert self.play.ready == []
        assert not self.running()
        for variable in self.submitted:
            assert self.play.graph.variables[VarId(variable)].status is not None, f"{variable} never ended"


GraphMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


TestGraphMachine = GraphMachine.TestCase
