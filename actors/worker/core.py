"""The worker as a pure function: `handle(event) -> commands`. The same core serves engines and agents.

Laws:
- One unacknowledged chunk an output; chunks are coalesced over `COALESCE` seconds; the last one goes out at once.
- The value is published after the last chunk was accepted, and is the chunks joined. An output with transforms, or `buffered`,
  has no chunks.
- A chunk that the stream refuses ends the attempt: another attempt owns the output.
- What readers have seen is never made anew: a worker that can't resume fails, finally, once a chunk is out.
- What it held before it slept, or was cut off, for long it holds no more: others have it, and may be done with it.
- A command with an older lease than one already seen is refused; an older attempt of a call gives way to a newer one.
- A worker never publishes failure: it tells the scheduler, which decides.
- Prompts are kept, and calls begun ahead, for the scheduler that asked for it: with a new leader they go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from myna.actors.messages import (
    Anticipate,
    CallId,
    CallSight,
    Cordon,
    Drain,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    Hello,
    Release,
    Retain,
    Run,
    Running,
    SchedulerMessage,
    SessionId,
    Stop,
    Tenant,
    Usage,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.outcomes import shortened
from myna.actors.program import inputs_of
from myna.actors.worker.ahead import GRACE, Ahead
from myna.actors.worker.attempt import Attempt, Making, key_of
from myna.actors.worker.backend import (
    Job,
    JobEnded,
    JobFailed,
    JobRefused,
    OutputEnded,
    Produced,
    Report,
    RunKey,
)
from myna.actors.worker.events import (
    Abandon,
    Asked,
    Begin,
    Depart,
    Draining,
    Due,
    Fetch,
    Fetched,
    NotStored,
    Present,
    PutChunk,
    PutValue,
    Read,
    ReadInputs,
    Refused,
    Reported,
    Slept,
    Stored,
    Tell,
    Wake,
    WorkerCommand,
    WorkerEvent,
)
from myna.actors.worker.keeping import Keeping

COALESCE = 0.02
"""Seconds between two chunks of one output."""
REMEMBERED = 4096
"""Attempts that have ended here, lately: an order that comes twice, the second time late, must not be carried out again."""


class WorkerCore:
    """State and decisions of one worker."""

    def __init__(self, worker: WorkerId, *, resumable: bool, tokenizer: str = "") -> None:
        self.worker = worker
        self.resumable = resumable
        self.tokenizer = tokenizer
        self.lease = 0
        self.draining = False
        self.cordoned = False
        self._attempts: dict[tuple[Tenant, SessionId, CallId], Attempt] = {}
        self._over: dict[RunKey, None] = {}
        self._keeping = Keeping()
        self._ahead = Ahead()
        self._out: list[WorkerCommand] = []

    @property
    def running(self) -> tuple[Running, ...]:
        """What this worker holds, for its announcements and beats."""
        return tuple(
            Running(tenant=a.key[0], session=a.key[1], call=a.key[2], attempt=a.key[3]) for a in self._attempts.values()
        )

    def shown(self) -> Iterator[tuple[RunKey, CallSight]]:
        """What this worker holds, for people who look, by the backend's names; `since` is by this core's clock."""
        return ((attempt.job, attempt.sight()) for attempt in self._attempts.values())

    def function_of(self, key: RunKey) -> str:
        """The function of a call that it holds; empty for one that it does not."""
        attempt = self._find(key)
        return "" if attempt is None else attempt.run.call.function

    def handle(self, event: WorkerEvent) -> list[WorkerCommand]:
        """Apply one event; returns what is to be done, in order."""
        match event:
            case Asked():
                self._asked(event.message, event.now)
            case Read():
                self._read(event)
            case Fetched():
                self._fetched(event)
            case Reported():
                self._reported(event.report, event.now)
            case Stored():
                self._stored(event)
            case Refused():
                self._refused(event)
            case NotStored():
                self._fail(event.key, event.failure)
            case Due():
                self._due(event)
            case Slept():
                self._slept()
            case Draining():
                self._drain()
            case _:
                assert_never(event)
        if self.draining and not self._attempts:
            self._out.append(Depart())
        out, self._out = self._out, []
        return out

    # --- what a scheduler asks ---

    def _asked(self, message: SchedulerMessage, now: float) -> None:
        if message.lease > self.lease:
            self._out += self._keeping.clear()
            self._give_up_ahead()
        match message:
            case Run():
                self._run(message, now)
            case Stop():
                self._stop(message)
            case Retain():
                if message.lease >= self.lease and not self.draining:
                    self.lease = message.lease
                    self._keeping.asked(message)
                    self._out.append(Fetch(message))
            case Anticipate():
                if message.lease >= self.lease and not self.draining:
                    self.lease = message.lease
                    self._out.append(Fetch(message))
            case Release():
                if message.lease >= self.lease:
                    self.lease = message.lease
                    self._out += self._keeping.let_go(message.ids)
            case Drain():
                if message.lease >= self.lease:
                    self.lease = message.lease
                    self._drain()
            case Cordon():
                if message.lease >= self.lease:
                    self.lease = message.lease
                    self.cordoned = not message.lift
                    self._out.append(Present())
            case Hello():
                if not message.pulse or message.lease > self.lease:
                    self._out.append(Present())
                self.lease = max(self.lease, message.lease)
            case _:
                assert_never(message)

    def _fetched(self, event: Fetched) -> None:
        match event.order:
            case Anticipate() as order:
                self._expect(order, event.inputs)
            case Retain() as order:
                self._out += self._keeping.fetched(order, event.inputs)

    def _expect(self, order: Anticipate, inputs: Mapping[VarId, Value] | None) -> None:
        """A call is to begin once its last input is made, if that is being made here."""
        variable, session = VarId(order.awaits), (order.tenant, order.session)
        made = (a.outputs[variable] for a in self._attempts.values() if variable in a.outputs and a.key[:2] == session)
        if inputs is not None and order.lease == self.lease and any(output.end is None for output in made):
            self._ahead.expect(order, inputs)

    def _give_up_ahead(self) -> None:
        self._out += map(Abandon, self._ahead.clear())

    def _drain(self) -> None:
        self._give_up_ahead()
        self.draining = True
        self._out.append(Present())

    def _run(self, run: Run, now: float) -> None:
        key = key_of(run)
        held = self._attempts.get(key[:3])
        if run.lease < self.lease:
            self._refuse(key, f"lease {run.lease} is older than {self.lease}")
            return
        self.lease = run.lease
        if self.draining:
            self._refuse(key, "the worker is draining")
            return
        if key in self._over or (held is not None and held.key[3] >= run.attempt):
            return  # the same order twice, or one that was overtaken
        if held is not None:
            self._drop(held)
        attempt = Attempt.of(run, now)
        self._attempts[key[:3]] = attempt
        inputs = () if run.source is not None else tuple(dict.fromkeys(inputs_of(run.call)))
        self._out.append(ReadInputs(key, inputs, tuple(attempt.outputs) if run.resume else (), run.source))
        return

    def _refuse(self, key: RunKey, why: str) -> None:
        failure = Failure(code=ErrorCode.WORKER_LOST, message=f"worker {self.worker!r}: {why}", retryable=True)
        self._tell(key, EventKind.REFUSED, failure)

    def _stop(self, stop: Stop) -> None:
        if stop.lease < self.lease:
            return
        self.lease = stop.lease
        held = self._attempts.get((Tenant(stop.tenant), SessionId(stop.session), CallId(stop.call)))
        if held is not None and held.key[3] <= stop.attempt:
            self._drop(held)

    def _drop(self, attempt: Attempt) -> None:
        if attempt.begun_at is not None:
            self._out.append(Abandon(attempt.job))
        for variable in attempt.outputs:
            self._ahead.gone((*attempt.key[:2], variable))
        del self._attempts[attempt.key[:3]]
        self._over[attempt.key] = None
        if len(self._over) > REMEMBERED:
            del self._over[next(iter(self._over))]

    def _slept(self) -> None:
        self._give_up_ahead()
        for attempt in list(self._attempts.values()):
            self._drop(attempt)
            self._tell(attempt.key, EventKind.OVERTAKEN)

    # --- start ---

    def _read(self, event: Read) -> None:
        attempt = self._find(event.key)
        if attempt is None:
            return
        if event.failure is not None:
            self._fail(event.key, event.failure)
            return
        if attempt.run.source is not None:
            self._copy(attempt, event.taken)
            return
        for variable, output in attempt.outputs.items():
            output.resume(event.key, event.chunks.get(variable, ()))
            if (outcome := event.outcomes.get(variable)) is not None:
                output.ended_in(event.key, outcome)
        if attempt.torn:
            message = (
                f"the servers have lost chunks of {', '.join(attempt.torn)}, and what is left does not belong together"
            )
            failure = Failure(code=ErrorCode.WORKER_LOST, message=message, retryable=True)
            self._fail(event.key, failure, final=True)
            return
        if self._stuck(attempt):
            self._pass_on(attempt)
            return
        self._tell(event.key, EventKind.STARTED)
        made: Sequence[Report] = ()
        if attempt.unmade:
            attempt.begun_at = event.now
            resumed = {v: r for v, o in attempt.outputs.items() if (r := o.resumed) is not None}
            run = attempt.run
            made = self._begin(attempt, Job(event.key, run.call, event.inputs, resumed, run.cache, run.order))
        for output in attempt.outputs.values():
            self._advance(attempt, output, event.now)
        self._settle(attempt)
        for report in made:
            self._reported(report, event.now)

    def _begin(self, attempt: Attempt, job: Job) -> Sequence[Report]:
        """The backend begins, or has begun ahead. Returns what it has made."""
        begun = self._ahead.take(attempt.key[:3])
        if begun is not None and begun.suits(job):
            attempt.job = begun.job.key
            return begun.reports
        if begun is not None:
            self._out.append(Abandon(begun.job.key))
        self._out.append(Begin(job))
        return ()

    def _copy(self, attempt: Attempt, values: Sequence[Value]) -> None:
        """Publish what an identical call has made. Nothing was computed for it, and nothing of it was streamed."""
        self._tell(attempt.key, EventKind.STARTED)
        for output, value in zip(attempt.outputs.values(), values, strict=True):
            output.streamed = output.publishing = True
            self._out.append(PutValue(attempt.key, output.variable, attempt.copy_of(value)))

    # --- what the backend makes ---

    def _reported(self, report: Report, now: float) -> None:
        attempt = self._attempts.get(report.key[:3])
        if attempt is None or attempt.job != report.key:
            self._ahead.note(report)  # or it was stopped meanwhile
            return
        match report:
            case Produced():
                output = attempt.outputs[report.variable]
                if output.end is None:
                    output.produced(report, now)
                    self._advance(attempt, output, now)
            case OutputEnded():
                output = attempt.outputs[report.variable]
                attempt.usage += report.usage
                if output.end is None:
                    output.end, output.ended_at = report, now
                    self._go_ahead(attempt, output, now)
                    self._advance(attempt, output, now)
            case JobEnded():
                if attempt.unmade:
                    message = f"worker {self.worker!r} ended the call without {', '.join(attempt.unmade)}"
                    self._fail(attempt.key, Failure(code=ErrorCode.ENGINE_ERROR, message=message, retryable=True))
                    return
            case JobFailed():
                attempt.begun_at = None
                self._fail(attempt.key, report.failure, final=report.final)
                return
            case JobRefused():
                attempt.begun_at = None
                self._turn_away(attempt, report.failure)
                return
            case _:
                assert_never(report)
        self._settle(attempt)
        return

    def _go_ahead(self, attempt: Attempt, output: Making, now: float) -> None:
        """An output is made: begin what waited for it alone."""
        stream = (*attempt.key[:2], output.variable)
        if not self._ahead.awaits(stream):
            return
        value = attempt.value(output, self.worker)
        if isinstance(value, Value):
            for job in self._ahead.made(stream, value):
                self._out += [Begin(job), Wake(job.key, output.variable, now + GRACE)]

    # --- publishing ---

    def _advance(self, attempt: Attempt, output: Making, now: float) -> None:
        """Publish the next piece of an output, if it is time."""
        if output.done or output.publishing or output.in_flight is not None:
            return
        ended = output.end is not None
        if output.streamed or (ended and not output.live):
            self._publish_value(attempt, output)
        elif output.live and (ended or output.text or output.tokens):
            if ended or now >= output.not_before:
                self._publish_chunk(attempt, output, now)
            elif not output.waking:
                output.waking = True
                self._out.append(Wake(attempt.key, output.variable, output.not_before))

    def _publish_chunk(self, attempt: Attempt, output: Making, now: float) -> None:
        chunk = output.cut(attempt.key[3], self.tokenizer)
        if chunk is not None:
            output.not_before = now + COALESCE
            self._out.append(PutChunk(attempt.key, output.variable, output.next, chunk))

    def _publish_value(self, attempt: Attempt, output: Making) -> None:
        value = attempt.value(output, self.worker)
        if isinstance(value, Failure):
            self._fail(attempt.key, value)
            return
        output.publishing = True
        self._out.append(PutValue(attempt.key, output.variable, value, output.streamed_bytes))

    def _stored(self, event: Stored) -> None:
        attempt = self._find(event.key)
        if attempt is None:
            return
        output = attempt.outputs[event.variable]
        if event.n is None:
            output.done = True
        elif output.in_flight is not None and event.n == output.next:
            output.acknowledged()
            stream = (*event.key[:2], event.variable)
            self._out += self._keeping.grown(stream, output.stored_text, output.stored_tokens)
            self._advance(attempt, output, event.now)
        self._settle(attempt)

    def _refused(self, event: Refused) -> None:
        attempt = self._find(event.key)
        if attempt is None:
            return
        if event.n is None:  # somebody's outcome came first: it stands, and ours is not needed
            attempt.outputs[event.variable].done = True
            self._settle(attempt)
            return
        self._drop(attempt)
        self._tell(event.key, EventKind.OVERTAKEN)

    def _due(self, event: Due) -> None:
        attempt = self._find(event.key)
        if attempt is not None:
            output = attempt.outputs[event.variable]
            output.waking = False
            self._advance(attempt, output, event.now)
        elif self._ahead.overdue(event.key):
            self._out.append(Abandon(event.key))

    # --- end ---

    def _settle(self, attempt: Attempt) -> None:
        if attempt.done and self._attempts.get(attempt.key[:3]) is attempt:
            self._drop(attempt)
            self._tell(attempt.key, EventKind.FINISHED, usage=attempt.usage)

    def _fail(self, key: RunKey, failure: Failure, *, final: bool = False) -> None:
        attempt = self._find(key)
        if attempt is not None:
            self._drop(attempt)
            self._tell(key, EventKind.FAILED, shortened(failure), final=final or self._stuck(attempt))

    def _turn_away(self, attempt: Attempt, failure: Failure) -> None:
        """The backend would not begin it: another may, unless readers have seen a part that another can't go on from."""
        if self._stuck(attempt):
            self._fail(attempt.key, failure)
        else:
            self._drop(attempt)
            self._tell(attempt.key, EventKind.REFUSED, shortened(failure))

    def _pass_on(self, attempt: Attempt) -> None:
        """What others have begun can't be gone on with here: that costs a try, and another worker may be able to."""
        seen = ", ".join(attempt.seen)
        message = f"readers have seen a part of {seen}, and worker {self.worker!r} can't go on from there"
        self._drop(attempt)
        self._tell(attempt.key, EventKind.FAILED, Failure(code=ErrorCode.WORKER_LOST, message=message, retryable=True))

    def _stuck(self, attempt: Attempt) -> bool:
        """Whether readers have seen a part of it from which this worker, or another of its kind, can't go on."""
        outputs = (attempt.outputs[variable] for variable in attempt.seen)
        return any(not (self.resumable and output.may_be_continued(self.tokenizer)) for output in outputs)

    def _find(self, key: RunKey) -> Attempt | None:
        attempt = self._attempts.get(key[:3])
        return attempt if attempt is not None and attempt.key == key else None

    def _tell(
        self,
        key: RunKey,
        kind: EventKind,
        failure: Failure | None = None,
        usage: Usage = Usage(),
        *,
        final: bool = False,
    ) -> None:
        tenant, session, call, attempt = key
        self._out.append(
            Tell(
                Event(
                    worker=self.worker,
                    kind=kind,
                    tenant=tenant,
                    session=session,
                    call=call,
                    attempt=attempt,
                    failure=failure,
                    usage=usage,
                    final=final,
                )
            )
        )

    def check(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        for key, attempt in self._attempts.items():
            assert attempt.key[:3] == key
            assert not attempt.done, f"{key} is done and still held"
            for output in attempt.outputs.values():
                assert not (output.in_flight and output.publishing), f"{output.variable}: a chunk beside the value"
                assert output.live or output.next == 0, f"{output.variable} is buffered, but has chunks"
