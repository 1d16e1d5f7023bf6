"""A worker's backend that is an engine in a process of its own, spoken to in frames over a socket pair.

The host's event loop never waits for the model: it writes commands and reads reports, and the heartbeat goes on meanwhile. The
engine process ends when the host's end of the socket closes, however that comes about. One that hangs is killed (see `pulse`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_never

import structlog
from msgspec import structs

from myna.actors import config
from myna.actors.config import Settings
from myna.actors.engine_host.insight import insight_of
from myna.actors.engine_host.pulse import READ_EVERY, Pulse, processor_seconds
from myna.actors.messages import (
    Call,
    CallId,
    ErrorCode,
    Failure,
    FinishReason,
    Input,
    Message,
    ModelCall,
    Output,
    SessionId,
    Text,
    TokenLogprob,
    Tool,
    Usage,
    VarId,
    WorkerKind,
)
from myna.actors.program import outputs_of
from myna.actors.worker.backend import (
    Backend,
    BackendDied,
    BackendRefused,
    Hold,
    Insight,
    Job,
    JobEnded,
    JobFailed,
    Offer,
    OutputEnded,
    Produced,
    Reporter,
    RunKey,
)
from myna.engine import frames
from myna.engine.request import FinishReason as EngineReason

log = structlog.get_logger(__name__)

DEFAULT_MODEL = "smollm2-135m-instruct"
STOP_SECONDS = 5.0
"""How long the engine process gets to end by itself."""
READ_BYTES = 2**16

_CODES = {
    "PromptTooLong": ErrorCode.PROMPT_TOO_LONG,
    "InvalidSampling": ErrorCode.INVALID_SAMPLING,
    "InvalidPrompt": ErrorCode.INVALID_CALL,
    "InvalidConstraint": ErrorCode.INVALID_FORMAT,
    "ConstraintFailed": ErrorCode.INVALID_FORMAT,
}


@dataclass(slots=True)
class _Running:
    """`places`: of each variable, the output that it is one of. `truncated`: why it can't end well, once that is known."""

    key: RunKey
    variables: tuple[VarId, ...]
    places: tuple[Output, ...]
    truncated: str = ""


class EngineBackend(Backend):
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[frames.Ready]
        self._running: dict[str, _Running] = {}
        self._load: dict[str, float] = {}
        self._insight = Insight()
        self._pulse = Pulse()
        self._hung = ""
        self._unsaid: list[bytes] = []
        self._report: Reporter
        self._hello: frames.Ready

    async def start(self, report: Reporter) -> Offer:
        """Start the engine process and wait until its model is loaded."""
        self._report = report
        self._ready = asyncio.get_running_loop().create_future()
        host, engine = socket.socketpair()
        with engine:
            self._process = await asyncio.create_subprocess_exec(
                *self._command_line(engine.fileno()),
                pass_fds=(engine.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=config.engine_environment(),
            )
        reader, self._writer = await asyncio.open_connection(sock=host)
        self._reading = asyncio.create_task(self._read(reader), name="engine reports")
        await asyncio.wait((self._ready, self._reading), return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            await self._reading
            raise BackendDied("the engine process ended while it loaded its model; its log says why")
        self._hello = self._ready.result()
        return Offer(
            WorkerKind.ENGINE,
            (self._hello.model, *self._settings.engine.aliases),
            capacity=self._hello.max_sequences,
            tokens=self._hello.kv_tokens,
            context_length=self._hello.context_length,
            resumable=True,
            tokenizer=self._hello.tokenizer_digest,
        )

    def _command_line(self, fd: int) -> list[str]:
        engine = self._settings.engine
        options: dict[str, Any] = {
            "--fd": fd,
            "--model": engine.model or DEFAULT_MODEL,
            "--cache-dir": self._settings.cache,
            "--device": engine.device,
            "--dtype": engine.dtype,
            "--kv-bytes": engine.kv_memory,
            "--max-sequences": engine.max_sequences,
        }
        given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
        return [sys.executable, "-P", "-m", "myna.engine.process", *given]

    @property
    def pid(self) -> int:
        """The engine process's id. Raises `BackendDied` when there is none."""
        if self._process is None:
            raise BackendDied("the engine process is not running")
        return self._process.pid

    def run(self, job: Job) -> None:
        """Submit an attempt to the engine."""
        request_id = ".".join(map(str, job.key))
        try:
            frame = frames.encode(_submit(request_id, job, self._hello.tokenizer_digest))
        except frames.FrameError as error:
            self._report(JobFailed(job.key, Failure(code=ErrorCode.INVALID_CALL, message=str(error))))
            return
        self._running[request_id] = _Running(job.key, outputs_of(job.call), tuple(_places(job.call)))
        self._write(frame)

    def cancel(self, key: RunKey) -> None:
        """Take an attempt from the engine."""
        request_id = ".".join(map(str, key))
        if self._running.pop(request_id, None) is not None:
            self._write(frames.encode(frames.Cancel(request_id)))

    def retain(self, hold: Hold) -> None:
        """Have the engine compute and keep a prompt. One that it can't render is not kept."""
        try:
            tokenizer, inputs = self._hello.tokenizer_digest, dict(hold.inputs)
            if hold.made_here is not None:
                inputs[hold.made_here] = structs.replace(inputs[hold.made_here], tokenizer=tokenizer)
            job = Job((hold.tenant, SessionId(""), CallId(hold.call.id), 0), hold.call, inputs)
            call = _call_frame(hold.call, job, tokenizer)
            frame = frames.encode(
                frames.Retain(_kept(hold.id), call, namespace=hold.cache or hold.tenant, distance=hold.distance)
            )
        except frames.FrameError as error:
            log.debug("a prompt can't be kept", call=hold.call.id, reason=str(error))
            return
        self._write(frame)

    def release(self, hold: str) -> None:
        """Have the engine keep a prompt no longer."""
        self._write(frames.encode(frames.Unpin(_kept(hold))))

    def load(self) -> dict[str, float]:
        """The figures that the engine told last."""
        return self._load

    def look(self) -> Insight:
        """What the engine showed last; asks it to show itself again, for the next look."""
        insight, self._insight = self._insight, Insight(self._insight.progress, (), self._insight.prefixes)
        self._write(frames.encode(frames.Look()))
        return insight

    async def wait(self) -> None:
        """Until the engine process ends, or hangs. Raises `BackendDied` with the reason."""
        assert self._reading is not None
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait((self._reading, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
        if self._reading.done():
            await self._reading
        raise BackendDied(self._hung or "the engine process has ended; its log says why")

    async def _watch(self) -> None:
        """Ask the engine how it fares, again and again, until it hangs."""
        loop = asyncio.get_running_loop()
        while not self._hung:
            self._pulse.owes(loop.time())
            self._write(frames.encode(frames.Query()))
            await asyncio.sleep(READ_EVERY)
            used = processor_seconds(self.pid)
            if used is not None:
                self._hung = self._pulse.read(loop.time(), used) or ""

    async def close(self) -> None:
        """End the engine process: ask it, then make it."""
        if self._hung and self._process is not None:
            self._process.kill()
        if self._writer is not None:
            self._write(frames.encode(frames.Stop()))
            self._say()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None
        if self._process is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            self._process = None
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
            if not self._reading.cancelled():
                self._reading.exception()  # already told by `start` or `wait`

    def _write(self, frame: bytes) -> None:
        """What is said in one turn of the event loop is said at once: calls that begin together are to be in one step."""
        if not self._unsaid:
            asyncio.get_running_loop().call_soon(self._say)
        self._unsaid.append(frame)

    def _say(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(b"".join(unsaid))

    # --- reports ---

    async def _read(self, reader: asyncio.StreamReader) -> None:
        buffer = frames.FrameBuffer()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                for body in buffer.feed(data):
                    self._hear(frames.decode_report(body))

    def _hear(self, report: frames.Report) -> None:
        match report:
            case frames.Ready():
                self._ready.set_result(report)
            case frames.DeltaReport():
                self._delta(report)
            case frames.FinishedReport():
                self._finished(report)
            case frames.DoneReport(request_id=request_id):
                running = self._running.pop(request_id, None)
                if running is not None:
                    self._report(_truncated(running) if running.truncated else JobEnded(running.key))
            case frames.FailedReport():
                self._request_failed(report)
            case frames.StatsReport(stats=stats):
                self._pulse.answered()
                self._load = {name: float(getattr(stats, name)) for name in _FIGURES}
            case frames.SurveyReport(survey=survey):
                keys = {id_: running.key for id_, running in self._running.items()}
                self._insight = insight_of(survey, keys, time.time())
            case frames.Rejected(reason=reason):
                log.error("the engine did not understand a frame", reason=reason)
            case frames.Stopped():
                pass
            case _:
                assert_never(report)

    def _delta(self, report: frames.DeltaReport) -> None:
        running = self._running.get(report.request_id)
        if running is not None:
            logprobs = tuple(
                TokenLogprob(
                    token=p.token_id,
                    logprob=p.logprob,
                    top=p.alternatives,
                    text=p.text,
                    top_texts=p.alternative_texts,
                )
                for p in report.logprobs
            )
            variable = running.variables[report.output]
            self._report(Produced(running.key, variable, report.text, report.token_ids, logprobs))

    def _finished(self, report: frames.FinishedReport) -> None:
        running = self._running.get(report.request_id)
        if (
            running is not None
            and report.reason is EngineReason.TRUNCATED
            and not running.places[report.output].partial
        ):
            self._cut(report, running)
        elif running is not None:
            usage = Usage(
                prompt_tokens=report.usage.prompt_tokens,
                cached_tokens=report.usage.cached_tokens,
                output_tokens=report.usage.output_tokens,
            )
            self._report(
                OutputEnded(
                    running.key,
                    running.variables[report.output],
                    _REASONS[report.reason],
                    usage,
                    model=self._hello.model,
                    tokenizer=self._hello.tokenizer_digest,
                )
            )

    def _cut(self, report: frames.FinishedReport, running: _Running) -> None:
        """An output was cut before it had its format. Its siblings go on; what would follow it in its context does not."""
        place = running.places[report.output]
        running.truncated = (
            f"output {place.name or running.variables[report.output]!r} was cut after {report.usage.output_tokens} tokens, "
            "before it had its format: allow it more (max_tokens), or ask for less"
        )
        if len(place.variables) == 1:
            self._report(_truncated(running))
            self.cancel(running.key)

    def _request_failed(self, report: frames.FailedReport) -> None:
        if not report.request_id:  # the model could not be loaded
            self._ready.set_exception(BackendRefused(report.message))
            return
        running = self._running.pop(report.request_id, None)
        if running is not None:
            code = _CODES.get(report.error, ErrorCode.ENGINE_ERROR)
            failure = Failure(code=code, message=report.message, retryable=code is ErrorCode.ENGINE_ERROR)
            self._report(JobFailed(running.key, failure))


_REASONS = {
    EngineReason.STOP: FinishReason.STOP,
    EngineReason.LENGTH: FinishReason.LENGTH,
    EngineReason.TRUNCATED: FinishReason.LENGTH,
}


def _truncated(running: _Running) -> JobFailed:
    return JobFailed(running.key, Failure(code=ErrorCode.TRUNCATED, message=running.truncated))


def _places(call: Call) -> Iterator[Output]:
    """Of each variable that a call makes, the place where it is generated."""
    if isinstance(call, ModelCall):
        for message in call.messages:
            for segment in message.segments:
                if isinstance(segment, Output):
                    yield from (segment for _ in segment.variables)


def _kept(hold: str) -> str:
    """The engine's name of a retained prompt: no attempt has one of its form."""
    return f"kept:{hold}"


_FIGURES = (
    *("running", "waiting", "pages", "free_pages", "evictable_pages", "hit_tokens", "evicted_tokens", "preemptions"),
    *("steps", "step_seconds", "computed_tokens", "drawn_tokens"),
)


def _submit(request_id: str, job: Job, tokenizer: str) -> frames.Submit:
    """The engine's frame of a job."""
    assert isinstance(job.call, ModelCall)
    tenant, session, call_id, _ = job.key
    namespace, cache_prefix = job.cache or str(tenant), job.call.cache_prefix
    # A resumed attempt must draw what the first would have drawn: the seed is the call's, not the attempt's.
    seed = int.from_bytes(hashlib.blake2b(f"{session}.{call_id}".encode(), digest_size=7).digest())
    return frames.Submit(
        request_id=request_id,
        call=_call_frame(job.call, job, tokenizer),
        priority=job.call.priority,
        namespace=namespace,
        cache_prefix=cache_prefix,
        seed=seed,
        order=job.order,
    )


def _call_frame(call: ModelCall, job: Job, tokenizer: str) -> frames.CallFrame:
    """`tokenizer`: the digest of the engine's own, which says whether it can use the token ids of a value."""
    index = 0
    messages: list[frames.CallMessage] = []
    for message in call.messages:
        segments: list[frames.TextSegment | frames.OutputSegment | frames.TokensSegment] = []
        for segment in message.segments:
            match segment:
                case Text(text=text):
                    segments.append(frames.TextSegment(text))
                case Input(variables=(variable,)):
                    value = job.inputs[VarId(variable)]
                    drawn = value.tokens if value.tokenizer == tokenizer else ()
                    segments.append(frames.TextSegment(value.text, drawn))
                case Input(variables=variables, joiner=joiner):
                    segments.append(frames.TextSegment(joiner.join(job.inputs[VarId(v)].text for v in variables)))
                case Output():
                    segments.append(_output_segment(segment, index, job, tokenizer))
                    index += len(segment.variables)
                case _:
                    assert_never(segment)
        messages.append(frames.CallMessage(message.role, tuple(segments), _fields(message)))
    return frames.CallFrame(
        tuple(messages),
        tuple(map(_tool, call.tools)),
        tool_choice=call.tool_choice,
        parallel_tool_calls=call.parallel_tool_calls,
    )


def _tool(tool: Tool) -> dict[str, Any]:
    """As chat templates know it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters or {}}
    return {"type": "function", "function": function | ({"strict": True} if tool.strict else {})}


def _fields(message: Message) -> dict[str, Any]:
    """What a chat template knows of a message beside role and text."""
    known = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": message.tool_calls}
    return {name: value for name, value in known.items() if value is not None}


def _output_segment(
    output: Output, index: int, job: Job, tokenizer: str
) -> frames.OutputSegment | frames.TextSegment | frames.TokensSegment:
    earlier = [job.resumed.get(VarId(v)) for v in output.variables]
    if len(earlier) == 1 and (ended := earlier[0]) is not None and ended.ended:
        if ended.tokens and ended.tokenizer in ("", tokenizer):
            return frames.TokensSegment(ended.tokens)
        return frames.TextSegment(ended.text)  # made elsewhere, by other tokens or none
    forced = tuple(r.tokens if r else () for r in earlier) if any(earlier) else ()
    sampling = output.sampling
    return frames.OutputSegment(
        index,
        frames.Sampling(
            **{f: getattr(sampling, f) for f in sampling.__struct_fields__},
            n=len(output.variables),
        ),
        forced,
        frames.Format(output.format.kind, output.format.definition) if output.format is not None else None,
    )
