"""A session's graph, with the scheduler and the stream played around it."""

from __future__ import annotations

from myna.actors.messages import Call, Cancellation, Failure, Message, ModelCall, Segment, VarId, WorkerId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallNode, CallState, Effects

VALUE, FAILURE, CANCELLED = OutcomeStatus.VALUE, OutcomeStatus.FAILURE, OutcomeStatus.CANCELLED


def status_of(outcome: Failure | Cancellation) -> OutcomeStatus:
    return FAILURE if isinstance(outcome, Failure) else CANCELLED


class Play:
    """A graph with the scheduler and the stream played around it: outcomes asked for are stored when `settle` says so."""

    def __init__(self, *, lazy: bool = False) -> None:
        self.graph = SessionGraph(lazy=lazy)
        self.stream: dict[str, tuple[OutcomeStatus, Failure | Cancellation | None]] = {}
        self.pending: list[tuple[VarId, Failure | Cancellation]] = []
        self.ready: list[CallNode] = []
        self.runs: list[str] = []

    def take(self, effects: Effects) -> Effects:
        for node in [*effects.halted, *effects.withdrawn, *effects.ended]:
            node.worker = None
        for node in effects.ready:
            assert node not in self.ready or node in effects.withdrawn
            self.ready.append(node)
        self.ready = [n for n in self.ready if n.state is CallState.READY]
        self.pending += effects.doomed
        self.graph.check()
        return effects

    def submit(self, *calls: Call) -> Effects:
        return self.take(self.graph.submit(calls))

    def value(self, *variables: str) -> None:
        for variable in variables:
            if variable not in self.stream:
                self.stream[variable] = (VALUE, None)
            self.take(self.graph.ended(VarId(variable), VALUE))

    def start(self, node: CallNode) -> None:
        assert node.state is CallState.READY
        node.state, node.worker = CallState.RUNNING, WorkerId("w")
        self.ready.remove(node)
        self.runs.append(node.id)

    def settle(self) -> None:
        """The stream takes what was asked for, until nothing more is."""
        while self.pending:
            variable, outcome = self.pending.pop(0)
            if variable not in self.stream:
                self.stream[variable] = (status_of(outcome), outcome)
            status, stored = self.stream[variable]
            failure = stored if isinstance(stored, Failure) else None
            self.take(self.graph.ended(variable, status, failure))

    def run_all(self) -> None:
        while self.ready:
            node = self.ready[0]
            self.start(node)
            self.value(*(o for o in node.outputs if o not in self.stream))
            self.settle()

    def failure(self, variable: str) -> Failure:
        self.settle()
        outcome = self.stream[variable][1]
        assert isinstance(outcome, Failure), outcome
        return outcome

    def cancellation(self, variable: str) -> Cancellation:
        self.settle()
        outcome = self.stream[variable][1]
        assert isinstance(outcome, Cancellation), outcome
        return outcome

    @property
    def names(self) -> list[str]:
        return sorted(n.id for n in self.ready)


def program(name: str, *segments: Segment, **options: object) -> ModelCall:
    return ModelCall(id=name, messages=(Message(segments=segments),), **options)  # type: ignore[arg-type]
