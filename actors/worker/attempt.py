"""One attempt of one call: what has been made of each of its outputs, and how much of that is stored.

Law: state, and what follows from it alone. When something is published, and what becomes of the attempt, the core decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from msgspec.structs import replace

from myna.actors.messages import (
    Call,
    CallId,
    CallSight,
    Chunk,
    ErrorCode,
    Failure,
    FinishReason,
    ModelCall,
    NativeCall,
    Outcome,
    Output,
    Phase,
    Run,
    SessionId,
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
from myna.actors.outcomes import Chain
from myna.actors.plain import is_plain
from myna.actors.worker.backend import OutputEnded, Produced, Resumed, RunKey
from myna.actors.worker.transforms import TransformFailed, apply

CHUNK_BYTES, TOKEN_BYTES = 280, 3
"""Bytes in the stream of a chunk beside its text and tokens (subject, message id, envelope), and of a token's id."""


@dataclass(slots=True, eq=False)
class Making:
    """One output of an attempt. `text` and `tokens` are made and not yet in a chunk; `next` is the chunk to be claimed."""

    variable: VarId
    live: bool
    transforms: tuple[Transform, ...]
    stored_text: list[str] = field(default_factory=list)
    stored_tokens: list[int] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)
    """Of the stored text."""
    tokenizer: str = ""
    """Of the stored tokens, where that is known."""
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

    @property
    def made(self) -> int:
        """Tokens that there are of it."""
        return len(self.stored_tokens) + len(self.tokens) + (len(self.in_flight.tokens) if self.in_flight else 0)

    @property
    def whole(self) -> tuple[str, tuple[int, ...]]:
        """Its text and its tokens, stored or not."""
        text, tokens = [*self.stored_text], [*self.stored_tokens]
        if self.in_flight is not None:
            text.append(self.in_flight.text)
            tokens += self.in_flight.tokens
        return "".join([*text, *self.text]), (*tokens, *self.tokens)

    @property
    def streamed_bytes(self) -> int:
        """What its chunks take in their stream, about."""
        if not self.next:
            return 0
        text = sum(len(piece.encode("utf-8", "surrogatepass")) for piece in self.stored_text)
        return CHUNK_BYTES * self.next + TOKEN_BYTES * len(self.stored_tokens) + text

    @property
    def resumed(self) -> Resumed | None:
        """What a backend has to go on from, if there is anything."""
        if not self.stored_text and self.end is None:
            return None
        return Resumed("".join(self.stored_text), tuple(self.stored_tokens), self.end is not None, self.tokenizer)

    def may_be_continued(self, tokenizer: str) -> bool:
        """Whether who knows tokens by this tokenizer can go on from what is stored."""
        return not self.next or (bool(self.stored_tokens) and self.tokenizer in ("", tokenizer))

    # --- what earlier attempts have left ---

    def resume(self, key: RunKey, chunks: Iterable[Chunk]) -> None:
        """Take over what is published: the next chunk to claim is the first that is not there."""
        for chunk in chunks:
            self.torn |= chunk.at is not None and (chunk.at, chunk.chain) != self.chain.state
            self._store(chunk)
            if chunk.last:
                self.end = OutputEnded(key, self.variable, chunk.finish)

    def ended_in(self, key: RunKey, outcome: Outcome) -> None:
        """It has its outcome: nothing is to be published, but a later output may need its text in the context."""
        self.done = self.streamed = True
        if isinstance(outcome, Value):
            self.stored_text, self.stored_tokens = [outcome.text], list(outcome.tokens)
            self.tokenizer = outcome.tokenizer
            self.end = self.end or OutputEnded(key, self.variable, outcome.finish)

    # --- what this one makes ---

    def produced(self, report: Produced, now: float) -> None:
        """The backend has made more of it."""
        self.first_at = self.first_at or now
        self.text.append(report.text)
        self.tokens += report.tokens
        self.logprobs += report.logprobs

    def cut(self, attempt: int, tokenizer: str) -> Chunk | None:
        """All that is not in a chunk yet, as the next one. Tokens without visible text wait for the next text, or the end."""
        if not self.end and not any(self.text):
            return None
        self.in_flight = Chunk(
            attempt=attempt,
            text="".join(self.text),
            tokens=tuple(self.tokens),
            last=self.end is not None,
            finish=self.end.finish if self.end else FinishReason.STOP,
            at=self.chain.characters,
            chain=self.chain.digest,
            tokenizer=tokenizer if not self.next else "",
        )
        self.text, self.tokens = [], []
        return self.in_flight

    def acknowledged(self) -> None:
        """The chunk in flight is stored."""
        chunk, self.in_flight = self.in_flight, None
        assert chunk is not None
        self._store(chunk)

    def _store(self, chunk: Chunk) -> None:
        if not self.next:
            self.tokenizer = chunk.tokenizer
        self.next += 1
        self.stored_text.append(chunk.text)
        self.stored_tokens += chunk.tokens
        self.chain.add(chunk.text)
        self.streamed = chunk.last


@dataclass(slots=True, eq=False)
class Attempt:
    """See the module. `begun_at`: when the backend got it; None while it has not, or has it no more. `job`: by which name."""

    key: RunKey
    run: Run
    outputs: dict[VarId, Making]
    received: float
    job: RunKey
    begun_at: float | None = None
    usage: Usage = Usage()

    @classmethod
    def of(cls, run: Run, now: float) -> Self:
        """A new one."""
        key = key_of(run)
        return cls(key, run, {m.variable: m for m in _makings(run.call)}, now, key)

    @property
    def unmade(self) -> list[VarId]:
        """The outputs that the backend has still to end."""
        return [o.variable for o in self.outputs.values() if o.end is None and not o.done]

    @property
    def torn(self) -> list[VarId]:
        """The outputs whose chunks do not belong together."""
        return [o.variable for o in self.outputs.values() if o.torn and not o.done]

    @property
    def seen(self) -> list[VarId]:
        """The outputs of which readers have seen a part, and not all."""
        return [o.variable for o in self.outputs.values() if o.begun and o.end is None and not o.done]

    @property
    def done(self) -> bool:
        """Whether every output has its outcome."""
        return all(o.done for o in self.outputs.values())

    def value(self, output: Making, worker: WorkerId) -> Value | Failure:
        """An output's value; or why it can have none."""
        assert output.end is not None
        (text, tokens), data = output.whole, output.end.json
        if output.transforms:
            try:
                text, data = apply(output.transforms, text)
            except TransformFailed as error:
                return Failure(code=ErrorCode.TRANSFORM_FAILED, message=f"output {output.variable!r}: {error}")
        if not is_plain(data):
            message = f"output {output.variable!r}: its parsed form is not JSON data, or nested too deep"
            return Failure(code=ErrorCode.ENGINE_ERROR, message=message)
        return Value(
            text=text,
            json=data,
            tokens=() if output.transforms else tokens,
            tokenizer=output.end.tokenizer,
            finish=output.end.finish,
            usage=output.end.usage,
            logprobs=tuple(output.logprobs),
            model=output.end.model,
            attempt=self.key[3],
            call=self.key[2],
            timing=self._timing(output, worker),
        )

    def copy_of(self, value: Value) -> Value:
        """What an identical call has made, as this call's. Nothing was computed for it."""
        return replace(value, attempt=self.key[3], call=self.key[2], usage=Usage(), timing=None)

    def _timing(self, output: Making, worker: WorkerId) -> Timing | None:
        """When it was made, by the core's clock; None if an earlier attempt made all of it."""
        if self.begun_at is None or output.ended_at is None:
            return None
        first = output.ended_at if output.first_at is None else output.first_at
        return Timing(worker=worker, received=self.received, began=self.begun_at, first=first, ended=output.ended_at)

    def sight(self) -> CallSight:
        """It, for people who look; times are by the core's clock."""
        return CallSight(
            tenant=self.key[0],
            session=self.key[1],
            call=self.key[2],
            attempt=self.key[3],
            function=self.run.call.function[:80],
            phase=self._phase,
            since=self.received,
            produced=sum(o.made for o in self.outputs.values()),
            first=min((o.first_at for o in self.outputs.values() if o.first_at is not None), default=None),
        )

    @property
    def _phase(self) -> Phase:
        if not self.unmade:
            return Phase.STORING
        if self.begun_at is None:
            return Phase.READING
        return Phase.DECODE if any(o.first_at is not None for o in self.outputs.values()) else Phase.QUEUED


def key_of(run: Run) -> RunKey:
    """Which attempt an order is about."""
    return Tenant(run.tenant), SessionId(run.session), CallId(run.call.id), run.attempt


def _makings(call: Call) -> Iterable[Making]:
    match call:
        case ModelCall():
            groups = [s for m in call.messages for s in m.segments if isinstance(s, Output)]
            for group in groups:
                live = group.stream is StreamMode.LIVE and not group.transforms
                yield from (Making(VarId(v), live, group.transforms) for v in group.variables)
        case NativeCall():
            live = call.stream is StreamMode.LIVE and not call.transforms
            yield Making(VarId(call.variable), live, call.transforms)
