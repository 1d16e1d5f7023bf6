"""The engine as a process of its own: frames in, frames out, a step in between. It never outlives its host.

`python -m myna.engine.process --fd N` talks over the connected stream socket N. It blocks only while there is nothing to
do, stops stepping while its host doesn't read, and exits when the host closes the socket, says stop, or has read nothing
for too long. Rendering prompts holds a step up for a moment at most; what is kept for nobody is rendered while one is under way.
"""

from __future__ import annotations

import argparse
import gc
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, assert_never

import structlog

from myna.engine import frames
from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import EngineError, InvalidConstraint, RequestError
from myna.engine.inbox import Inbox
from myna.engine.interface import ModelRunner
from myna.engine.prompt import Call, Message, Placeholder, Segment, Text, Tokens, render
from myna.engine.request import Delta, Done, Event, Failed, Fill, Finished, Request, RequestId, TokenLogprob
from myna.engine.sampling import SamplingParams
from myna.engine.structured.constraint import constraint_of
from myna.engine.tokens import PromptTokenizer

_READ_BYTES = 2**18
# Unread reports beyond which the engine waits for its host rather than pile up more.
_BACKLOG_BYTES = 2**22
_HEARING = 0.005
"""Seconds of rendering, begun, after which a step comes first: about what a GPU takes to decode."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`stall_seconds`: how long the host may leave a full backlog unread before the process gives up."""

    stall_seconds: float = 60.0
    backlog_bytes: int = _BACKLOG_BYTES


class EngineServer:
    """Serves one engine over one connected stream socket, in the calling thread."""

    def __init__(
        self, engine: Engine, tokenizer: PromptTokenizer, channel: socket.socket, config: ServeConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._tokenizer = tokenizer
        self._channel = channel
        self._config = config or ServeConfig()
        self._clock = clock
        self._buffer = frames.FrameBuffer()
        self._inbox = Inbox()
        self._outbox = bytearray()
        self._open = True
        self._draining = False
        self._log = structlog.get_logger("myna.engine").bind(model=engine.spec.name)

    def serve(self) -> None:
        """Answer until the host goes away or says stop."""
        self._channel.setblocking(False)
        self._report(self._ready())
        progress = self._clock()
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            while self._open:
                congested = len(self._outbox) > self._config.backlog_bytes
                works = self._works and not congested
                interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
                selector.modify(self._channel, interest)
                ready = selector.select(self._pause if works else self._config.stall_seconds if congested else None)
                if any(mask & selectors.EVENT_READ for _, mask in ready):
                    self._read()
                if self._flush() or not congested:
                    progress = self._clock()
                elif self._clock() - progress >= self._config.stall_seconds:
                    self._log.error("host reads nothing", backlog=len(self._outbox))
                    return
                if self._works and not congested and self._open:
                    self._work()
                if self._draining and not self._works and not self._outbox:
                    self._open = False
        self._say_goodbye()

    @property
    def _works(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._inbox) or self._engine.has_work

    @property
    def _pause(self) -> float:
        """Seconds for which there is nothing to do, unless the host says something."""
        return 0.0 if self._inbox else self._engine.rest

    def _work(self) -> None:
        """Hear those who wait, do a step, and hear what to keep: on a GPU the next step has begun when `step` returns."""
        enough = self._clock() + _HEARING
        for command in self._inbox.awaited():
            self._hear(command)
            if self._clock() >= enough:
                break
        for event in self._engine.step():
            self._report(_report_of(self._spelled(event)))
        for command in self._inbox.keeping():
            self._hear(command)

    def _ready(self) -> frames.Ready:
        engine = self._engine
        return frames.Ready(
            model=engine.spec.name,
            dtype=engine.spec.dtype,
            device=engine.spec.device,
            tokenizer_digest=self._tokenizer.digest,
            vocab_size=engine.spec.vocab_size,
            context_length=engine.capacity,
            max_sequences=engine.limits.max_sequences,
            kv_tokens=engine.pool.pages * engine.pool.page_size,
            page_size=engine.pool.page_size,
        )

    def _report(self, report: frames.Report) -> None:
        self._outbox += frames.encode(report)

    def _read(self) -> None:
        try:
            data = self._channel.recv(_READ_BYTES)
            bodies = self._buffer.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, frames.FrameError) as error:
            self._log.error("host can't be understood", error=str(error))
            self._open = False
            return
        if not data:
            self._open = False
        for body in bodies:
            self._take(body)

    def _take(self, body: bytes) -> None:
        try:
            command = frames.decode_command(body)
        except frames.FrameError as error:
            self._log.warning("frame rejected", error=str(error))
            self._report(frames.Rejected(str(error)))
            return
        if command == frames.Stop():
            self._open = False  # whatever came before
        self._inbox.add(command)

    def _hear(self, command: frames.Command) -> None:
        match command:
            case frames.Submit() | frames.Retain():
                self._begin(command)
            case frames.Cancel(request_id=request_id):
                self._engine.cancel(RequestId(request_id))
            case frames.Unpin(request_id=request_id):
                self._engine.unpin(RequestId(request_id))
            case frames.Query():
                self._report(frames.StatsReport(self._engine.stats()))
            case frames.Look():
                self._report(frames.SurveyReport(self._engine.survey()))
            case frames.Stop():
                self._draining = True
            case _:
                assert_never(command)

    def _begin(self, command: frames.Submit | frames.Retain) -> None:
        """Render and submit. Whatever is wrong with the call fails the call alone."""
        request_id = RequestId(command.request_id)
        if self._engine.knows(request_id):  # `failed` would end the request that is under way
            self._report(frames.Rejected(f"request {request_id!r} is already under way"))
            return
        try:
            if self._draining:
                raise RequestError("the engine is stopping")
            if isinstance(command, frames.Retain):
                self._retain(command)
            else:
                call = _call(command.call, command.seed)
                steps = render(call, self._tokenizer)
                namespace, cached = command.namespace, command.cache_prefix
                self._engine.submit(
                    Request(request_id, steps, command.priority, namespace, cached, order=command.order)
                )
        except RequestError as error:
            self._report(frames.FailedReport(request_id, type(error).__name__, str(error)))
        except Exception as error:  # a defect of ours, but one call's
            self._log.exception("call not understood", request=request_id)
            self._report(frames.FailedReport(request_id, type(error).__name__, str(error)))

    def _retain(self, command: frames.Retain) -> None:
        steps = render(_call(command.call, None), self._tokenizer, prefix=True)
        tokens = [token for step in steps if isinstance(step, Fill) for token in step.token_ids]
        self._engine.retain(RequestId(command.request_id), tokens, command.namespace, distance=command.distance)

    def _spelled(self, event: Event) -> Event:
        """The same, with the texts of the tokens whose log-probabilities were asked for."""
        if not isinstance(event, Delta) or not event.logprobs:
            return event
        return replace(event, logprobs=tuple(self._spell(logprob) for logprob in event.logprobs))

    def _spell(self, logprob: TokenLogprob) -> TokenLogprob:
        spell = self._tokenizer.spell
        others = tuple(spell(token) for token, _ in logprob.alternatives)
        return replace(logprob, text=spell(logprob.token_id), alternative_texts=others)

    def _flush(self) -> bool:
        """Send what the host takes now; whether it took anything."""
        if not self._outbox:
            return False
        try:
            sent = self._channel.send(self._outbox)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._open = False
            return False
        del self._outbox[:sent]
        return sent > 0

    def _say_goodbye(self) -> None:
        """Send the last frames to a host that still reads, and wait no longer than a moment for it."""
        self._report(frames.Stopped())
        self._channel.settimeout(1.0)
        try:
            self._channel.sendall(self._outbox)
        except OSError:
            self._log.info("host is gone")


def _call(call: frames.CallFrame, seed: int | None) -> Call:
    """The call that a frame holds. Raises InvalidSampling and InvalidConstraint."""
    messages = tuple(
        Message(message.role, tuple(_segment(segment, seed) for segment in message.segments), message.fields)
        for message in call.messages
    )
    return Call(messages, call.tools, call.template_arguments, call.tool_choice, call.parallel_tool_calls)


def _segment(segment: frames.TextSegment | frames.OutputSegment | frames.TokensSegment, seed: int | None) -> Segment:
    if isinstance(segment, frames.TextSegment):
        return Text(segment.text, segment.token_ids)
    if isinstance(segment, frames.TokensSegment):
        return Tokens(segment.token_ids)
    sampling = sampling_of(segment.sampling)
    if sampling.seed is None and seed is not None:
        sampling = replace(sampling, seed=seed)
    if segment.format is not None:
        sampling = replace(sampling, constraint=constraint_of(segment.format.kind, segment.format.definition))
    return Placeholder(segment.index, sampling, segment.forced_token_ids)


def sampling_of(sampling: frames.Sampling) -> SamplingParams:
    """Checked sampling parameters from a frame's. Raises InvalidSampling."""
    return SamplingParams(**{name: getattr(sampling, name) for name in sampling.__struct_fields__})


def _report_of(event: Event) -> frames.Report:
    match event:
        case Delta(request_id, output, text, token_ids, logprobs):
            return frames.DeltaReport(request_id, output, text, token_ids, logprobs)
        case Finished(request_id, output, reason, usage):
            return frames.FinishedReport(request_id, output, reason, usage)
        case Done(request_id):
            return frames.DoneReport(request_id)
        case Failed(request_id, error):
            return frames.FailedReport(request_id, type(error).__name__, str(error))
        case _:
            assert_never(event)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model that the command line names and serve it. Returns the exit status."""
    options = _parser().parse_args(arguments)
    # A terminal's Ctrl-C reaches the whole group; the host decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _configure_logging(human=sys.stderr.isatty())
    log = structlog.get_logger("myna.engine").bind(model=options.model)
    with socket.socket(fileno=options.fd) as channel, ExitStack() as held:
        try:
            engine, tokenizer = _load(options, held)
        except EngineError as error:
            log.error("model refused", error=str(error))
            channel.sendall(frames.encode(frames.FailedReport("", type(error).__name__, str(error))))
            return 1
        try:
            engine.prepare_constraints()
        except InvalidConstraint as error:
            log.warning("outputs can have no format", reason=str(error))
        # What is loaded stays: collections of garbage look at what comes and goes, and don't hold a step up.
        gc.collect()
        gc.freeze()
        log.info("engine ready", kv_tokens=engine.pool.pages * engine.pool.page_size, context_length=engine.capacity)
        EngineServer(engine, tokenizer, channel).serve()
    log.info("engine stopped")
    return 0


def _load(options: argparse.Namespace, held: ExitStack) -> tuple[Engine, PromptTokenizer]:
    """The engine that the command line asks for; what it needs as long as it lives is entered into `held`."""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, tokenizer = _load_model(options, held)
    limits = model.suits.limits
    if options.max_sequences is not None:
        limits = replace(limits, max_sequences=options.max_sequences)
    if options.step_tokens is not None:
        limits = replace(limits, step_tokens=options.step_tokens, mixed_tokens=None)
    if options.ahead_tokens is not None:
        limits = replace(limits, ahead_tokens=options.ahead_tokens)
    config = EngineConfig(options.page_size, options.kv_tokens, options.kv_bytes, limits)
    return Engine(model, tokenizer, config), PromptTokenizer(tokenizer)


def _load_model(options: argparse.Namespace, held: ExitStack) -> tuple[ModelRunner, Any]:
    from myna.engine.loading import load

    devices = options.device.split(",")
    if len(devices) == 1:
        loaded = load(options.model, device=options.device, dtype=options.dtype, cache_dir=options.cache_dir)
        return loaded.model, loaded.tokenizer
    from myna.engine.parallel.leader import load_divided

    divided = load_divided(
        options.model, devices, dtype=options.dtype, cache_dir=options.cache_dir, threads=options.threads
    )
    found = held.enter_context(divided)
    return found.model, found.tokenizer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="myna.engine.process", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the connected stream socket to the host")
    parser.add_argument("--model", required=True, help="hub id, folder, .gguf file, or the default model's name")
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1; or several, among which the model is divided"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache-dir", default=None)
    parser.add_argument("--page-size", type=int, default=None, help="tokens of a KV page")
    parser.add_argument("--kv-tokens", type=int, default=None, help="tokens of KV in all")
    parser.add_argument("--kv-bytes", type=int, default=None, help="bytes of KV, where tokens aren't given")
    parser.add_argument("--max-sequences", type=int, default=None)
    parser.add_argument("--step-tokens", type=int, default=None)
    parser.add_argument(
        "--ahead-tokens",
        type=int,
        default=None,
        help="rows that a step fills with prompts that nobody waits for yet; 0: these wait until nobody is served",
    )
    parser.add_argument("--threads", type=int, default=None, help="threads that torch may use")
    return parser


def _configure_logging(*, human: bool) -> None:
    renderer: Any = structlog.dev.ConsoleRenderer() if human else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
