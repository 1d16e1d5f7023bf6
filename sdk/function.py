"""Semantic functions: a Python signature whose docstring is a prompt. Calling one submits a call and returns its variables.

Everything that can be wrong about a function is found where it is declared; everything that can be wrong about a call, where it
is called. Neither waits for anything.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from myna.actors import messages as wire
from myna.sdk import format as formats
from myna.sdk import ids, template
from myna.sdk.current import choose_session
from myna.sdk.errors import FunctionError, TemplateError
from myna.sdk.models import models_of
from myna.sdk.objectives import as_objective
from myna.sdk.parameters import Input, Output, Parameter, Plain, read
from myna.sdk.schemas import Parse
from myna.sdk.template import Literal, Role, Slot, Template
from myna.sdk.variable import Placeholder


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for every call of a function. No `models`: any model."""

    models: tuple[str, ...] = ()
    priority: int = 0
    retries: int = 2
    objective: wire.Objective | None = None
    cache_prefix: bool = True
    memoise: bool | None = None
    tools: tuple[wire.Tool, ...] = ()
    tool_choice: str = ""

    def call(self, name: str, messages: tuple[wire.Message, ...], *, memoise: bool = False) -> wire.ModelCall:
        """A new call of the function or conversation `name`."""
        return wire.ModelCall(
            id=ids.new(name),
            messages=messages,
            function=name,
            models=self.models,
            tools=self.tools,
            tool_choice=self.tool_choice,
            objective=self.objective,
            priority=self.priority,
            retries=self.retries,
            cache_prefix=self.cache_prefix,
            memoise=memoise,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """One output of a prepared call: the variables that it makes, or the ones it was bound to."""

    name: str
    variables: tuple[str, ...]
    single: bool
    bound: tuple[Placeholder, ...] | None = None
    parse: Parse | None = None
    """What its readers get of its text."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to be submitted, and the variables that come of it."""

    call: wire.Call
    results: tuple[Result, ...]
    used: tuple[Placeholder, ...] = ()
    memoise: bool | None = None
    """Whether the function says so; if it says nothing, the session decides."""


class Function:
    """A semantic function; made by `function`."""

    def __init__(
        self, name: str, prompt: Template, parameters: tuple[Parameter, ...], options: Options, doc: str = ""
    ) -> None:
        self.name = name
        self.template = prompt
        self.options = options
        self.__name__ = name
        self.__doc__ = doc
        self._parameters = {p.name: p for p in parameters}
        self._signature = _signature(parameters)

    def __repr__(self) -> str:
        return f"<myna.function {self.name}{self._signature}>"

    def __call__(self, *args: Any, session: Any = None, **kwargs: Any) -> Any:
        """Submit a call to `session`, or the current one. Returns a variable, a list of them for `n > 1`, or `Outputs` with
        one of these for each output. Outputs may be bound to declared variables by keyword.
        Raises `FunctionError`, `NoSession`."""
        return choose_session(session, self.name).submit(self.prepare(*args, **kwargs))

    def with_options(self, **changes: Any) -> Function:
        """The same function with other options (`model=`, `models=`, `priority=`, …)."""
        options = replace(self.options, **make_options(self.name, **changes))
        return Function(self.name, self.template, tuple(self._parameters.values()), options, self.__doc__ or "")

    def prepare(self, *args: Any, **kwargs: Any) -> Prepared:
        """The call that these arguments make, not submitted. Raises `FunctionError`."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise FunctionError(f"function {self.name!r}: {error}; its signature is {self._signature}") from None
        bound.apply_defaults()
        builder = _Builder(self, bound.arguments)
        messages = tuple(builder.message(block) for block in self.template.blocks)
        memoise = self.options.memoise
        call = self.options.call(self.name, messages, memoise=bool(memoise))
        return Prepared(call, tuple(builder.results), tuple(builder.used), memoise)

    def parameter(self, name: str) -> Parameter:
        """The parameter of this name."""
        return self._parameters[name]


class _Builder:
    """Fills one call's slots, and gathers its results."""

    def __init__(self, function: Function, arguments: dict[str, Any]) -> None:
        self._function = function
        self._arguments = arguments
        self.results: list[Result] = []
        self.used: list[Placeholder] = []

    def message(self, block: template.Block) -> wire.Message:
        segments = tuple(segment for part in block.parts for segment in self._segments(part))
        return wire.Message(segments=segments, role=block.role.value if block.role else None)

    def _segments(self, part: Literal | Slot) -> Iterator[wire.Segment]:
        if isinstance(part, Literal):
            yield wire.Text(text=part.text)
            return
        parameter = self._function.parameter(part.name)
        argument = self._arguments[part.name]
        where = f"function {self._function.name!r}: parameter {part.name!r}"
        match parameter.kind:
            case Output() as output:
                yield self._output(part.name, output, argument, where)
            case Input(joiner=joiner):
                self.used += placeholders(argument)
                yield from input_segments(argument, joiner, part.name)
            case Plain():
                yield from _plain_segments(argument, where)

    def _output(self, name: str, output: Output, argument: Any, where: str) -> wire.Output:
        if isinstance(argument, Output):
            output, argument = argument, None
        bound = _bound(argument, output.n, where)
        self.used += bound or ()
        label = output.name or name
        variables = tuple(v.id for v in bound) if bound else tuple(ids.new(label) for _ in range(output.n))
        self.results.append(Result(name, variables, output.n == 1, bound, output.parse))
        return wire.Output(
            variables=variables,
            name=label,
            sampling=output.sampling,
            transforms=output.transforms,
            stream=output.stream,
            format=output.format,
        )


def placeholders(argument: Any) -> list[Placeholder]:
    """The variables in an input's argument."""
    items = argument if isinstance(argument, list | tuple) else (argument,)
    return [item for item in items if isinstance(item, Placeholder)]


def input_segments(argument: Any, joiner: str, name: str) -> Iterator[wire.Segment]:
    """The segments of an input's argument. Lists are joined by `joiner`; a list of variables alone is one segment."""
    items = list(argument) if isinstance(argument, list | tuple) else [argument]
    if items and all(isinstance(item, Placeholder) for item in items):
        yield wire.Input(variables=tuple(item.id for item in items), joiner=joiner, name=name)
        return
    if not any(isinstance(item, Placeholder) for item in items):
        yield from _text(joiner.join(str(item) for item in items))
        return
    for i, item in enumerate(items):
        if i:
            yield from _text(joiner)
        if isinstance(item, Placeholder):
            yield wire.Input(variables=(item.id,), joiner=joiner, name=name)
        else:
            yield from _text(str(item))


def _plain_segments(argument: Any, where: str) -> Iterator[wire.Segment]:
    if isinstance(argument, Placeholder):
        raise FunctionError(f"{where} was given a variable, but is a plain parameter: annotate it as Input")
    yield from _text(str(argument))


def _text(text: str) -> Iterator[wire.Text]:
    if text:
        yield wire.Text(text=text)


def _bound(argument: Any, n: int, where: str) -> tuple[Placeholder, ...] | None:
    if argument is None:
        return None
    given = tuple(argument) if isinstance(argument, list | tuple) else (argument,)
    if not all(isinstance(item, Placeholder) for item in given) or len(given) != n:
        raise FunctionError(f"{where} is an output: bind it to {n} declared variable{'s' * (n > 1)}, or leave it out")
    return given


def _signature(parameters: Sequence[Parameter]) -> inspect.Signature:
    """Inputs as they were declared; outputs by keyword only."""
    empty = inspect.Parameter.empty
    inputs = [
        inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default)
        for p in parameters
        if not isinstance(p.kind, Output)
    ]
    required = [p for p in inputs if p.default is empty]
    optional = [p for p in inputs if p.default is not empty]
    outputs = [
        inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for p in parameters
        if isinstance(p.kind, Output)
    ]
    return inspect.Signature([*required, *optional, *outputs])


# --- Declaring --------------------------------------------------------------------------------------------------------


@overload
def function(declared: Callable[..., Any], /) -> Function: ...


@overload
def function(
    *,
    prompt: str | None = ...,
    name: str | None = ...,
    formatter: formats.Formatter = ...,
    **options: Any,
) -> Callable[[Callable[..., Any]], Function]: ...


def function(
    declared: Callable[..., Any] | None = None,
    /,
    *,
    prompt: str | None = None,
    name: str | None = None,
    formatter: formats.Formatter = formats.DEFAULT,
    **options: Any,
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Make a semantic function of a Python function; its body is never run.

    `prompt` replaces the docstring. Options: `model` or `models` (names, any of which will do), `priority` (higher first),
    `retries`, `objective`, `cache_prefix`, `memoise`, `tools`, `tool_choice`.

    With `memoise`, calls of the tenant that are the same in text, inputs, models and parameters are computed once, if their
    outputs are determined: drawn greedily (`temperature=0`) or with a `seed`. The others take the result, also while it is still
    being made, for as long as a session holds it.

    Raises `FunctionError` and `TemplateError`, here and now.
    """
    frame = sys._getframe(1).f_locals  # annotations that are strings may name what is local to the caller

    def declare(target: Callable[..., Any]) -> Function:
        title = name or target.__name__
        text = prompt if prompt is not None else target.__doc__
        if not text or not text.strip():
            raise FunctionError(f"function {title!r} has no docstring, and so no prompt")
        parsed = template.parse(formatter(text), f"function {title!r}")
        parameters = read(target, frame)
        _check(title, parsed, parameters)
        return Function(title, parsed, parameters, replace(Options(), **make_options(title, **options)), text)

    return declare(declared) if declared is not None else declare


_OPTIONS = ("model", "models", "priority", "retries", "objective", "cache_prefix", "memoise", "tools", "tool_choice")


def make_options(where: str, **given: Any) -> dict[str, Any]:
    """The fields of `Options` that `given` sets. Raises `FunctionError`."""
    for key in given.keys() - set(_OPTIONS):
        raise FunctionError(f"function {where!r}: {key!r} is no option; known are {', '.join(_OPTIONS)}")
    fields = dict(given)
    if "model" in fields or "models" in fields:
        named = (fields.pop("model", ()), fields.pop("models", ()))
        fields["models"] = tuple(n for given in named for n in models_of(given, f"function {where!r}"))
    if "objective" in fields:
        fields["objective"] = as_objective(fields["objective"])
    if "tools" in fields:
        fields["tools"] = tuple(fields["tools"])
    retries = fields.get("retries", 0)
    if not isinstance(retries, int) or not 0 <= retries <= 100:
        raise FunctionError(f"function {where!r}: retries={retries!r} must be a whole number from 0 to 100")
    return fields


def _check(title: str, parsed: Template, parameters: Sequence[Parameter]) -> None:
    where = f"function {title!r}"
    known = {p.name: p for p in parameters}
    for name in parsed.names:
        if name not in known:
            raise TemplateError(f"{where}: placeholder {{{{{name}}}}} has no parameter: add one, or take it out")
    for name in known:
        if name == "session":
            raise FunctionError(f"{where}: parameter 'session' is taken (it chooses the session): name it otherwise")
        if name not in parsed.names:
            raise TemplateError(f"{where}: parameter {name!r} is not in the prompt: add {{{{{name}}}}}, or take it out")
    _check_outputs(where, parsed, known)


def _check_outputs(where: str, parsed: Template, known: dict[str, Parameter]) -> None:
    outputs = [n for n in parsed.names if isinstance(known[n].kind, Output)]
    if not outputs:
        raise FunctionError(f"{where} has no output: annotate a parameter as Output, and put it into the prompt")
    for name in outputs:
        if outputs.count(name) > 1:
            raise TemplateError(f"{where}: output {name!r} is in the prompt twice, but is generated once")
    for name in outputs[:-1]:
        kind = known[name].kind
        if isinstance(kind, Output) and kind.n > 1:
            raise FunctionError(f"{where}: output {name!r} has n={kind.n}, but only the last output may have n > 1")
    for block in parsed.blocks:
        for part in block.parts:
            if isinstance(part, Slot) and part.name in outputs and block.role not in (None, Role.ASSISTANT):
                raise TemplateError(f"{where}: output {part.name!r} is in the {block.role} role: move it to assistant")
