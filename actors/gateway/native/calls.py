"""Calls over HTTP: prompts with placeholders, messages, and functions that agents serve."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UnsetType

from myna.actors import formats
from myna.actors import messages as wire
from myna.actors.gateway import problems
from myna.actors.gateway.http import Answer, Incoming, Json
from myna.actors.gateway.native.schemas import CallMade, CallSpec, Given, Submission, Submitted, Wanted, goal
from myna.actors.gateway.tenancy import check_stored
from myna.sdk import ids, template
from myna.sdk.function import Prepared, Result
from myna.sdk.parameters import Output, make_sampling
from myna.sdk.template import Block, Slot
from myna.sdk.template import Literal as Constant
from myna.sdk.variable import as_value


async def submit(incoming: Incoming) -> Answer:
    """Submit calls. The answer comes when they are stored; their results are variables."""
    spec: Submission = incoming.body
    drafts = [_prepare(call, f"calls[{i}]") for i, call in enumerate(spec.calls)]
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        for variable in dict.fromkeys(
            v for draft in drafts for r in draft.results for v in r.variables if r.bound is not None
        ):
            session.declare(variable)
        made = [session.submit(draft) for draft in drafts]
        await session.flush()
        check_stored(made)
    return Json(Submitted([CallMade(d.call.id, {r.name: list(r.variables) for r in d.results}) for d in drafts]), 201)


def _prepare(spec: CallSpec, where: str) -> Prepared:
    builder = _Builder(spec, where)
    if spec.native is not None:
        return builder.native(spec.native)
    return builder.model()


class _Builder:
    """One call of a submission."""

    def __init__(self, spec: CallSpec, where: str) -> None:
        self._spec = spec
        self._where = where
        self._results: list[Result] = []

    def model(self) -> Prepared:
        spec = self._spec
        messages = tuple(
            wire.Message(
                segments=tuple(s for part in block.parts for s in self._segments(part)),
                role=block.role.value if block.role else None,
            )
            for block in self._blocks()
        )
        made = {result.name for result in self._results}
        for name in spec.outputs.keys() - made:
            raise problems.invalid(f"the output {name!r} has no placeholder in the prompt", f"{self._where}.outputs")
        call = wire.ModelCall(
            id=ids.new(spec.function or "call"),
            messages=messages,
            function=spec.function,
            models=tuple(spec.models),
            objective=goal(spec.objective, spec.seconds),
            priority=spec.priority,
            retries=spec.retries,
        )
        return Prepared(call, tuple(self._results))

    def native(self, function: str) -> Prepared:
        spec = self._spec
        ((name, wanted),) = spec.outputs.items()
        output = self._output(name, wanted)
        call = wire.NativeCall(
            id=ids.new(function),
            function=function,
            variable=output.variables[0],
            arguments=tuple(_argument(name, given) for name, given in spec.inputs.items()),
            objective=goal(spec.objective, spec.seconds),
            priority=spec.priority,
            retries=spec.retries,
            stream=wanted.stream or wire.StreamMode.BUFFERED,  # a half that readers saw could not be gone on with
            transforms=output.transforms,
        )
        return Prepared(call, tuple(self._results))

    def _blocks(self) -> tuple[Block, ...]:
        if self._spec.prompt is not None:
            return template.parse(self._spec.prompt, f"{self._where}.prompt").blocks
        turns = self._spec.messages or ()
        return tuple(Block(turn.role, self._parts(turn.content, i)) for i, turn in enumerate(turns))

    def _parts(self, text: str, number: int) -> tuple[Constant | Slot, ...]:
        where = f"{self._where}.messages[{number}].content"
        (block, *more) = template.parse(text, where).blocks
        if more or block.role is not None:
            raise problems.invalid("roles can't be marked inside a message", where)
        return block.parts

    def _segments(self, part: Constant | Slot) -> Iterator[wire.Segment]:
        if isinstance(part, Constant):
            yield wire.Text(text=part.text)
        elif part.name in self._spec.outputs:
            if any(result.name == part.name for result in self._results):
                raise problems.invalid(f"the output {part.name!r} is in the prompt twice", self._where)
            yield self._output(part.name, self._spec.outputs[part.name])
        elif part.name in self._spec.inputs:
            yield _input(part.name, self._spec.inputs[part.name])
        else:
            raise problems.invalid(f"{{{{{part.name}}}}} is neither an input nor an output", self._where)

    def _output(self, name: str, wanted: Wanted) -> wire.Output:
        transforms = [wire.Transform(kind=t.kind, argument=t.argument) for t in wanted.transforms]
        asked = wanted.format
        try:
            made = formats.of_kind(asked.kind, asked.definition) if asked is not None else None
        except formats.InvalidFormat as error:
            raise problems.invalid(str(error), f"{self._where}.outputs.{name}.format") from None
        sampling = make_sampling(**wanted.sampling)
        output = Output(name, n=wanted.n, transforms=transforms, stream=wanted.stream, format=made)
        bound = [wanted.variable] if isinstance(wanted.variable, str) else wanted.variable
        if bound is not None and (len(bound) != wanted.n or len(set(bound)) != wanted.n):
            raise problems.invalid(f"the output {name!r} has {wanted.n} variables", f"{self._where}.outputs")
        variables = tuple(bound) if bound is not None else tuple(ids.new(name) for _ in range(wanted.n))
        self._results.append(Result(name, variables, wanted.n == 1, () if bound is not None else None))
        return wire.Output(
            variables=variables,
            name=name,
            sampling=sampling,
            transforms=output.transforms,
            stream=output.stream,
            format=output.format,
        )


def _input(name: str, given: Given) -> wire.Text | wire.Input:
    if (variables := _variables(given)) is not None:
        return wire.Input(variables=variables, joiner=given.joiner, name=name)
    value = as_value(given.json if isinstance(given.text, UnsetType) else given.text, f"input {name!r}")
    return wire.Text(text=value.text)


def _argument(name: str, given: Given) -> wire.Argument:
    if (variables := _variables(given)) is not None:
        return wire.Argument(name=name, input=wire.Input(variables=variables, joiner=given.joiner, name=name))
    return wire.Argument(name=name, constant=given.json if isinstance(given.text, UnsetType) else given.text)


def _variables(given: Given) -> tuple[str, ...] | None:
    if not isinstance(given.variable, UnsetType):
        return (given.variable,)
    return None if isinstance(given.variables, UnsetType) else tuple(given.variables)
