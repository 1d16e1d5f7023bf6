"""Semantic variables in OpenAI's API: the field `myna` of a chat or completion (`extra_body` of the official client).

    client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Translate to French: {{text}}"}],
        extra_body={"myna": {"session": "trip-41f0", "inputs": {"text": "summary"}, "output": "french", "wait": False}},
    )

`session` is a name of the caller's choice, new for each application: the first request that names it opens it. `inputs` says
which `{{placeholder}}` of the messages is which variable (or list of variables, joined by an empty line); other braces are text.
The variables need no value yet, nor be known: whichever request names one as its `output` makes it. With `wait` false the answer
comes at once, without text, so that a whole graph is submitted without waiting; the last request waits, or streams, as usual.
Every answer has a field `myna` with the session and the variables, by which any of Myna's APIs can read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from msgspec import Meta, Struct, field

from myna.actors.gateway import problems
from myna.actors.messages import Id, Input, Objective, ObjectiveKind, Segment, Text
from myna.sdk.parameters import DEFAULT_JOINER


class Extension(Struct, forbid_unknown_fields=True):
    """See the module."""

    session: Id | None = None
    inputs: dict[str, Id | Annotated[list[Id], Meta(min_length=1)]] = field(default_factory=dict)
    output: Id | list[Id] | None = None
    wait: bool = True
    objective: ObjectiveKind | None = None
    seconds: Annotated[float, Meta(gt=0)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.session is None and (self.inputs or self.output or not self.wait):
            raise ValueError("`inputs`, `output` and `wait` need a `session` to belong to")
        if self.objective is ObjectiveKind.DEADLINE and self.seconds is None:
            raise ValueError("the objective `deadline` needs its `seconds`")

    @property
    def goal(self) -> Objective | None:
        """What the reader cares for."""
        return None if self.objective is None else Objective(kind=self.objective, seconds=self.seconds)

    @property
    def variables(self) -> tuple[str, ...]:
        """All input variables, each once."""
        given = (v for names in self.inputs.values() for v in ([names] if isinstance(names, str) else names))
        return tuple(dict.fromkeys(given))

    def outputs(self, n: int) -> tuple[str, ...] | None:
        """The names for `n` outputs, None where the caller names none. Raises `Problem`."""
        if self.output is None:
            return None
        names = (self.output,) if isinstance(self.output, str) else tuple(self.output)
        if len(names) == 1 and n > 1:
            return tuple(f"{names[0][:76]}-{i}" for i in range(n))
        if len(names) != n or len(set(names)) != n:
            raise problems.invalid(f"`output` must be {n} different names, or one", "myna.output")
        return names


NONE = Extension()
"""Of a request without the field."""

_PLACEHOLDER = re.compile(r"\{\{\s*([^\W\d]\w*)\s*\}\}")


def segments(text: str, inputs: Mapping[str, str | list[str]]) -> Iterator[Segment]:
    """`text` with the placeholders that `inputs` names; all else is text."""
    at = 0
    for match in _PLACEHOLDER.finditer(text) if inputs else ():
        if match[1] not in inputs:
            continue
        if match.start() > at:
            yield Text(text=text[at : match.start()])
        names = inputs[match[1]]
        variables = (names,) if isinstance(names, str) else tuple(names)
        yield Input(variables=variables, joiner=DEFAULT_JOINER, name=match[1])
        at = match.end()
    if at < len(text):
        yield Text(text=text[at:])


def unused(texts: list[str], inputs: Mapping[str, str | list[str]]) -> set[str]:
    """Inputs that no placeholder stands for."""
    return inputs.keys() - {match[1] for text in texts for match in _PLACEHOLDER.finditer(text)}
