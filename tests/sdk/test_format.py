from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myna.sdk import format as formats


def test_the_default_removes_indentation_and_outer_white_space_and_keeps_inner_lines() -> None:
    assert (
        formats.DEFAULT("""Say:
        one
          two

        three
    """)
        == "Say:\none\n  two\n\nthree"
    )


def test_squashing_makes_one_line() -> None:
    assert formats.squash_whitespace("a \n\n  b\tc") == "a b c"


def test_keeping_newlines_squashes_only_within_lines() -> None:
    assert formats.keep_newlines("  a   b \n\n c\t d ") == "a b\n\nc d"


def test_verbatim_changes_nothing() -> None:
    assert formats.verbatim(" \n a") == " \n a"


def test_composition_applies_from_left_to_right() -> None:
    assert formats.compose(str.upper, lambda t: t + "x")("a") == "Ax"
    assert formats.compose()("a") == "a"


@given(st.text())
def test_formatters_do_nothing_twice(text: str) -> None:
    for formatter in (formats.strip, formats.squash_whitespace, formats.keep_newlines, formats.DEFAULT):
        once = formatter(text)
        assert formatter(once) == once
