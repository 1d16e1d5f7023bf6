"""The worker as a pure function: `handle(event) -> commands`. The same core serves engines and agents.

Laws:
- One unacknowledged chunk an output; chunks are coalesced over `COALESCE` seconds; the last one goes out at once.
- The value is published after the last chunk was accepted, and is the chunks joined. An output with transforms, or `buffered`,
  has no chunks.
- A chunk that the stream refuses ends the attempt: another attempt owns the output.
- What readers have seen is never made anew: a worker that can't resume fails, finally, once a chunk is out.
- A command with an older lease than one already seen is refused; an older attempt of a call gives way to a newer one.
- A worker never publishes failure: it tells the scheduler, which decides.
- Prompts are kept for the scheduler that asked for it: with a new leader they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from msgspec.structs import replace

from myna.actors.messages import (
    Call,
    CallId,
    Chunk,
    Drain,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    FinishReason,
    Hello,
    ModelCall,
    NativeCall,
    Output,
    Release,
    Retain,
    Run,
    Running,
    SessionId,
    Stop,
    StreamMode,
    Tenant,
    Timing,
    TokenLogprob,
    Transform,
    Usage,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.outcomes import Chain, shortened
from myna.actors.plain import is_plain
from myna.actors.program import inputs_of
from myna.actors.worker.backend import Hold, Job, JobEnded, JobFailed, OutputEnded, Produced, Report, Resumed, RunKey
from myna.actors.worker.events import (
    Abandon,
    Asked,
    Begin,
    Depart,
    Draining,
    Due,
    Fetch,
    Fetched,
    Forgo,
    Hoard,
    NotStored,
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
    WorkerCommand,
    WorkerEvent,
)
from myna.actors.worker.transforms import TransformFailed, apply

COALESCE = 0.02
"""Seconds between two chunks of one output."""
REMEMBERED = 4096
"""Attempts that have ended here, lately: an order that comes twice, the second time late, must not be carried out again."""


@dataclass(slots=True, eq=False)
class _Output:
    """One output of an attempt: what was made, and how much of it is stored."""

    variable: VarId
    live: bool
    transforms: tuple[Transform, ...]
    stored_text: list[str] = field(default_factory=list)
    stored_tokens: list[int] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)
    """Of the stored text."""
    torn: bool = False
    """Its chunks, as found, are not one text: servers have lost some, and two attempts wrote the rest."""
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    next: int = 0
    in_flight: Chunk | None = None
    not_before: float = 0.0
    waking: bool = False
    end: OutputEnded | None = None
    first_at: float | None = None
    ended_at: float | None = None
    streamed: bool = False
    """The last chunk is stored (or none is due): the value may go out."""
    publishing: bool = False
    done: bool = False

    @property
    def begun(self) -> bool:
        """Whether readers have, or may have, seen a part of it."""
        return self.next > 0 or self.in_flight is not None

    def store(self, chunk: Chunk) -> None:
        """A chunk is in the stream."""
        self.stored_text.append(chunk.text)
        self.stored_tokens += chunk.tokens
        self.chain.add(chunk.text)


@dataclass(slots=True, eq=False)
class _Attempt:
    key: RunKey
    run: Run
    outputs: dict[VarId, _Output]
    received: float
    begun_at: float | None = None
    """When the backend got it; None while it has not, or has it no more."""
    usage: Usage = Usage()


class WorkerCore:
    """State and decisions of one worker."""

    def __init__(self, worker: WorkerId, *, resumable: bool) -> None:
        self.worker = worker
        self.resumable = resumable
        self.lease = 0
        self.draining = False
        self._attempts: dict[tuple[Tenant, SessionId, CallId], _Attempt] = {}
        self._over: dict[RunKey, None] = {}
        self._kept: set[str] = set()
        self._out: list[WorkerCommand] = []

    @property
    def running(self) -> tuple[Running, ...]:
        """What this worker holds, for its announcements and beats."""
        return tuple(
            Running(tenant=a.key[0], session=a.key[1], call=a.key[2], attempt=a.key[3]) for a in self._attempts.values()
        )

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
            case Draining():
                self._drain()
            case _:
                assert_never(event)
        if self.draining and not self._attempts:
            self._out.append(Depart())
        out, self._out = self._out, []
        return out

    # --- what a scheduler asks ---

    def _asked(self, message: Run | Stop | Retain | Release | Drain | Hello, now: float) -> None:
        if message.lease > self.lease:
            self._forgo(self._kept)
        match message:
            case Run():
                self._run(message, now)
            case Stop():
                self._stop(message)
            case Retain():
                if message.lease >= self.lease and not self.draining:
                    self.lease = message.lease
                    self._kept.add(message.id)
                    self._out.append(Fetch(message))
            case Release():
                if message.lease >= self.lease:
                    self.lease = message.lease
                    self._forgo(self._kept.intersection(message.ids))
            case Drain():
                if message.lease >= self.lease:
                    self.lease = message.lease
                    self._drain()
            case Hello():
                self.lease = max(self.lease, message.lease)
                self._out.append(Present())
            case _:
                assert_never(message)

    def _forgo(self, ids: set[str]) -> None:
        self._out += [Forgo(hold) for hold in sorted(ids)]
        self._kept = self._kept - ids

    def _fetched(self, event: Fetched) -> None:
        retain, inputs = event.retain, event.inputs
        if inputs is None:
            self._kept.discard(retain.id)
        elif retain.id in self._kept:
            hold = Hold(retain.id, Tenant(retain.tenant), retain.call, inputs, retain.distance, retain.cache)
            self._out.append(Hoard(hold))

    def _drain(self) -> None:
        self.draining = True
        self._out.append(Present())

    def _run(self, run: Run, now: float) -> None:
        key: RunKey = (Tenant(run.tenant), SessionId(run.session), CallId(run.call.id), run.attempt)
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
        attempt = _Attempt(key, run, {o.variable: o for o in _outputs(run.call)}, now)
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

    def _drop(self, attempt: _Attempt) -> None:
        if attempt.begun_at is not None:
            self._out.append(Abandon(attempt.key))
        del self._attempts[attempt.key[:3]]
        self._over[attempt.key] = None
        if len(self._over) > REMEMBERED:
            del self._over[next(iter(self._over))]

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
            self._resume(attempt, output, event.chunks.get(variable, ()))
            outcome = event.outcomes.get(variable)
            if outcome is not None:
                self._already(attempt, output, outcome)
        if torn := [o.variable for o in attempt.outputs.values() if o.torn and not o.done]:
            message = f"the servers have lost chunks of {', '.join(torn)}, and what is left does not belong together"
            failure = Failure(code=ErrorCode.WORKER_LOST, message=message, retryable=True)
            self._fail(event.key, failure, final=True)
            return
        if seen := self._seen(attempt):
            message = f"readers have seen a part of {seen}, and this kind of worker can't go on from there"
            self._fail(event.key, Failure(code=ErrorCode.WORKER_LOST, message=message, retryable=True))
            return
        self._tell(event.key, EventKind.STARTED)
        if any(not o.done and o.end is None for o in attempt.outputs.values()):
            attempt.begun_at = event.now
            resumed = {v: r for v, o in attempt.outputs.items() if (r := _resumed(o)) is not None}
            self._out.append(Begin(Job(event.key, attempt.run.call, event.inputs, resumed, attempt.run.cache)))
        for output in attempt.outputs.values():
            self._advance(attempt, output, event.now)
        self._settle(attempt)
        return

    def _copy(self, attempt: _Attempt, values: Sequence[Value]) -> None:
        """Publish what an identical call has made. Nothing was computed for it, and nothing of it was streamed."""
        self._tell(attempt.key, EventKind.STARTED)
        for output, value in zip(attempt.outputs.values(), values, strict=True):
            output.streamed = output.publishing = True
            mine = replace(value, attempt=attempt.key[3], call=attempt.key[2], usage=Usage(), timing=None)
            self._out.append(PutValue(attempt.key, output.variable, mine))

    def _resume(self, attempt: _Attempt, output: _Output, chunks: Iterable[Chunk]) -> None:
        """Take over what earlier attempts have published: the next chunk to claim is the first that is not there."""
        for n, chunk in enumerate(chunks):
            output.next = n + 1
            output.torn |= chunk.at is not None and (chunk.at, chunk.chain) != output.chain.state
            output.store(chunk)
            if chunk.last:
                output.streamed = True
                output.end = OutputEnded(attempt.key, output.variable, chunk.finish)

    def _already(self, attempt: _Attempt, output: _Output, outcome: object) -> None:
        """An output that has its outcome: nothing to publish, but a later output may need its text in the context."""
        output.done = output.streamed = True
        if isinstance(outcome, Value):
            output.stored_text, output.stored_tokens = [outcome.text], list(outcome.tokens)
            output.end = output.end or OutputEnded(attempt.key, output.variable, outcome.finish)

    # --- what the backend makes ---

    def _reported(self, report: Report, now: float) -> None:
        attempt = self._find(report.key)
        if attempt is None:
            return  # stopped meanwhile
        match report:
            case Produced():
                output = attempt.outputs[report.variable]
                if output.end is None:
                    output.first_at = output.first_at or now
                    output.text.append(report.text)
                    output.tokens += report.tokens
                    output.logprobs += report.logprobs
                    self._advance(attempt, output, now)
            case OutputEnded():
                output = attempt.outputs[report.variable]
                attempt.usage = _sum(attempt.usage, report.usage)
                if output.end is None:
                    output.end, output.ended_at = report, now
                    self._advance(attempt, output, now)
            case JobEnded():
                missing = [o.variable for o in attempt.outputs.values() if o.end is None and not o.done]
                if missing:
                    message = f"worker {self.worker!r} ended the call without {', '.join(missing)}"
                    self._fail(report.key, Failure(code=ErrorCode.ENGINE_ERROR, message=message, retryable=True))
                    return
            case JobFailed():
                attempt.begun_at = None
                self._fail(report.key, report.failure)
                return
            case _:
                assert_never(report)
        self._settle(attempt)
        return

    # --- publishing ---

    def _advance(self, attempt: _Attempt, output: _Output, now: float) -> None:
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

    def _publish_chunk(self, attempt: _Attempt, output: _Output, now: float) -> None:
        if not output.end and not any(output.text):
            return  # tokens without visible text wait for the next text
        chunk = Chunk(
            attempt=attempt.key[3],
            text="".join(output.text),
            tokens=tuple(output.tokens),
            last=output.end is not None,
            finish=output.end.finish if output.end else FinishReason.STOP,
            at=output.chain.characters,
            chain=output.chain.digest,
        )
        output.text, output.tokens = [], []
        output.in_flight, output.not_before = chunk, now + COALESCE
        self._out.append(PutChunk(attempt.key, output.variable, output.next, chunk))

    def _publish_value(self, attempt: _Attempt, output: _Output) -> None:
        assert output.end is not None
        text, data = "".join(output.stored_text + output.text), output.end.json
        if output.transforms:
            try:
                text, data = apply(output.transforms, text)
            except TransformFailed as error:
                message = f"output {output.variable!r}: {error}"
                self._fail(attempt.key, Failure(code=ErrorCode.TRANSFORM_FAILED, message=message))
                return
        if not is_plain(data):
            message = f"output {output.variable!r}: its parsed form is not JSON data, or nested too deep"
            self._fail(attempt.key, Failure(code=ErrorCode.ENGINE_ERROR, message=message))
            return
        output.publishing = True
        value = Value(
            text=text,
            json=data,
            tokens=() if output.transforms else tuple(output.stored_tokens + output.tokens),
            tokenizer=output.end.tokenizer,
            finish=output.end.finish,
            usage=output.end.usage,
            logprobs=tuple(output.logprobs),
            model=output.end.model,
            attempt=attempt.key[3],
            call=attempt.key[2],
            timing=self._timing(attempt, output),
        )
        self._out.append(PutValue(attempt.key, output.variable, value))
        return

    def _timing(self, attempt: _Attempt, output: _Output) -> Timing | None:
        """When it was made, by this core's clock; None if an earlier attempt made all of it."""
        if attempt.begun_at is None or output.ended_at is None:
            return None
        first = output.ended_at if output.first_at is None else output.first_at
        return Timing(
            worker=self.worker, received=attempt.received, began=attempt.begun_at, first=first, ended=output.ended_at
        )

    def _stored(self, event: Stored) -> None:
        attempt = self._find(event.key)
        if attempt is None:
            return
        output = attempt.outputs[event.variable]
        if event.n is None:
            output.done = True
        elif output.in_flight is not None and event.n == output.next:
            chunk, output.in_flight = output.in_flight, None
            output.store(chunk)
            output.streamed = chunk.last
            output.next += 1
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

    # --- end ---

    def _settle(self, attempt: _Attempt) -> None:
        if all(o.done for o in attempt.outputs.values()) and self._attempts.get(attempt.key[:3]) is attempt:
            self._drop(attempt)
            self._tell(attempt.key, EventKind.FINISHED, usage=attempt.usage)

    def _fail(self, key: RunKey, failure: Failure, *, final: bool = False) -> None:
        attempt = self._find(key)
        if attempt is not None:
            self._drop(attempt)
            self._tell(key, EventKind.FAILED, shortened(failure), final=final or bool(self._seen(attempt)))

    def _seen(self, attempt: _Attempt) -> str:
        """The outputs that readers have seen a part of, where another attempt could not go on from there."""
        if self.resumable:
            return ""
        return ", ".join(o.variable for o in attempt.outputs.values() if o.begun and o.end is None and not o.done)

    def _find(self, key: RunKey) -> _Attempt | None:
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
            assert any(not o.done for o in attempt.outputs.values()), f"{key} is done and still held"
            for output in attempt.outputs.values():
                assert not (output.in_flight and output.publishing), f"{output.variable}: a chunk beside the value"
                assert output.live or output.next == 0, f"{output.variable} is buffered, but has chunks"


def _outputs(call: Call) -> Iterable[_Output]:
    match call:
        case ModelCall():
            groups = [s for m in call.messages for s in m.segments if isinstance(s, Output)]
            for group in groups:
                live = group.stream is StreamMode.LIVE and not group.transforms
                yield from (_Output(VarId(v), live, group.transforms) for v in group.variables)
        case NativeCall():
            live = call.stream is StreamMode.LIVE and not call.transforms
            yield _Output(VarId(call.variable), live, call.transforms)


def _resumed(output: _Output) -> Resumed | None:
    if not output.stored_text and output.end is None:
        return None
    return Resumed("".join(output.stored_text), tuple(output.stored_tokens), output.end is not None)


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        output_tokens=a.output_tokens + b.output_tokens,
    )
