"""What requests and answers of Myna's own API hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from myna.actors import messages as wire
from myna.actors.gateway import problems
from myna.actors.messages import Id, Objective, ObjectiveKind
from myna.sdk.parameters import DEFAULT_JOINER
from myna.sdk.template import Role

MOST_CALLS = 1024
LONGEST_WAIT = 3600.0

# --- what requests hold ---


class OpenSession(Struct, forbid_unknown_fields=True):
    """A session to be opened. `lazy` ones start only what is read; it ends after `ttl` idle seconds."""

    name: Annotated[str, Meta(max_length=200)] = "session"
    lazy: bool = False
    ttl: Annotated[float, Meta(gt=0, le=30 * 86400)] = 3600.0
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0


class Given(Struct, forbid_unknown_fields=True):
    """An input: a text, any JSON, a variable, or several joined by `joiner`. One of these."""

    text: str | UnsetType = UNSET
    json: Any = UNSET
    variable: Id | UnsetType = UNSET
    variables: Annotated[list[Id], Meta(min_length=1)] | UnsetType = UNSET
    joiner: str = DEFAULT_JOINER

    def __post_init__(self) -> None:
        if sum(x is not UNSET for x in (self.text, self.json, self.variable, self.variables)) != 1:
            raise ValueError("an input is one of `text`, `json`, `variable`, `variables`")


class TransformSpec(Struct, forbid_unknown_fields=True):
    """A transform of an output, applied before it is published."""

    kind: wire.TransformKind
    argument: str = ""


class FormatSpec(Struct, forbid_unknown_fields=True):
    """What an output must look like."""

    kind: wire.FormatKind
    definition: Any = None


class Wanted(Struct, forbid_unknown_fields=True):
    """An output. `variable` is a declared one that it is bound to (several with `n` above 1); `sampling` holds the settings that
    `myna.Output` takes: temperature, max_tokens, stop, seed, …; `stream` is `live` (a prompt's, if nothing is said) or `buffered`
    (a function's)."""

    variable: Id | list[Id] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    transforms: list[TransformSpec] = field(default_factory=list)
    stream: wire.StreamMode | None = None
    format: FormatSpec | None = None


class Turn(Struct, forbid_unknown_fields=True):
    """A chat message; `content` may hold placeholders."""

    role: Role
    content: str


class CallSpec(Struct, forbid_unknown_fields=True):
    """A call: a `prompt` with `{{placeholders}}` (and roles, as in the SDK), or `messages`, of a model; or `native`, a function
    that an agent serves. `inputs` and `outputs` say what the placeholders are; a native call has `inputs` and one output."""

    prompt: str | None = None
    messages: Annotated[list[Turn], Meta(min_length=1)] | None = None
    native: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    function: Annotated[str, Meta(max_length=200)] = ""
    inputs: dict[str, Given] = field(default_factory=dict)
    outputs: dict[str, Wanted] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    objective: ObjectiveKind | None = None
    seconds: Annotated[float, Meta(gt=0)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    retries: Annotated[int, Meta(ge=0, le=100)] = 2

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.prompt, self.messages, self.native)) != 1:
            raise ValueError("a call has one of `prompt`, `messages`, `native`")
        if not self.outputs:
            raise ValueError("a call needs `outputs`")
        if self.native is not None and len(self.outputs) != 1:
            raise ValueError("a native call has one output")


class Submission(Struct, forbid_unknown_fields=True):
    """Calls, submitted together: each may use the variables of another, bound by name."""

    calls: Annotated[list[CallSpec], Meta(min_length=1, max_length=MOST_CALLS)]


class NewVariable(Struct, forbid_unknown_fields=True):
    """A variable made by hand, with a name, or an id of the caller's choice; with a value at once, or later."""

    name: Annotated[str, Meta(max_length=200)] = "variable"
    id: Id | None = None
    text: str | UnsetType = UNSET
    json: Any = UNSET


class NewValue(Struct, forbid_unknown_fields=True):
    """A variable's value: text, or any JSON."""

    text: str | UnsetType = UNSET
    json: Any = UNSET

    def __post_init__(self) -> None:
        if (self.text is UNSET) == (self.json is UNSET):
            raise ValueError("a value is one of `text` and `json`")


class Cancelling(Struct, forbid_unknown_fields=True):
    """What is to be cancelled: calls, the calls that make variables, or, without either, all that is unfinished."""

    calls: list[Id] = field(default_factory=list)
    variables: list[Id] = field(default_factory=list)
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Reading(Struct):
    """How a variable is read: `timeout` seconds at most (0: as it is now), for which objective."""

    timeout: Annotated[float, Meta(ge=0, le=LONGEST_WAIT)] = 60.0
    objective: ObjectiveKind | None = None
    seconds: Annotated[float, Meta(gt=0)] | None = None

    @property
    def goal(self) -> Objective | None:
        """What the reader cares for."""
        return goal(self.objective, self.seconds)


class Streaming(Struct):
    """Where a stream goes on: `offset` characters were read before. The header Last-Event-ID says the same, and counts."""

    offset: Annotated[int, Meta(ge=0)] = 0
    objective: ObjectiveKind | None = None
    seconds: Annotated[float, Meta(gt=0)] | None = None


# --- what answers hold ---


class SessionMade(Struct):
    """An open session."""

    session: str


class CallMade(Struct):
    """A submitted call and, for each output, its variables."""

    call: str
    outputs: dict[str, list[str]]


class Submitted(Struct):
    """The calls in their order."""

    calls: list[CallMade]


class VariableMade(Struct):
    """A variable."""

    variable: str


class Tokens(Struct):
    """Tokens that a call took."""

    prompt: int
    cached: int
    output: int


class Times(Struct):
    """Where and when a value was made, in seconds since the epoch: its call was received by the worker, its inputs were read, the
    first and the last of it were there."""

    worker: str
    received: float
    began: float
    first: float
    ended: float


class Ending(Struct):
    """How a variable stands. `state`: pending, value, failed, cancelled."""

    variable: str
    state: Literal["pending", "value", "failed", "cancelled"]
    text: str | None = None
    json: Any = None
    finish: str | None = None
    model: str | None = None
    call: str | None = None
    usage: Tokens | None = None
    code: str | None = None
    message: str | None = None
    function: str | None = None
    retryable: bool | None = None
    timing: Times | None = None


class Nothing(Struct):
    """Done."""


class VariableShown(Struct):
    """A variable of a graph, and the call that makes it. `state`: pending, value, failure, cancelled."""

    variable: str
    state: str
    producer: str | None


class VariableList(Struct):
    """The variables of a session, in the order in which they became known."""

    variables: list[VariableShown]


class CallShown(Struct):
    """A call of a graph. `seconds`: how long it has been in its state, where that was noted."""

    call: str
    function: str
    state: str
    inputs: list[str]
    outputs: list[str]
    worker: str | None
    produced: int
    seconds: float | None


class Graph(Struct):
    """A session's calls and variables as they stand. Of a huge graph `left_out` calls are missing."""

    session: str
    name: str
    calls: list[CallShown]
    variables: list[VariableShown]
    left_out: int


class Reasons(Struct):
    """Why a call is where it is, in sentences."""

    call: str
    state: str
    worker: str | None
    seconds: float | None
    reasons: list[str]


class SessionShown(Struct):
    """An open session, and its calls by state."""

    session: str
    name: str
    calls: int
    waiting: int
    ready: int
    running: int
    done: int


class SessionList(Struct):
    """The open sessions."""

    sessions: list[SessionShown]


def ending(variable: str, outcome: wire.Outcome | None) -> Ending:
    """An outcome as an answer."""
    match outcome:
        case None:
            return Ending(variable, "pending")
        case wire.Value() as v:
            used = Tokens(v.usage.prompt_tokens, v.usage.cached_tokens, v.usage.output_tokens)
            return Ending(
                *(variable, "value", v.text, v.json, v.finish, v.model or None, v.call or None, used),
                timing=None if v.timing is None else msgspec.convert(v.timing, Times, from_attributes=True),
            )
        case wire.Failure() as f:
            return Ending(
                variable,
                "failed",
                call=f.call or None,
                code=f.code,
                message=f.message,
                function=f.function or None,
                retryable=f.retryable,
            )
        case wire.Cancellation(reason=reason, call=call):
            return Ending(variable, "cancelled", call=call or None, message=reason)


def goal(kind: ObjectiveKind | None, seconds: float | None) -> Objective | None:
    """What a reader cares for. Raises `Problem`."""
    if kind is ObjectiveKind.DEADLINE and seconds is None:
        raise problems.invalid("the objective `deadline` needs its `seconds`", "seconds")
    return None if kind is None else Objective(kind=kind, seconds=seconds)


def shown(seen: wire.GraphView) -> list[VariableShown]:
    """The variables of a graph as an answer shows them."""
    return [VariableShown(v.id, v.state, v.producer or None) for v in seen.variables]
