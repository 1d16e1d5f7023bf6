"""Parrot's API (OSDI'24), so that its own client runs unmodified.

Law: a session's number is all that its calls show, so it is a secret: 47 random bits, and 16 that tell which tenant's it is.
Every parameter of a call is a variable, as Parrot has it; one that was given as a value is a constant of the prompt too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from myna.actors import messages as wire
from myna.actors.gateway import problems
from myna.actors.gateway.http import Answer, Incoming, Json
from myna.actors.gateway.problems import Problem
from myna.actors.gateway.tenancy import Tenancy, check_stored
from myna.actors.messages import Objective, ObjectiveKind, Tenant
from myna.actors.subjects import token
from myna.sdk import ids
from myna.sdk.errors import FunctionError
from myna.sdk.function import Prepared, Result
from myna.sdk.parameters import DEFAULT_JOINER, make_sampling
from myna.sdk.session import Session

SessionNumber = Annotated[int, Meta(ge=0, le=2**63 - 1)]

_TENANT_BITS = 16
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_AUTH = "parrot-auth"
_CRITERIA = {"latency", "throughput", "ttft", "tpot"}


class NewSession(Struct):
    """`POST /v1/session`."""

    api_key: str = ""


class Ending(Struct):
    """`DELETE /v1/session/{session_id}`."""

    session_auth: str = ""


class SamplingConfig(Struct):
    """How an output is drawn, with Parrot's names and defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_gen_length: int = 512
    ignore_tokenizer_eos: bool = False
    stop_token_ids: list[int] = field(default_factory=list)
    stop_str: str | list[str] | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    n: Annotated[int, Meta(ge=1, le=128)] = 1
    best_of: int | None = None
    logit_bias: dict[str, float] | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    seed: int | None = None


class Parameter(Struct):
    """A parameter of a call: an output, or an input that is a variable or a value."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    is_output: bool = False
    var_id: str | None = None
    value: Any = None
    sampling_config: SamplingConfig | None = None


class SemanticCall(Struct):
    """`POST /v1/semantic_call`."""

    session_id: SessionNumber
    template: str
    parameters: Annotated[list[Parameter], Meta(max_length=1000)]
    func_name: Annotated[str, Meta(max_length=200)] = ""
    models: list[str] = field(default_factory=list)
    cache_prefix: bool = True
    output_criteria: str | None = None


class NativeCall(Struct):
    """`POST /v1/py_native_call`."""

    session_id: SessionNumber = 0


class NewVariable(Struct):
    """`POST /v1/semantic_var`."""

    session_id: SessionNumber
    var_name: Annotated[str, Meta(max_length=200)] = "variable"


class NewContent(Struct):
    """`POST /v1/semantic_var/{var_id}`.

    The client's async `aget` posts its read too, with the method that it means as a field.
    """

    session_id: SessionNumber
    content: str | None = None
    method: str = "POST"
    criteria: str | None = None


class Reading(Struct):
    """`GET /v1/semantic_var/{var_id}`."""

    session_id: SessionNumber
    criteria: str | None = None


class Listing(Struct):
    """`GET /v1/semantic_var`."""

    session_id: SessionNumber


class SessionMade(Struct):
    """A session and what it is ended with."""

    session_id: int
    session_auth: str


class CallMade(Struct):
    """A call and its variables."""

    request_id: int
    param_info: list[dict[str, Any]]


class VariableMade(Struct):
    """A variable."""

    var_id: str


class Content(Struct):
    """A variable's text."""

    content: str


class VariableList(Struct):
    """The variables of a session."""

    variables: list[dict[str, Any]]


class Nothing(Struct):
    """Done."""


def tell(problem: Problem) -> dict[str, str]:
    """A problem in Parrot's form. There is no traceback that a caller could use."""
    return {"error": problem.message, "traceback": ""}


def tenant_of(number: int, tenants: Iterator[Tenant]) -> Tenant | None:
    """Whose session has this number."""
    return next((tenant for tenant in tenants if _mark(tenant) == number % 2**_TENANT_BITS), None)


def _mark(tenant: Tenant) -> int:
    return int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=_TENANT_BITS // 8).digest())


def _id(number: int) -> str:
    return f"parrot-{number:x}"


# --- sessions ---


async def open_session(incoming: Incoming) -> Answer:
    """Open a session."""
    tenancy = incoming.tenancy
    number = (secrets.randbits(47) << _TENANT_BITS) | _mark(tenancy.tenant)
    await tenancy.open("parrot", id=_id(number))
    auth = secrets.token_urlsafe(24)
    async with tenancy.session(_id(number)) as session:
        await session.declare(_AUTH).set(_digest(auth))
    return Json(SessionMade(number, auth))


async def close_session(incoming: Incoming) -> Answer:
    """End a session, which needs what it was given at its beginning."""
    text = incoming.path["session_id"]
    if not text.isdecimal() or int(text) >= 2**63:
        raise problems.invalid("a session's id is a number", "session_id")
    ending: Ending = incoming.query
    tenancy = incoming.tenancy
    async with tenancy.session(_id(int(text))) as session:
        stored = await tenancy.outcome(session.id, wire.VarId(_AUTH))
        known = stored.text if isinstance(stored, wire.Value) else ""
        if not hmac.compare_digest(known, _digest(ending.session_auth)):
            raise Problem(403, "wrong_auth", "this is not the session's `session_auth`", "session_auth")
        await tenancy.end(session.id, "removed")
    return Json(Nothing())


def _digest(auth: str) -> str:
    return hashlib.sha256(auth.encode("utf-8", "surrogatepass")).hexdigest()


# --- calls ---


async def semantic_call(incoming: Incoming) -> Answer:
    """Submit a call. The answer comes when it is stored; its results are variables."""
    spec: SemanticCall = incoming.body
    await _check_models(incoming.tenancy, spec.models)
    call = _Call(spec)
    async with incoming.tenancy.session(_id(spec.session_id)) as session:
        given = [session.declare(variable) for variable, _ in call.given]
        made = session.submit(call.prepared)
        await session.flush()
        for variable, (_, text) in zip(given, call.given, strict=True):
            await variable.set(text)
        check_stored(made)
    return Json(CallMade(secrets.randbits(53), call.info))


async def _check_models(tenancy: Tenancy, models: list[str]) -> None:
    for model in models:
        if await tenancy.serves(model):
            return
    if models:
        raise Problem(404, "model_not_found", f"no engine serves any of {', '.join(models)[:300]}", "models")


class _Call:
    """A template with its parameters as a call."""

    def __init__(self, spec: SemanticCall) -> None:
        self._parameters = {p.name: p for p in spec.parameters}
        self._outputs: dict[str, wire.Output] = {}
        self.given: list[tuple[str, str]] = []
        self._inputs = {p.name: self._input(p) for p in spec.parameters if not p.is_output}
        segments = tuple(self._segments(spec.template))
        for p in spec.parameters:
            if p.is_output and p.name not in self._outputs:
                raise problems.invalid(f"the output {p.name!r} has no placeholder in the template", "parameters")
        call = wire.ModelCall(
            id=ids.new(spec.func_name or "call"),
            messages=(wire.Message(segments=segments),),
            function=spec.func_name,
            models=tuple(spec.models),
            objective=criterion(spec.output_criteria),
            cache_prefix=spec.cache_prefix,
        )
        results = (Result(n, tuple(o.variables), len(o.variables) == 1) for n, o in self._outputs.items())
        self.prepared = Prepared(call, tuple(results))
        self.info = [self._info(p) for p in spec.parameters]

    def _input(self, parameter: Parameter) -> tuple[str, str | None]:
        """Its variable, and its text where that is given."""
        if parameter.var_id is not None:
            return token(parameter.var_id, "variable"), None
        if parameter.value is None:
            raise problems.invalid(f"the input {parameter.name!r} needs a `var_id` or a `value`", "parameters")
        variable, text = ids.new(parameter.name), str(parameter.value)
        self.given.append((variable, text))
        return variable, text

    def _segments(self, template: str) -> Iterator[wire.Segment]:
        at = 0
        for match in _PLACEHOLDER.finditer(template):
            if match.start() > at:
                yield wire.Text(text=template[at : match.start()])
            at = match.end()
            yield self._segment(match[1])
        if at < len(template):
            yield wire.Text(text=template[at:])

    def _segment(self, name: str) -> wire.Segment:
        parameter = self._parameters.get(name)
        if parameter is None:
            raise problems.invalid(f"the placeholder {{{{{name}}}}} has no parameter", "template")
        if not parameter.is_output:
            variable, text = self._inputs[name]
            if text is not None:
                return wire.Text(text=text)
            return wire.Input(variables=(variable,), joiner=DEFAULT_JOINER, name=name)
        if name in self._outputs:
            raise problems.invalid(f"the output {name!r} is in the template twice", "template")
        config = parameter.sampling_config or SamplingConfig()
        bound = token(parameter.var_id, "variable") if parameter.var_id is not None else None
        variables = (bound,) if bound and config.n == 1 else tuple(ids.new(name) for _ in range(config.n))
        output = self._outputs[name] = wire.Output(variables=variables, name=name, sampling=_sampling(config))
        return output

    def _info(self, parameter: Parameter) -> dict[str, Any]:
        variables = (
            self._outputs[parameter.name].variables if parameter.is_output else (self._inputs[parameter.name][0],)
        )
        told = {"parameter_name": parameter.name, "is_output": parameter.is_output, "var_name": parameter.name}
        return {**told, "var_id": variables[0], **({"var_ids": list(variables)} if len(variables) > 1 else {})}


def _sampling(config: SamplingConfig) -> wire.Sampling:
    stops = [config.stop_str] if isinstance(config.stop_str, str) else config.stop_str or []
    try:
        bias = {int(token_id): value for token_id, value in (config.logit_bias or {}).items()}
        return make_sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_gen_length,
            ignore_eos=config.ignore_tokenizer_eos,
            stop_token_ids=tuple(config.stop_token_ids),
            stop=tuple(stop for stop in stops if stop),
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            repetition_penalty=config.repetition_penalty or 1.0,  # its 0 means none
            logit_bias=bias,
            seed=config.seed,
        )
    except (FunctionError, ValueError) as error:
        raise problems.invalid(f"the sampling_config is wrong: {error}", "sampling_config") from None


async def native_call(_incoming: Incoming) -> Answer:
    """Refused."""
    message = (
        "code that comes over the network is not run. Serve the function as an agent, a process of your own "
        "(`@myna.agent`, then `myna agent MODULE`), and call it by its name: POST /myna/v1/sessions/{session}/calls"
    )
    raise Problem(400, "native_code_refused", message)


def criterion(name: str | None) -> Objective | None:
    """Parrot's names for objectives. Raises `Problem`."""
    if not name:
        return None
    if name.lower() not in _CRITERIA:
        raise problems.invalid(f"{name[:100]!r} is no criterion: latency, throughput, TTFT or TPOT", "criteria")
    return Objective(kind=ObjectiveKind(name.lower()))


# --- variables ---


async def make_variable(incoming: Incoming) -> Answer:
    """Make a variable by hand."""
    spec: NewVariable = incoming.body
    async with incoming.tenancy.session(_id(spec.session_id)) as session:
        variable = session.declare(ids.new(spec.var_name))
        await session.flush()
    return Json(VariableMade(variable.id))


async def set_variable(incoming: Incoming) -> Answer:
    """Give a variable its value, or read it; see `NewContent`."""
    spec: NewContent = incoming.body
    if spec.content is None:
        if spec.method == "GET":
            return await _read(incoming, spec.session_id, spec.criteria)
        raise problems.invalid("a variable needs a `content`", "content")
    async with incoming.tenancy.session(_id(spec.session_id)) as session:
        await session.declare(token(incoming.path["var_id"], "variable")).set(spec.content)
    return Json(Nothing())


async def get_variable(incoming: Incoming) -> Answer:
    """A variable's text, awaited for as long as the client stays."""
    reading: Reading = incoming.query
    return await _read(incoming, reading.session_id, reading.criteria)


async def _read(incoming: Incoming, number: int, criteria: str | None) -> Answer:
    goal = criterion(criteria)
    async with incoming.tenancy.session(_id(number)) as session:
        return Json(Content(await _text(session, incoming.path["var_id"], goal)))


async def _text(session: Session, variable: str, goal: Objective | None) -> str:
    return (await session.lookup(token(variable, "variable")).value(objective=goal)).text


async def list_variables(incoming: Incoming) -> Answer:
    """The variables of a session."""
    listing: Listing = incoming.query
    async with incoming.tenancy.session(_id(listing.session_id)) as session:
        graph = await incoming.tenancy.graph(session.id)
    return Json(VariableList([{"var_id": v.id, "state": v.state} for v in graph.variables if v.id != _AUTH]))
