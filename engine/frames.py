"""What the engine process and its host say to each other. Every frame is a 4-byte big-endian length and a MessagePack map.

The map's `type` names the class. The host sends commands, the engine process answers with reports; either end of the
pipe going away ends the conversation. No torch here, so that the host can import it.

    host -> engine   submit, cancel, retain, unpin, query, look, stop
    engine -> host   ready (once, first; or failed with an empty request id: the model can't be loaded)
                     delta*, finished*, then done or failed for each submit and retain
                     stats for each query, survey for each look; rejected for a frame that means nothing; stopped (last)
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import msgspec

from myna.engine.request import FinishReason, TokenLogprob, Usage
from myna.engine.stats import EngineStats, Survey

MAX_FRAME = 64 * 2**20
"""Bytes of the largest frame; a longer one means that the other side talks nonsense."""

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """Bytes that are no frame. `fatal`: the stream can't be read any further."""

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`myna.engine.sampling.SamplingParams`, not yet checked: the engine answers an invalid one with `failed`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = 512
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1


class Format(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an output must look like, not yet checked: see `myna.engine.structured.constraint`."""

    kind: str
    definition: Any = None


class TextSegment(msgspec.Struct, frozen=True, omit_defaults=True, tag="text"):
    """A constant or a variable's value. `token_ids`: what a model with this engine's tokenizer drew as this text."""

    text: str
    token_ids: tuple[int, ...] = ()


class OutputSegment(msgspec.Struct, frozen=True, omit_defaults=True, tag="output"):
    """An output. `forced_token_ids`: for each sibling the tokens already published by an earlier attempt."""

    index: int
    sampling: Sampling = Sampling()
    forced_token_ids: tuple[tuple[int, ...], ...] = ()
    format: Format | None = None


class TokensSegment(msgspec.Struct, frozen=True, tag="tokens"):
    """Tokens that stand in the context as they are: an output that an earlier attempt has completed."""

    token_ids: tuple[int, ...]


class CallMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message of a call; without a role, a plain prompt. `fields`: what the chat template gets of it beside role and text."""

    role: str | None
    segments: tuple[TextSegment | OutputSegment | TokensSegment, ...]
    fields: dict[str, Any] = {}


class CallFrame(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call as `myna.engine.prompt` takes it."""

    messages: tuple[CallMessage, ...]
    tools: tuple[dict[str, Any], ...] = ()
    template_arguments: dict[str, Any] = {}
    tool_choice: str = ""
    parallel_tool_calls: bool = True


class Submit(msgspec.Struct, frozen=True, omit_defaults=True, tag="submit"):
    """Run a call. `seed` serves the outputs that name none; without either, one is derived from the request's id. `order`: see
    `myna.engine.request.Request`."""

    request_id: str
    call: CallFrame
    priority: int = 0
    namespace: str = ""
    cache_prefix: bool = True
    seed: int | None = None
    order: float = 0.0


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End a request; it is answered with `failed`, unless it was through already."""

    request_id: str


class Retain(msgspec.Struct, frozen=True, omit_defaults=True, tag="retain"):
    """Compute and keep a call's prompt up to its first output, until `unpin` with the same id. `distance`: seconds until it is
    thought to be used: where memory is short, what is farthest goes first."""

    request_id: str
    call: CallFrame
    namespace: str = ""
    distance: float = 0.0


class Unpin(msgspec.Struct, frozen=True, tag="unpin"):
    """Let a retained prompt go."""

    request_id: str


class Query(msgspec.Struct, frozen=True, tag="query"):
    """Ask for `stats`."""


class Look(msgspec.Struct, frozen=True, tag="look"):
    """Ask for `survey`."""


class Stop(msgspec.Struct, frozen=True, omit_defaults=True, tag="stop"):
    """End the process: at once, or, with `drain`, when all that was submitted has ended. New submits then fail."""

    drain: bool = False


Command: TypeAlias = Submit | Cancel | Retain | Unpin | Query | Look | Stop


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. `context_length`: most tokens of one context. `kv_tokens`: tokens of KV in all."""

    model: str
    dtype: str
    device: str
    tokenizer_digest: str
    vocab_size: int
    context_length: int
    max_sequences: int
    kv_tokens: int
    page_size: int


class DeltaReport(msgspec.Struct, frozen=True, omit_defaults=True, tag="delta"):
    """What an output gained; see `myna.engine.request.Delta`."""

    request_id: str
    output: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class FinishedReport(msgspec.Struct, frozen=True, tag="finished"):
    """An output is complete."""

    request_id: str
    output: int
    reason: FinishReason
    usage: Usage


class DoneReport(msgspec.Struct, frozen=True, tag="done"):
    """A request is complete."""

    request_id: str


class FailedReport(msgspec.Struct, frozen=True, tag="failed"):
    """A request has ended without completing. `error`: the name of a class in `myna.engine.errors`."""

    request_id: str
    error: str
    message: str


class StatsReport(msgspec.Struct, frozen=True, tag="stats"):
    """The answer to `query`."""

    stats: EngineStats


class SurveyReport(msgspec.Struct, frozen=True, tag="survey"):
    """The answer to `look`."""

    survey: Survey


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A frame that could not be understood; it was ignored."""

    reason: str


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """The last frame."""


Report: TypeAlias = (
    Ready | DeltaReport | FinishedReport | DoneReport | FailedReport | StatsReport | SurveyReport | Rejected | Stopped
)

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(frame: Command | Report) -> bytes:
    """A frame as bytes, its length first. Raises FrameError if it is larger than MAX_FRAME."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is larger than {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def decode_command(body: bytes) -> Command:
    """A command from a frame's body. Raises FrameError."""
    try:
        return _commands.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"no command: {error}") from error


def decode_report(body: bytes) -> Report:
    """A report from a frame's body. Raises FrameError."""
    try:
        return _reports.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"no report: {error}") from error


class FrameBuffer:
    """Cuts a stream of bytes into frames' bodies, however it comes in pieces."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes. Raises a fatal FrameError at a length above MAX_FRAME."""
        self._bytes += data
        bodies: list[bytes] = []
        start = 0
        while len(self._bytes) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            if length > MAX_FRAME:
                raise FrameError(f"a frame claims {length} bytes", fatal=True)
            end = start + _LENGTH.size + length
            if len(self._bytes) < end:
                break
            bodies.append(bytes(self._bytes[start + _LENGTH.size : end]))
            start = end
        del self._bytes[:start]
        return bodies
