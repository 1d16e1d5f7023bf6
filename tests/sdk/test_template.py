from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.sdk.errors import TemplateError
from myna.sdk.template import Block, Literal, Role, Slot, parse

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
plain = st.text(max_size=20).filter(lambda t: "{{" not in t and "}}" not in t)


def test_a_prompt_without_placeholders_is_one_literal() -> None:
    assert parse("Hello.").blocks == (Block(None, (Literal("Hello."),)),)


def test_placeholders_are_slots_between_literals_white_space_inside_braces_is_allowed() -> None:
    (block,) = parse("Sum {{ a }} and {{b}}!").blocks
    assert block.parts == (Literal("Sum "), Slot("a"), Literal(" and "), Slot("b"), Literal("!"))


def test_four_braces_are_two_literal_ones() -> None:
    (block,) = parse("{{{{name}}}} is not {{name}}").blocks
    assert block.parts == (Literal("{{name}} is not "), Slot("name"))


def test_json_around_a_placeholder_needs_no_escapes() -> None:
    (block,) = parse('{"a": {"b": {{value}}}}').blocks
    assert block.parts == (Literal('{"a": {"b": '), Slot("value"), Literal("}}"))
    (block,) = parse("{{{value}}}").blocks
    assert block.parts == (Literal("{"), Slot("value"), Literal("}"))


def test_roles_make_messages_without_the_white_space_at_their_ends() -> None:
    text = "{{#system}}\n Be brief. \n{{/system}}\n{{#user}} {{q}} {{/user}}\n{{#assistant}}\n{{a}}\n{{/assistant}}\n"
    assert parse(text).blocks == (
        Block(Role.SYSTEM, (Literal("Be brief."),)),
        Block(Role.USER, (Slot("q"),)),
        Block(Role.ASSISTANT, (Slot("a"),)),
    )
    assert parse(text).names == ("q", "a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Sum {{two words}}", "two words"),
        ("Sum {{", r"\{\{"),
        ("Sum {{}}", r"\{\{"),
        ("{{#pirate}}Arr{{/pirate}}", "pirate"),
        ("{{#system}}Hi", "never closed"),
        ("{{#system}}Hi{{/user}}", "closes no"),
        ("Hi{{/user}}", "closes no"),
        ("{{#system}}{{#user}}Hi{{/user}}{{/system}}", "inside"),
        ("Lost {{#user}}Hi{{/user}}", "'Lost' stands outside"),
        ("{{lost}} {{#user}}Hi{{/user}}", "'lost' stands outside"),
    ],
)
def test_a_broken_prompt_is_refused_naming_the_function_and_the_culprit(text: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says) as caught:
        parse(text, "function 'f'")
    assert "function 'f'" in str(caught.value)


@given(st.lists(st.one_of(plain.map(Literal), names.map(Slot)), max_size=8))
def test_what_is_written_is_read(parts: list[Literal | Slot]) -> None:
    source = "".join(p.text if isinstance(p, Literal) else f" {{{{{p.name}}}}} " for p in parts)
    if "{{{" in source or "}}}" in source or "{ {" in source:
        return
    (block,) = parse(source).blocks
    assert "".join(p.text if isinstance(p, Literal) else f"{{{{{p.name}}}}}" for p in block.parts) == source
    assert [p.name for p in block.parts if isinstance(p, Slot)] == [p.name for p in parts if isinstance(p, Slot)]


@given(st.text(max_size=60))
def test_any_text_can_be_said_literally(text: str) -> None:
    escaped = text.replace("{{", "{{{{").replace("}}", "}}}}")
    if "{{{{{" in escaped or "}}}}}" in escaped:
        return
    (block,) = parse(escaped).blocks
    assert "".join(p.text for p in block.parts if isinstance(p, Literal)) == text


@given(st.text(alphabet="{}#/ ab", max_size=40))
def test_no_text_makes_the_parser_raise_anything_else(text: str) -> None:
    try:
        parsed = parse(text)
    except TemplateError:
        return
    assert all(isinstance(p, Literal | Slot) for b in parsed.blocks for p in b.parts)
