"""What a parameter of a semantic function is: an input, an output, or a plain Python object. Read from its annotation, once.

    text: Input                              text: Annotated[str, Input(joiner=", ")]
    answer: Output(max_tokens=50)            answer: Annotated[str, Output(max_tokens=50)]
    count: int                               anything else is a plain object, rendered by `str`

The second column is what type checkers accept. Annotations may be strings (`from __future__ import annotations`).
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import msgspec

from myna.actors import messages as wire
from myna.sdk.errors import FunctionError
from myna.sdk.schemas import shape

DEFAULT_JOINER = "\n\n"


class Input:
    """Marks a parameter as an input: text, a number, any object (`str` renders it), a variable, or a list of these, joined by
    `joiner`."""

    __slots__ = ("joiner",)

    def __init__(self, *, joiner: str = DEFAULT_JOINER) -> None:
        self.joiner = joiner

    def __repr__(self) -> str:
        return f"Input(joiner={self.joiner!r})"


class Output:
    """Marks a parameter as an output, with how it is generated; see `messages.Sampling` for the settings and their defaults.

    `n` makes n variables of one prompt, and the call returns a list of them. `transforms` are applied to the text before it is
    published; such an output has no live stream. `name` is the variable's name, otherwise the parameter's.

    What the text must be, one of these: `schema` (a pydantic model, a msgspec Struct, a dataclass, a TypedDict: `get` returns an
    object of it; or a JSON schema: `get` returns its JSON), `regex`, `choice` (a list of texts), `grammar` (Lark or GBNF). The
    text obeys, or the variable fails: `truncated`, if `max_tokens` were too few.
    Raises `FunctionError` for settings that can't be.
    """

    __slots__ = ("format", "n", "name", "parse", "sampling", "stream", "transforms")

    def __init__(
        self,
        name: str | None = None,
        *,
        n: int = 1,
        transforms: wire.Transform | Sequence[wire.Transform] = (),
        stream: wire.StreamMode | str | None = None,
        format: wire.ResponseFormat | None = None,
        schema: Any = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | None = None,
        **sampling: Any,
    ) -> None:
        if not isinstance(n, int) or not 1 <= n <= 1024:
            raise FunctionError(f"Output(n={n!r}): n must be a whole number from 1 to 1024")
        self.name = name
        self.n = n
        self.transforms = (transforms,) if isinstance(transforms, wire.Transform) else tuple(transforms)
        self.stream = _stream_mode(stream, self.transforms)
        shaped = shape(schema=schema, regex=regex, choice=choice, grammar=grammar)
        if shaped is not None and format is not None:
            raise FunctionError("an output can have a format or what stands for one (schema, regex, …), not both")
        self.format = shaped.format if shaped is not None else format
        self.parse = shaped.parse if shaped is not None else None
        self.sampling = make_sampling(**sampling)

    def __repr__(self) -> str:
        return f"Output(name={self.name!r}, n={self.n}, sampling={self.sampling!r})"


def make_sampling(**settings: Any) -> wire.Sampling:
    """Sampling settings by name; `stop` may be one string. Raises `FunctionError` naming the one that is wrong."""
    if isinstance(settings.get("stop"), str):
        settings["stop"] = (settings["stop"],)
    known = wire.Sampling.__struct_fields__
    for name in settings.keys() - set(known):
        raise FunctionError(f"{name!r} is no setting of an output; known are {', '.join(sorted(known))}")
    try:
        return msgspec.convert({"t": "sampling", **settings}, wire.Sampling)
    except msgspec.ValidationError as error:
        raise FunctionError(f"an output's settings are wrong: {error}") from None


def _stream_mode(mode: wire.StreamMode | str | None, transforms: Sequence[wire.Transform]) -> wire.StreamMode:
    if mode is None:
        return wire.StreamMode.BUFFERED if transforms else wire.StreamMode.LIVE
    try:
        chosen = wire.StreamMode(mode)
    except ValueError:
        raise FunctionError(f"stream={mode!r} must be one of {', '.join(wire.StreamMode)}") from None
    if transforms and chosen is wire.StreamMode.LIVE:
        raise FunctionError("an output with transforms can't be streamed live: its text is known only when it is whole")
    return chosen


class Plain:
    """The kind of a parameter that is neither input nor output."""


Kind = Input | Output | Plain


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function."""

    name: str
    kind: Kind
    annotation: Any
    default: Any = inspect.Parameter.empty


def read(function: Callable[..., Any], frame: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """The parameters of `function`; `frame` holds the names that were visible where it was declared. Raises `FunctionError`."""
    where = f"function {function.__name__!r}"
    names = _names(function, frame)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise FunctionError(f"{where}: parameter *{parameter.name} is variable: name each parameter")
        annotation = _evaluate(parameter.annotation, names, f"{where}: parameter {parameter.name!r}")
        parameters.append(Parameter(parameter.name, _kind(annotation), annotation, parameter.default))
    return tuple(parameters)


def _names(function: Callable[..., Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    inner = inspect.unwrap(function)
    closure = inspect.getclosurevars(inner).nonlocals if isinstance(inner, types.FunctionType) else {}
    return {**getattr(inner, "__globals__", {}), **frame, **closure}


def _evaluate(annotation: Any, names: dict[str, Any], where: str) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        # The author's own source text, as typing.get_type_hints evaluates it; quoted once more, it is a string again.
        return _evaluate(eval(annotation, names), names, where)
    except FunctionError as error:
        raise FunctionError(f"{where}: {error}") from None
    except Exception as error:
        if re.search(r"\b(Input|Output)\b", annotation):
            raise FunctionError(f"{where}: its annotation {annotation!r} can't be evaluated: {error}") from None
        return annotation  # a name for type checkers only: a plain parameter


def _kind(annotation: Any) -> Kind:
    candidates = get_args(annotation)[1:] if get_origin(annotation) is Annotated else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, Input | Output):
            return candidate
        if candidate is Input:
            return Input()
        if candidate is Output:
            return Output()
    return Plain()
