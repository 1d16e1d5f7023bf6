from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from myna.actors.messages import Chunk, Drain, EventKind, FinishReason, Hello, Stop, StreamMode, Value, VarId, WorkerId
from myna.actors.worker.backend import OutputEnded, Produced, RunKey
from myna.actors.worker.core import COALESCE, WorkerCore
from myna.actors.worker.events import (
    Abandon,
    Asked,
    Begin,
    Depart,
    Draining,
    Due,
    Present,
    PutChunk,
    PutValue,
    Read,
    ReadInputs,
    Refused,
    Reported,
    Stored,
    Tell,
    Wake,
    WorkerEvent,
)
from tests.actors.stage import call
from tests.actors.worker.desk import LEASE, Desk, native, of, run_of

# --- fencing, stopping, draining --------------------------------------------------------------------------------------


def test_an_order_under_an_older_lease_is_refused() -> None:
    desk = Desk()
    desk.ask(Hello(protocol=1, scheduler="new", lease=LEASE + 1))
    desk.out.clear()
    desk.ask(run_of(call("a")))
    assert desk.told() == [EventKind.REFUSED]
    assert desk.core.running == ()
    desk.ask(run_of(call("a"), lease=LEASE + 1))
    desk.ask(Stop(tenant="t", session="s", call="call-a", attempt=9, lease=LEASE))
    desk.ask(Drain(lease=LEASE))
    assert len(desk.core.running) == 1, "nor may a deposed scheduler stop or drain"
    assert not desk.core.draining


def test_the_newer_attempt_of_a_call_takes_the_place_of_the_older_and_never_the_other_way() -> None:
    desk = Desk()
    desk.start(call("a"))
    (abandon, read) = desk.ask(run_of(call("a"), attempt=2, resume=True))
    assert isinstance(abandon, Abandon)
    assert abandon.key[3] == 1
    assert isinstance(read, ReadInputs)
    for attempt in (1, 2):
        assert desk.ask(run_of(call("a"), attempt=attempt)) == []
    assert [r.attempt for r in desk.core.running] == [2]
    assert desk.produce("late words of attempt 1") == []


def test_an_order_that_comes_again_after_its_attempt_has_ended_is_not_carried_out_twice() -> None:
    desk = Desk()
    desk.start(native(StreamMode.BUFFERED))
    desk.end()
    desk.stored(None)
    assert desk.told() == [EventKind.FINISHED]
    assert desk.ask(run_of(native(StreamMode.BUFFERED))) == []
    assert desk.ask(run_of(native(StreamMode.BUFFERED), attempt=2, resume=True)) != []


def test_stop_takes_this_attempt_or_an_older_one_and_leaves_a_newer() -> None:
    for attempt, stopped in ((0, False), (1, True), (2, True)):
        desk = Desk()
        desk.start(call("a"))
        desk.ask(Stop(tenant="t", session="s", call="call-a", attempt=attempt, lease=LEASE))
        assert (desk.core.running == ()) is stopped
        assert bool(of(Abandon, desk.out)) is stopped
        assert desk.told() == []


def test_a_draining_worker_refuses_new_calls_finishes_the_old_and_departs() -> None:
    for order in (Draining(0.0), Asked(Drain(lease=LEASE), 0.0)):
        desk = Desk()
        desk.start(native(StreamMode.BUFFERED))
        assert [type(c) for c in desk.feed(order)] == [Present]
        desk.out.clear()
        desk.ask(run_of(call("b")))
        assert desk.told() == [EventKind.REFUSED]
        assert of(Depart, desk.out) == []
        desk.end()
        desk.stored(None)
        assert isinstance(desk.out[-1], Depart)


def test_an_idle_worker_that_is_drained_departs_at_once() -> None:
    desk = Desk()
    assert [type(c) for c in desk.feed(Draining(0.0))] == [Present, Depart]


def test_a_hello_is_answered_with_an_announcement() -> None:
    desk = Desk()
    assert [type(c) for c in desk.ask(Hello(protocol=1, scheduler="s", lease=1))] == [Present]


def test_a_pulse_is_answered_only_where_its_leader_is_new() -> None:
    desk = Desk()
    first, again = (desk.ask(Hello(protocol=1, scheduler="s", lease=LEASE, pulse=True)) for _ in range(2))
    assert ([type(c) for c in first], again) == ([Present], [])


# --- everything at once -----------------------------------------------------------------------------------------------


WORDS = ("", "a", "b ", "é", "long word ")


class AttemptMachine(RuleBasedStateMachine):
    """Attempts of one call on two workers over single-assignment streams, acknowledgements in any order.

    Chunk numbers are contiguous, each worker has at most one chunk in flight, and the value is the chunks joined.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cores = [WorkerCore(WorkerId(f"w{i}"), resumable=True) for i in range(2)]
        self.now = 0.0
        self.attempt = 0
        self.chunks: dict[str, list[Chunk]] = {}
        self.values: dict[str, Value] = {}
        self.queue: list[tuple[int, Any]] = []
        self.alarms: list[tuple[int, Wake]] = []
        self.jobs: list[tuple[int, RunKey, dict[str, bool]]] = []
        self.last_put: dict[tuple[int, RunKey, str], float] = {}
        self.variables: list[str] = []

    @initialize(outputs=st.integers(1, 2))
    def submit(self, outputs: int) -> None:
        self.spec = call("a", outputs=outputs)
        self.variables = ["a"] if outputs == 1 else ["a-0", "a-1"]
        self.chunks = {v: [] for v in self.variables}
        self.dispatch(0)

    @rule(who=st.integers(0, 1))
    def dispatch(self, who: int) -> None:
        """A new attempt, although the one before may still be running somewhere: a zombie."""
        self.attempt += 1
        self.feed(who, Asked(run_of(self.spec, self.attempt, resume=self.attempt > 1), self.now))

    def feed(self, who: int, event: WorkerEvent) -> None:
        commands = self.cores[who].handle(event)
        self.cores[who].check()
        for command in commands:
            match command:
                case ReadInputs() | PutValue():
                    self.queue.append((who, command))
                case PutChunk():
                    waiting = [
                        c for w, c in self.queue if w == who and isinstance(c, PutChunk) and c.key == command.key
                    ]
                    assert all(c.variable != command.variable for c in waiting), "two chunks in flight"
                    where = (who, command.key, str(command.variable))
                    before = self.last_put.get(where)
                    assert before is None or command.chunk.last or self.now - before >= COALESCE - 1e-9
                    self.last_put[where] = self.now
                    self.queue.append((who, command))
                case Wake():
                    self.alarms.append((who, command))
                case Begin(job=job):
                    ended = {v: (r := job.resumed.get(VarId(v))) is not None and r.ended for v in self.variables}
                    self.jobs.append((who, job.key, ended))
                case Abandon(key=key):
                    self.jobs = [j for j in self.jobs if j[:2] != (who, key)]
                case Tell() | Present() | Depart():
                    pass

    @rule(data=st.data())
    def network(self, data: st.DataObject) -> None:
        """The stream, or the reading, answers one of the requests that are under way."""
        if self.queue:
            self.answer(data.draw(st.integers(0, len(self.queue) - 1)))

    def answer(self, which: int) -> None:
        who, command = self.queue.pop(which)
        match command:
            case ReadInputs(key=key, outputs=outputs):
                chunks = {v: tuple(self.chunks[v]) for v in outputs}
                values = {v: self.values[v] for v in outputs if v in self.values}
                self.feed(who, Read(key, {}, chunks, values, None, self.now))
            case PutChunk(key=key, variable=variable, n=n, chunk=piece):
                there = self.chunks[variable]
                assert n <= len(there), "a gap"
                if n == len(there):
                    there.append(piece)
                    self.feed(who, Stored(key, variable, n, self.now))
                else:
                    self.feed(who, Refused(key, variable, n, self.now))
            case PutValue(key=key, variable=variable, value=value):
                assert self.chunks[variable][-1].last, "a value before the last chunk"
                assert value.text == "".join(c.text for c in self.chunks[variable]), "a value that is not its chunks"
                assert list(value.tokens) == [t for c in self.chunks[variable] for t in c.tokens]
                if variable in self.values:
                    assert self.values[variable].text == value.text
                    self.feed(who, Refused(key, variable, None, self.now))
                else:
                    self.values[variable] = value
                    self.feed(who, Stored(key, variable, None, self.now))

    @rule(data=st.data(), text=st.sampled_from(WORDS))
    def make(self, data: st.DataObject, text: str) -> None:
        if self.jobs:
            who, key, ended = data.draw(st.sampled_from(self.jobs))
            if left := [v for v in self.variables if not ended[v]]:
                self.feed(who, Reported(Produced(key, VarId(left[0]), text, (len(text),)), self.now))

    @rule(data=st.data())
    def end_output(self, data: st.DataObject) -> None:
        if self.jobs:
            who, key, ended = data.draw(st.sampled_from(self.jobs))
            if left := [v for v in self.variables if not ended[v]]:
                ended[left[0]] = True
                self.feed(who, Reported(OutputEnded(key, VarId(left[0]), FinishReason.STOP), self.now))

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.02, 0.5)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [a for a in self.alarms if a[1].at <= self.now]
        self.alarms = [a for a in self.alarms if a[1].at > self.now]
        for who, wake in due:
            self.feed(who, Due(wake.key, wake.variable, self.now))

    @rule(who=st.integers(0, 1))
    def stop(self, who: int) -> None:
        self.feed(who, Asked(Stop(tenant="t", session="s", call="call-a", attempt=self.attempt, lease=LEASE), self.now))

    @invariant()
    def at_most_one_last(self) -> None:
        for chunks in self.chunks.values():
            assert [c.last for c in chunks[:-1]] == [False] * (len(chunks) - 1)

    def teardown(self) -> None:
        """Whatever zombies there were: one more attempt on a fresh worker ends it all."""
        if not self.variables:
            return
        self.queue, self.jobs, self.alarms = [], [], []
        self.cores = [WorkerCore(WorkerId("w9"), resumable=True)]
        self.dispatch(0)
        for _ in range(40):
            self.pass_time(0.02)
            while self.queue:
                self.answer(0)
            for who, key, ended in list(self.jobs):
                for variable in self.variables:
                    if not ended[variable]:
                        ended[variable] = True
                        self.feed(who, Reported(OutputEnded(key, VarId(variable), FinishReason.STOP), self.now))
        assert set(self.values) == set(self.variables)
        assert self.cores[0].running == ()


AttemptMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


TestAttemptMachine = AttemptMachine.TestCase
