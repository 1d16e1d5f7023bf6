"""Every message on the wire, and nothing else: frozen, typed, tagged, versioned.

A message is a MessagePack map whose key `t` names its class. Fields that have their default are left out, so a default never
changes; unknown keys are ignored, so that a newer peer may add fields; a changed meaning needs a new class. Who speaks which
version is said where peers meet (`protocol` in Open, Announce and Hello). `codec` turns bytes into these classes and back, and is
the only border.

Ids are subject tokens (`subjects.token` checks them), single-assignment and never reused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, NewType

from msgspec import Meta, Struct, field

from myna.actors.plain import require_plain

PROTOCOL = 1
"""Version of this file's messages. Workers announce theirs; a scheduler refuses a worker of another major version."""

Tenant = NewType("Tenant", str)
SessionId = NewType("SessionId", str)
VarId = NewType("VarId", str)
CallId = NewType("CallId", str)
WorkerId = NewType("WorkerId", str)
Attempt = NewType("Attempt", int)
"""One dispatch of one call, unique and growing: the scheduler's lease revision x 2^20 + a counter."""
Lease = NewType("Lease", int)
"""Revision of the leading scheduler's lease. Workers refuse a smaller one than they have seen."""

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,80}\Z")]
"""What an id looks like on the wire: one NATS subject token without wildcards."""


class Frozen(Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True):
    """Base of all messages and their parts."""


# --- What a call says -------------------------------------------------------------------------------------------------


class ObjectiveKind(StrEnum):
    """What the reader of a result cares for."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    TTFT = "ttft"
    TPOT = "tpot"
    DEADLINE = "deadline"


class Objective(Frozen, frozen=True, tag="objective"):
    """An objective; `seconds` is the deadline from the moment of asking, or the bound of ttft and tpot where given."""

    kind: ObjectiveKind
    seconds: Annotated[float, Meta(gt=0)] | None = None


class Sampling(Frozen, frozen=True, tag="sampling"):
    """How an output is drawn. Ranges are checked by whoever samples; None means the model's own default."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int = 256
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None


class TransformKind(StrEnum):
    """Transforms of a value between two calls, applied where the value is published."""

    STRIP = "strip"
    FIRST_LINE = "first_line"
    REGEX = "regex"
    JSON_FIELD = "json_field"


class Transform(Frozen, frozen=True, tag="transform"):
    """One transform; `argument` is the pattern (its first group is kept) or the path of the field (`a.b.0`)."""

    kind: TransformKind
    argument: str = ""


class StreamMode(StrEnum):
    """`live`: chunks are published as they come. `buffered`: nothing is seen before the value is whole."""

    LIVE = "live"
    BUFFERED = "buffered"


class FormatKind(StrEnum):
    """What an output must look like."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


class ResponseFormat(Frozen, frozen=True, tag="format"):
    """A constraint on an output; `definition` is the schema, pattern, list of choices or grammar."""

    kind: FormatKind
    definition: Any = None

    def __post_init__(self) -> None:
        require_plain("the definition of a format", self.definition)


class Text(Frozen, frozen=True, tag="text"):
    """A constant part of a prompt."""

    text: str


class Input(Frozen, frozen=True, tag="input"):
    """The value of a variable, or of several joined by `joiner`. `name` is the placeholder's, for messages to people."""

    variables: Annotated[tuple[Id, ...], Meta(min_length=1)]
    joiner: str = "\n\n"
    name: str = ""


class Output(Frozen, frozen=True, tag="output"):
    """A place where the model generates. `n > 1` variables are n siblings of one prompt; only the last output may have them."""

    variables: Annotated[tuple[Id, ...], Meta(min_length=1)]
    name: str = ""
    sampling: Sampling = Sampling()
    transforms: tuple[Transform, ...] = ()
    stream: StreamMode = StreamMode.LIVE
    format: ResponseFormat | None = None
    partial: bool = False
    """Whether a text that was cut before it had its format, or had called its tool, is a value all the same, whose `finish` is
    `length`. Otherwise that is a failure, `truncated`."""


Segment = Text | Input | Output


class Message(Frozen, frozen=True, tag="message"):
    """One turn of a conversation; a plain prompt is one message whose role is None."""

    segments: tuple[Segment, ...]
    role: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Any = None

    def __post_init__(self) -> None:
        require_plain("the tool calls of a message", self.tool_calls)


class Tool(Frozen, frozen=True, tag="tool"):
    """A function that the model may call; `parameters` is a JSON schema. `strict`: the arguments of its calls keep to it, whoever
    chose to call it; a schema that can't be kept to is refused."""

    name: str
    description: str = ""
    parameters: Any = None
    strict: bool = False

    def __post_init__(self) -> None:
        require_plain(f"the parameters of tool {self.name!r}", self.parameters)


class ModelCall(Frozen, frozen=True, tag="model"):
    """A call of a language model: one program in one context (fill, generate, fill, generate)."""

    id: Id
    messages: Annotated[tuple[Message, ...], Meta(min_length=1)]
    function: str = ""
    models: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    objective: Objective | None = None
    priority: int = 0
    retries: Annotated[int, Meta(ge=0, le=100)] = 2
    cache_prefix: bool = True
    memoise: bool = False
    """Its result may be taken from an identical call of the tenant, if all that it draws is determined."""
    parallel_tool_calls: bool = True
    """Whether several tools may be called at once, where `tool_choice` wants one called."""


class Argument(Frozen, frozen=True, tag="argument"):
    """An argument of a native call: variables by name, or a constant (any JSON value)."""

    name: str
    input: Input | None = None
    constant: Any = None

    def __post_init__(self) -> None:
        require_plain(f"argument {self.name!r}", self.constant)


class NativeCall(Frozen, frozen=True, tag="native"):
    """A call of a function that some agent serves by this name. Code is never shipped."""

    id: Id
    function: Annotated[str, Meta(min_length=1, max_length=200)]
    variable: Id
    arguments: tuple[Argument, ...] = ()
    objective: Objective | None = None
    priority: int = 0
    retries: Annotated[int, Meta(ge=0, le=100)] = 2
    stream: StreamMode = StreamMode.LIVE
    transforms: tuple[Transform, ...] = ()


Call = ModelCall | NativeCall


# --- The log: a session's history, from any client to the scheduler ---------------------------------------------------


class Open(Frozen, frozen=True, tag="open"):
    """The first entry of a session. `lazy` sessions start only what is wanted. Expires after `ttl` idle seconds."""

    protocol: int
    lazy: bool = False
    ttl: Annotated[float, Meta(gt=0, le=30 * 86400)] = 3600.0
    priority: int = 0
    name: str = ""
    objective: Objective | None = None
    """Of every result of the session for which none is given."""
    keep: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0
    """Seconds for which what it stored outlives its end, to be exported."""
    cache: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,80}\Z")] = ""
    """Prefixes are shared with the tenant's sessions of the same word alone, such as those of one of its own users."""


class Declare(Frozen, frozen=True, tag="declare"):
    """Variables made by hand: a client will set them, or a later call will produce them."""

    variables: Annotated[tuple[Id, ...], Meta(min_length=1)]


class Submit(Frozen, frozen=True, tag="submit"):
    """Calls; each may use variables that are known by then or produced by another call of the same entry."""

    calls: Annotated[tuple[Call, ...], Meta(min_length=1)]


class Want(Frozen, frozen=True, tag="want"):
    """Somebody, who may name himself as `reader`, waits for these variables: starts them in a lazy session, and carries the
    objective."""

    variables: Annotated[tuple[Id, ...], Meta(min_length=1)]
    objective: Objective | None = None
    reader: Annotated[str, Meta(max_length=80)] = ""


class Unwant(Frozen, frozen=True, tag="unwant"):
    """`reader` waits for these variables no more: in a lazy session, what nobody else needs stops until it is wanted again."""

    variables: Annotated[tuple[Id, ...], Meta(min_length=1)]
    reader: Annotated[str, Meta(max_length=80)] = ""


class Cancel(Frozen, frozen=True, tag="cancel"):
    """Cancels these calls and all that needs them; without calls, everything that is unfinished. `upstream`: also the calls whose
    results go only into cancelled ones, and that nobody waits for."""

    calls: tuple[Id, ...] = ()
    reason: str = ""
    upstream: bool = False


class Close(Frozen, frozen=True, tag="close"):
    """The last entry of a session: cancels what is unfinished and frees everything."""

    reason: str = ""


class Tried(Frozen, frozen=True, tag="tried"):
    """Written by the scheduler: so many attempts of a call have failed. A later leader goes on counting from there."""

    call: Id
    tries: Annotated[int, Meta(ge=0)]


LogEntry = Open | Declare | Submit | Want | Unwant | Cancel | Close | Tried


# --- What a variable ends in ------------------------------------------------------------------------------------------


class FinishReason(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    SET = "set"  # by a client or an agent, not generated


class Usage(Frozen, frozen=True, tag="usage"):
    """Tokens that a call took: prompt (of which cached) and output. `cost`: what they cost, where the worker has a price, in
    millionths of the currency in which the operator states prices."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=self.cost + other.cost,
        )


class TokenLogprob(Frozen, frozen=True, tag="logprob"):
    """One generated token with its log-probability and the likeliest alternatives; `text` and `top_texts` are what they spell.
    Ids are those of the value's tokenizer; where it names none, they mean nothing."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    text: str = ""
    top_texts: tuple[str, ...] = ()


class Timing(Frozen, frozen=True, tag="timing"):
    """When and where a value was made, in seconds since the epoch by the worker's clock: the call was received, its inputs were
    read and the work began, the first and the last of the value were there."""

    worker: str
    received: float
    began: float
    first: float
    ended: float


class Value(Frozen, frozen=True, tag="value"):
    """A variable's value. `tokens` are valid only with the tokenizer of digest `tokenizer`."""

    text: str
    json: Any = None
    tokens: tuple[int, ...] = ()
    tokenizer: str = ""
    finish: FinishReason = FinishReason.SET
    usage: Usage = Usage()
    logprobs: tuple[TokenLogprob, ...] = ()
    model: str = ""
    attempt: int = 0
    call: str = ""
    timing: Timing | None = None

    def __post_init__(self) -> None:
        require_plain("a value's parsed form", self.json)


class ErrorCode(StrEnum):
    """The kinds of failure that a reader may see."""

    INVALID_CALL = "invalid_call"
    UNKNOWN_VARIABLE = "unknown_variable"
    CYCLE = "cycle"
    PROMPT_TOO_LONG = "prompt_too_long"
    INVALID_SAMPLING = "invalid_sampling"
    INVALID_FORMAT = "invalid_format"
    TRUNCATED = "truncated"
    TRANSFORM_FAILED = "transform_failed"
    VALUE_TOO_LARGE = "value_too_large"
    NATIVE_ERROR = "native_error"
    NO_WORKER = "no_worker"
    WORKER_LOST = "worker_lost"
    ENGINE_ERROR = "engine_error"
    SESSION_CLOSED = "session_closed"
    OVER_QUOTA = "over_quota"


class Failure(Frozen, frozen=True, tag="failure"):
    """A variable that will never have a value. `call` and `function` name the call that failed first."""

    code: ErrorCode
    message: str
    call: str = ""
    function: str = ""
    variable: str = ""
    retryable: bool = False
    attempt: int = 0
    retry_after: float | None = None
    """Seconds after which another try may succeed, where that is known."""


class Cancellation(Frozen, frozen=True, tag="cancelled"):
    """A variable whose call was cancelled."""

    reason: str = ""
    call: str = ""


Outcome = Value | Failure | Cancellation


class Chunk(Frozen, frozen=True, tag="chunk"):
    """Piece n of a variable's token stream. `text` is what readers see; `tokens` are what a later attempt goes on from. `at`
    characters come before it, whose digest is `chain`: so a reader notices that a stream was lost and begun anew."""

    attempt: int
    text: str
    tokens: tuple[int, ...] = ()
    last: bool = False
    finish: FinishReason = FinishReason.STOP
    at: int | None = None
    chain: str = ""
    tokenizer: str = ""
    """Of the tokens; the first chunk tells it. Who has another can't go on from them."""


# --- The worker protocol: one for engines of every kind and for agents ------------------------------------------------


class WorkerKind(StrEnum):
    """What a worker is."""

    ENGINE = "engine"
    AGENT = "agent"


class Running(Frozen, frozen=True, tag="running", array_like=True):
    """A call that a worker holds."""

    tenant: Id
    session: Id
    call: Id
    attempt: int


class Announce(Frozen, frozen=True, tag="announce"):
    """A worker presents itself: on start, when its offer changes, and whenever a scheduler says hello. `paused`: why it takes no
    calls for a while, if it takes none. `named_only`: it takes those alone that name what it serves."""

    protocol: int
    worker: Id
    kind: WorkerKind
    incarnation: str
    serves: tuple[str, ...]
    capacity: Annotated[int, Meta(ge=1)]
    tokens: int | None = None
    context_length: int | None = None
    resumable: bool = False
    draining: bool = False
    tenant: Id | None = None
    running: tuple[Running, ...] = ()
    paused: str = ""
    named_only: bool = False


class Beat(Frozen, frozen=True, tag="beat"):
    """A worker lives, and holds these calls. One a second, whatever its model is doing."""

    worker: Id
    incarnation: str
    running: tuple[Running, ...] = ()
    load: dict[str, float] = field(default_factory=dict)


class Leave(Frozen, frozen=True, tag="leave"):
    """A worker goes for good, and hands over what it holds. With a `reason` it does not go of its own will."""

    worker: Id
    incarnation: str
    reason: str = ""


class Hello(Frozen, frozen=True, tag="hello"):
    """A scheduler leads from now on; workers answer with an announcement. With `pulse` it leads still, and nobody answers: who
    hears it knows that its server is not cut off."""

    protocol: int
    scheduler: Id
    lease: int
    pulse: bool = False


class Source(Frozen, frozen=True, tag="source"):
    """Where a call's results stand already: in these variables of a session of the same tenant, in the order of its outputs."""

    session: Id
    call: Id
    variables: Annotated[tuple[Id, ...], Meta(min_length=1)]


class Run(Frozen, frozen=True, tag="run"):
    """Run this call. Its inputs have values; the worker reads them itself. With a `source` it computes nothing, but copies."""

    tenant: Id
    session: Id
    call: Call
    attempt: int
    lease: int
    resume: bool = False
    cache: str = ""
    """The prefix cache that the call shares: its tenant's own, where this is empty."""
    source: Source | None = None
    order: float = 0.0
    """Its place among the worker's calls of the same priority, the least first: the scheduler's order goes on there."""


class Stop(Frozen, frozen=True, tag="stop"):
    """Stop running this attempt of a call; its chunks may stay."""

    tenant: Id
    session: Id
    call: Id
    attempt: int
    lease: int


class Retain(Frozen, frozen=True, tag="retain"):
    """Compute, if need be, and keep the KV of a prompt that calls to come begin with, until `Release` or a new leader. `call` is
    one of them, cut where the prefix ends; its inputs have values, but the last one, if it is named by `stream`: that one is
    generated on this worker, and filled in as it is. `distance`: seconds until it is thought to be used: where memory is short,
    the farthest goes first. A hint: who can't obey, does not."""

    tenant: Id
    session: Id
    id: Id
    call: ModelCall
    lease: int
    distance: Annotated[float, Meta(ge=0)] = 0.0
    cache: str = ""
    stream: str = ""


class Anticipate(Frozen, frozen=True, tag="anticipate"):
    """Begin this call once its input `awaits` has been made on this worker, before that is stored: `Run` follows, it is thought,
    and finds the call under way. Its other inputs have values. What it makes is nobody's until then. A hint: who can't obey, does
    not."""

    tenant: Id
    session: Id
    call: ModelCall
    awaits: Id
    lease: int
    cache: str = ""
    order: float = 0.0
    """These two as in `Run`, as far as can be told."""


class Release(Frozen, frozen=True, tag="release"):
    """Nobody to come begins with these retained prompts: they are a cache like any other."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1)]
    lease: int


class Drain(Frozen, frozen=True, tag="drain"):
    """Take no new calls, finish what runs, then leave."""

    lease: int


class Cordon(Frozen, frozen=True, tag="cordon"):
    """Take no new calls until this is lifted; what runs goes on, and the worker stays. It outlives the scheduler that says so."""

    lease: int
    lift: bool = False


class EventKind(StrEnum):
    """What happened to an attempt."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    REFUSED = "refused"
    OVERTAKEN = "overtaken"


class Event(Frozen, frozen=True, tag="event"):
    """A worker tells how an attempt fares. `finished`: every output's value is stored. `refused`: it was never begun.
    `overtaken`: another attempt has published what this one was about to. `final`: this call can't be tried again, even if a
    new one can."""

    worker: Id
    kind: EventKind
    tenant: Id
    session: Id
    call: Id
    attempt: int
    failure: Failure | None = None
    usage: Usage = Usage()
    final: bool = False


WorkerMessage = Announce | Beat | Leave | Event
SchedulerMessage = Hello | Run | Stop | Retain | Anticipate | Release | Drain | Cordon


# --- What workers show of themselves ----------------------------------------------------------------------------------


class Phase(StrEnum):
    """How far a call is at its worker."""

    READING = "reading"  # its inputs
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    STORING = "storing"  # the last of its values


class CallSight(Frozen, frozen=True, tag="call-sight"):
    """A call at a worker, received at `since` (seconds since the epoch). `produced` tokens of its outputs; of `tokens` in its
    context, `computed` have KV and `cached` were there before. `prefix`: the deepest of the worker's prefixes that it uses.
    `first`: when the first token came."""

    tenant: Id
    session: Id
    call: Id
    attempt: int
    function: str
    phase: Phase
    since: float
    produced: int = 0
    tokens: int = 0
    computed: int = 0
    cached: int = 0
    prefix: int | None = None
    first: float | None = None


class SpanSight(Frozen, frozen=True, tag="span-sight"):
    """A call that has ended at a worker; times as in `Timing`."""

    tenant: Id
    session: Id
    call: Id
    attempt: int
    function: str
    received: float
    began: float
    first: float
    ended: float
    usage: Usage = Usage()


class StepSight(Frozen, frozen=True, tag="step-sight"):
    """The steps of an engine that began within a moment, which begins at `at` (seconds since the epoch): the `seconds` that they
    took, the tokens drawn, the prompt tokens computed; then what ran, waited, and the KV pages in use."""

    at: float
    seconds: float
    steps: int
    drawn: int
    prefilled: int
    running: int
    waiting: int
    pages: int


class PrefixSight(Frozen, frozen=True, tag="prefix-sight"):
    """A run of `tokens` from position `begin` on, in the prefix tree of cache `cache`: found `hits` times, used by `holders` now.
    `text` is how it begins."""

    id: int
    parent: int | None
    cache: str
    begin: int
    tokens: int
    hits: int
    holders: int
    text: str = ""


class Sight(Frozen, frozen=True, tag="sight"):
    """What a worker shows to people who look, once a second, whether anybody does or not. Bounded: `left_out` calls are missing.
    `steps` and `ended` are those since the last one."""

    worker: Id
    incarnation: str
    at: float
    kind: WorkerKind
    serves: tuple[str, ...]
    capacity: int
    load: dict[str, float] = field(default_factory=dict)
    calls: tuple[CallSight, ...] = ()
    ended: tuple[SpanSight, ...] = ()
    steps: tuple[StepSight, ...] = ()
    prefixes: tuple[PrefixSight, ...] = ()
    left_out: int = 0


# --- Tenants ----------------------------------------------------------------------------------------------------------


class TenantPolicy(Frozen, frozen=True, tag="tenant-policy"):
    """What the operator grants a tenant; None is no limit. Schedulers follow it, and refuse what is over it.

    `weight` counts against other tenants. `calls` in flight are submitted and not ended; `running` are those at workers; `bytes`
    are stored in open sessions; `tokens` are prompt and output tokens a minute. Tenants with the same `cache` share prefixes,
    which lets each learn from timing what the others asked: by default nobody shares.
    """

    tenant: Id
    weight: Annotated[float, Meta(gt=0)] = 1.0
    sessions: Annotated[int, Meta(ge=0)] | None = None
    calls: Annotated[int, Meta(ge=0)] | None = None
    running: Annotated[int, Meta(ge=1)] | None = None
    bytes: Annotated[int, Meta(ge=0)] | None = None
    tokens: Annotated[int, Meta(ge=1)] | None = None
    cache: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,80}\Z")] = ""
    removed: bool = False


class CallUsage(Frozen, frozen=True, tag="call-usage"):
    """What one call used."""

    call: str
    function: str
    usage: Usage


class SessionUsage(Frozen, frozen=True, tag="session-usage"):
    """A part of what a session used, stored at its end. `used` is the sum over this part's calls."""

    tenant: Id
    session: Id
    used: Usage
    calls: tuple[CallUsage, ...] = ()
    name: str = ""


# --- Questions to a scheduler -----------------------------------------------------------------------------------------


class Alive(Frozen, frozen=True, tag="alive"):
    """A client still holds its session: not logged, only keeps the session from expiring."""


class StatusRequest(Frozen, frozen=True, tag="status?"):
    """Asks the leading scheduler what it sees."""


class DrainRequest(Frozen, frozen=True, tag="drain?"):
    """The operator asks the leading scheduler to have a worker finish what it runs, and leave; answered with the status, in
    which the worker is draining, or is not there."""

    worker: Id


class CordonRequest(Frozen, frozen=True, tag="cordon?"):
    """The operator asks the leading scheduler to have a worker take no calls, or to take them again; answered with the status."""

    worker: Id
    lift: bool = False


class WorkerStatus(Frozen, frozen=True, tag="worker-status"):
    """One worker as the scheduler sees it."""

    worker: Id
    kind: WorkerKind
    serves: tuple[str, ...]
    capacity: int
    running: int
    draining: bool
    silent_seconds: float
    tenant: Id | None = None
    paused: str = ""


class SessionStatus(Frozen, frozen=True, tag="session-status"):
    """One open session as the scheduler sees it, and its calls by state. `failed`: of those that are done."""

    tenant: Id
    session: Id
    name: str
    calls: int
    waiting: int
    ready: int
    running: int
    done: int
    failed: int = 0


class TenantStatus(Frozen, frozen=True, tag="tenant-status"):
    """One tenant as the scheduler sees it. Now: open `sessions`, `calls` in flight, stored `bytes`, and `tokens` in this minute's
    allowance that are spent. Since the oldest record that is kept: `used`, and the calls that used it."""

    tenant: Id
    sessions: int
    calls: int
    bytes: int
    tokens: int
    used: Usage = Usage()
    used_by: int = 0
    policy: TenantPolicy | None = None


class StreamStatus(Frozen, frozen=True, tag="stream-status"):
    """How much a stream holds: messages, and bytes on each of the servers that keep it."""

    name: str
    messages: int
    bytes: int


class Status(Frozen, frozen=True, tag="status"):
    """The answer: who leads, workers, open sessions, and how many ready calls wait for a worker."""

    scheduler: Id
    lease: int
    workers: tuple[WorkerStatus, ...]
    sessions: tuple[SessionStatus, ...]
    queued: int
    rejected: int = 0
    tenants: tuple[TenantStatus, ...] = ()
    streams: tuple[StreamStatus, ...] = ()


class Why(Frozen, frozen=True, tag="why?"):
    """Asks the leading scheduler why a call runs where and when it does, or what it waits for; without a session, in all."""

    call: Id
    session: Id | None = None


class CallReasons(Frozen, frozen=True, tag="call-reasons"):
    """One call as the scheduler sees it. `seconds`: how long it has been in its state, if that was noted. `reasons` are
    sentences for people."""

    tenant: Id
    session: Id
    call: str
    function: str
    state: str
    worker: str = ""
    seconds: float | None = None
    reasons: tuple[str, ...] = ()


class Explanation(Frozen, frozen=True, tag="explanation"):
    """The answer to `Why`: every call of that id that the scheduler knows."""

    calls: tuple[CallReasons, ...] = ()


class GraphRequest(Frozen, frozen=True, tag="graph?"):
    """Asks the leading scheduler for the graph of a session as it is. `tenant` is for the operator: a tenant asks for its own."""

    session: Id
    tenant: Id | None = None


class CallView(Frozen, frozen=True, tag="call-view"):
    """A call of a graph: what it is, how far it is, and what it is made of. `seconds`: how long it has been so, where noted."""

    id: str
    function: str
    state: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    worker: str = ""
    produced: int = 0
    seconds: float | None = None


class VariableView(Frozen, frozen=True, tag="variable-view"):
    """A variable of a graph. `state`: pending, value, failure, cancelled; `producer` is the call that makes it, if one does."""

    id: str
    state: str
    producer: str = ""


class GraphView(Frozen, frozen=True, tag="graph"):
    """The answer: calls and variables in the order in which they became known. Of a huge graph `left_out` calls are missing.
    `found` is False for a session that is not open."""

    session: Id
    name: str = ""
    found: bool = True
    calls: tuple[CallView, ...] = ()
    variables: tuple[VariableView, ...] = ()
    left_out: int = 0


class LogRequest(Frozen, frozen=True, tag="log?"):
    """A tenant asks the leading scheduler for the log of a session of its own, from above a sequence."""

    session: Id
    after: Annotated[int, Meta(ge=0)] = 0


class LogLine(Frozen, frozen=True, tag="log-line"):
    """An entry of a log as it was stored: the bytes of a `LogEntry`, and when the stream took them (seconds since the epoch)."""

    sequence: int
    at: float
    entry: bytes


class LogPage(Frozen, frozen=True, tag="log"):
    """The answer, in order. `more`: there is more above the last of these."""

    lines: tuple[LogLine, ...] = ()
    more: bool = False


AnyMessage = (
    LogEntry
    | Outcome
    | Chunk
    | WorkerMessage
    | SchedulerMessage
    | Sight
    | Alive
    | StatusRequest
    | DrainRequest
    | CordonRequest
    | Status
    | Why
    | Explanation
    | GraphRequest
    | GraphView
    | LogRequest
    | LogPage
    | TenantPolicy
    | SessionUsage
)
