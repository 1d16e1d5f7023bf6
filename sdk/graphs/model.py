"""A session's graph as people see it: calls, the variables that no call makes, and what goes from which to which.

Law: pure, and the same whether it comes from a scheduler that leads now or from a recording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from myna.actors.messages import Call, CallView, GraphView, VariableView
from myna.actors.outcomes import OutcomeStatus, status_of
from myna.actors.program import inputs_of, outputs_of
from myna.sdk.recording import Recording


class State(StrEnum):
    """How a call or variable stands."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class Kind(StrEnum):
    """What a node is."""

    CALL = "call"
    VARIABLE = "variable"


@dataclass(frozen=True, slots=True)
class Node:
    """A call, or a variable that is set by hand. `outputs`: the variables that it makes, or itself; `seconds` in its state, where
    known."""

    kind: Kind
    id: str
    label: str
    state: State
    outputs: tuple[str, ...] = ()
    worker: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """A variable goes from one node into another; both by their place in `Graph.nodes`."""

    source: int
    target: int
    variable: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole graph. `left_out`: calls of a huge one that are missing."""

    session: str
    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    left_out: int = 0

    @property
    def counts(self) -> Mapping[State, int]:
        """How many calls are in which state."""
        return Counter(node.state for node in self.nodes if node.kind is Kind.CALL)


Phase = Callable[[str], str | None]
"""How far a call of this id is at its worker, if that is known: a `messages.Phase`."""

_PHASES = {"queued": State.QUEUED, "prefill": State.PREFILL, "decode": State.DECODE, "storing": State.DECODE}
_ENDS = {
    OutcomeStatus.VALUE: State.DONE,
    OutcomeStatus.FAILURE: State.FAILED,
    OutcomeStatus.CANCELLED: State.CANCELLED,
}


def of_view(view: GraphView, phase: Phase = lambda _: None) -> Graph:
    """The graph that a scheduler told."""
    ends = {v.id: end for v in view.variables if (end := _ended(v.state)) is not None}
    calls = [_call(call, ends, phase) for call in view.calls]
    nodes = [*_given(view.variables, ends), *calls]
    inputs = {call.id: call.inputs for call in view.calls}
    return Graph(view.session, view.name, tuple(nodes), tuple(_edges(nodes, inputs)), view.left_out)


def of_recording(recording: Recording) -> Graph:
    """The graph that was recorded."""
    ends = {name: _ENDS[status_of(ended.outcome)] for name, ended in recording.outcomes.items()}
    made = recording.producers
    calls = [_recorded(call, ends, recording) for call in recording.calls.values()]
    given = {name: None for call in recording.calls.values() for name in inputs_of(call) if name not in made}
    nodes = [
        *(Node(Kind.VARIABLE, name, name, ends.get(name, State.WAITING), (name,)) for name in given),
        *calls,
    ]
    inputs = {call.id: tuple(dict.fromkeys(inputs_of(call))) for call in recording.calls.values()}
    name = recording.opened.name if recording.opened is not None else ""
    return Graph(recording.session, name, tuple(nodes), tuple(_edges(nodes, inputs)))


def _call(call: CallView, ends: Mapping[str, State], phase: Phase) -> Node:
    state = _joined([ends.get(o) for o in call.outputs])
    if state is None:
        state = _going_on(call, phase)
    return Node(Kind.CALL, call.id, call.function or call.id, state, call.outputs, call.worker, call.seconds)


def _going_on(call: CallView, phase: Phase) -> State:
    match call.state:
        case "ready":
            return State.READY
        case "running":
            return _PHASES.get(phase(call.id) or "", State.RUNNING)
        case "ending" | "ended":
            return State.CANCELLED if call.state == "ended" else State.FAILED
        case _:
            return State.WAITING


def _joined(ends: Sequence[State | None]) -> State | None:
    """How a call has ended whose outputs have ended so; None while one has not."""
    if None in ends or not ends:
        return None
    for worst in (State.FAILED, State.CANCELLED):
        if worst in ends:
            return worst
    return State.DONE


def _ended(state: str) -> State | None:
    try:
        return _ENDS[OutcomeStatus(state)]
    except ValueError:
        return None


def _recorded(call: Call, ends: Mapping[str, State], recording: Recording) -> Node:
    outputs = outputs_of(call)
    timing = next((recording.timings[o] for o in outputs if o in recording.timings), None)
    return Node(
        Kind.CALL,
        call.id,
        call.function or call.id,
        _joined([ends.get(o) for o in outputs]) or State.WAITING,
        outputs,
        timing.worker if timing is not None else "",
        round(timing.ended - timing.received, 3) if timing is not None else None,
    )


def _given(variables: Iterable[VariableView], ends: Mapping[str, State]) -> Iterator[Node]:
    for variable in variables:
        if not variable.producer:
            state = ends.get(variable.id, State.WAITING)
            yield Node(Kind.VARIABLE, variable.id, variable.id, state, (variable.id,))


def _edges(nodes: Sequence[Node], inputs: Mapping[str, tuple[str, ...]]) -> Iterator[Edge]:
    makers = {output: place for place, node in enumerate(nodes) for output in node.outputs}
    for place, node in enumerate(nodes):
        if node.kind is Kind.CALL:
            for variable in inputs.get(node.id, ()):
                if (maker := makers.get(variable)) is not None and maker != place:
                    yield Edge(maker, place, variable)
