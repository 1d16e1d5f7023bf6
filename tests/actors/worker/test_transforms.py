from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from myna.actors import codec
from myna.actors.messages import Transform, TransformKind, Value
from myna.actors.worker.transforms import TransformFailed, apply

STRIP = Transform(kind=TransformKind.STRIP)
FIRST_LINE = Transform(kind=TransformKind.FIRST_LINE)


def regex(pattern: str) -> Transform:
    return Transform(kind=TransformKind.REGEX, argument=pattern)


def json_field(path: str) -> Transform:
    return Transform(kind=TransformKind.JSON_FIELD, argument=path)


@pytest.mark.parametrize(
    ("transforms", "text", "expected"),
    [
        ([], " as it is ", (" as it is ", None)),
        ([STRIP], "\n text \t", ("text", None)),
        ([FIRST_LINE], "\n\n  first  \nsecond", ("first", None)),
        ([FIRST_LINE], " \n ", ("", None)),
        ([regex(r"answer: (\w+)")], "the answer: yes, the answer: no", ("yes", None)),
        ([regex(r"\d+")], "in 1815 and 1848", ("1815", None)),
        ([regex(r"(a)|(b)")], "xb", ("b", None)),
        ([regex(r"<(.*)>")], "<over\nlines>", ("over\nlines", None)),
        ([json_field("a.1.b")], 'Sure! {"a": [0, {"b": "deep"}]} Done.', ("deep", "deep")),
        ([json_field("")], "[1, 2]", ("[1, 2]", [1, 2])),
        ([json_field("n")], '{"n": {"é": null}}', ('{"é": null}', {"é": None})),
        ([json_field("x"), STRIP], '{"x": " y "}', ("y", None)),
        ([STRIP, regex("b+"), FIRST_LINE], " abbb ", ("bbb", None)),
    ],
)
def test_transforms_apply_one_after_another(transforms: list[Transform], text: str, expected: tuple[str, Any]) -> None:
    assert apply(transforms, text) == expected


@pytest.mark.parametrize(
    ("transform", "text", "part"),
    [
        (regex("x+"), "no such letter", "matches nothing"),
        (regex("("), "anything", "does not compile"),
        (json_field("a"), "no braces here", "no JSON"),
        (json_field("a.b"), '{"a": {"c": 1}}', "no 'b'"),
        (json_field("0"), "[]", "no '0'"),
        (json_field("a.b"), '{"a": 1}', "no 'b'"),
        (json_field("a"), "[" * 100_000, "no JSON"),
        (json_field("a"), '{"a": NaN}', "no plain data"),
        (json_field("a"), '{"a": 123456789012345678901234567890}', "no plain data"),
        (json_field("a"), '{"a": ' + "[" * 90 + "]" * 90 + "}", "no plain data"),
    ],
)
def test_what_can_not_be_applied_says_which_and_why(transform: Transform, text: str, part: str) -> None:
    with pytest.raises(TransformFailed, match=part) as caught:
        apply([transform], text)
    assert len(str(caught.value)) < 400, "a value is quoted in part only"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN, st.text(alphabet="abc \n", max_size=10))
def test_any_plain_json_is_found_among_chatter(data: Any, chatter: str) -> None:
    text, found = apply([json_field("k")], f"{chatter}{json.dumps({'k': data})}{chatter}")
    assert found == data
    assert text == (data if isinstance(data, str) else json.dumps(data, ensure_ascii=False))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.sampled_from([STRIP, FIRST_LINE, regex(r"\w+"), json_field("a"), json_field("a.0")]))
def test_any_text_gives_a_value_that_can_be_sent_or_a_typed_failure(text: str, transform: Transform) -> None:
    try:
        result, data = apply([transform], text)
    except TransformFailed:
        return
    codec.encode(Value(text=result, json=data))


def test_a_catastrophic_pattern_fails_its_call_and_holds_nobody_up() -> None:
    with pytest.raises(TransformFailed, match="takes over"):
        apply([Transform(kind=TransformKind.REGEX, argument=r"(a|aa)+$")], "a" * 60 + "b")
