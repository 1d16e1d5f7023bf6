from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest

import myna
from myna import Input, Output
from myna.actors.messages import FormatKind, Value, VarId
from myna.sdk.client import Client
from myna.sdk.errors import FunctionError, InvalidValue
from myna.sdk.schemas import shape
from tests.actors.stage import Stage

BIRD = '{"name": "wren", "wings": 2}'


class Pydantic(pydantic.BaseModel):
    name: str
    wings: int = 2


class Struct(msgspec.Struct):
    name: str
    wings: int = 2


@dataclass
class Data:
    name: str
    wings: int = 2


class Typed(TypedDict):
    name: str
    wings: int


class Even(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


@pytest.mark.parametrize(
    ("schema", "parsed"),
    [
        (Pydantic, Pydantic(name="wren")),
        (pydantic.TypeAdapter(Pydantic), Pydantic(name="wren")),
        (Struct, Struct("wren")),
        (Data, Data("wren")),
        (Typed, {"name": "wren", "wings": 2}),
        ({"type": "object"}, {"name": "wren", "wings": 2}),
    ],
    ids=["pydantic", "adapter", "struct", "dataclass", "typed dict", "schema"],
)
def test_a_schema_is_what_the_engine_keeps_to_and_what_the_reader_gets(schema: Any, parsed: Any) -> None:
    made = shape(schema=schema)
    assert made is not None
    assert made.format.kind is FormatKind.JSON_SCHEMA
    jsonschema.validate(json.loads(BIRD), made.format.definition)
    assert made.parse is not None
    assert made.parse(BIRD) == parsed
    if schema != {"type": "object"}:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"name": "wren", "wings": 2, "beak": 1}, made.format.definition)


def test_lists_and_nested_types_are_schemas_too() -> None:
    made = shape(schema=list[Struct])
    assert made is not None
    assert made.parse is not None
    assert made.parse(f"[{BIRD}]") == [Struct("wren")]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"schema": object()}, "no JSON schema"),
        ({"schema": {"$ref": "http://example.com"}}, "example.com"),
        ({"regex": ""}, "empty"),
        ({"choice": "yes"}, "list"),
        ({"regex": "a", "choice": ["a"]}, "regex or choice"),
        ({"regex": "a", "format": myna.ResponseFormat(kind=FormatKind.JSON_OBJECT)}, "not both"),
    ],
)
def test_what_an_output_cannot_be_is_refused_where_it_is_declared(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(FunctionError, match=says):
        Output(**settings)


def test_the_engine_is_told_and_a_pattern_has_no_other_reader_than_text() -> None:
    out = Output(regex="[a-z]+", max_tokens=5)
    assert (out.format.kind, out.format.definition, out.parse) == (FormatKind.REGEX, "[a-z]+", None)  # type: ignore[union-attr]
    assert Output(choice=["a", "b"]).format.definition == ["a", "b"]  # type: ignore[union-attr]
    assert Output(grammar='start: "a"').format.kind is FormatKind.GRAMMAR  # type: ignore[union-attr]


@myna.function
def describe(what: Input, bird: Annotated[Any, Output(schema=Struct, max_tokens=3)]) -> None:
    """Describe {{what}}: {{bird}}"""


@myna.function
def number(what: Input, even: Annotated[Any, Output(schema=Even, max_tokens=3)]) -> None:
    """A number {{what}}: {{even}}"""


async def test_a_reader_gets_the_object_and_other_calls_the_text(client: Client, cast: Stage) -> None:
    async with client.session() as session:
        given = session.variable("bird")
        assert describe("a wren", bird=given, session=session) is given
        given.end_with(Value(text=BIRD))
        assert await given == Struct("wren")
        assert (await given.value()).text == BIRD
        assert await session.gather(given) == [Struct("wren")]
        odd = number("odd", session=session)
        odd.end_with(Value(text='{"number": 3}'))
        with pytest.raises(InvalidValue, match="odd"):
            await odd
        other = session.lookup(VarId(given.id))
        assert await other.json() == {"name": "wren", "wings": 2}


def test_the_sdk_does_not_import_pydantic() -> None:
    code = "import sys, myna; [getattr(myna, n) for n in myna.__all__]; import myna.sdk.schemas; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
