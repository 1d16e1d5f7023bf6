"""Prompt formatters: text to text, applied to a prompt as its author wrote it, never to the values that fill it.

    dedent             common indentation is removed, as Python's own tools do with docstrings
    strip              white space at both ends is removed
    squash_whitespace  every run of white space, line breaks too, becomes one blank
    keep_newlines      the same within each line; line breaks stay
    verbatim           nothing is changed
    compose(a, b, …)   a, then b, …

The default is `compose(dedent, strip)`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

Formatter = Callable[[str], str]


def dedent(text: str) -> str:
    """Remove the indentation that all lines share; the first line, which follows the quotes, does not count."""
    first, newline, rest = text.partition("\n")
    return first.lstrip(" \t") + newline + textwrap.dedent(rest)


def strip(text: str) -> str:
    """Remove white space at both ends."""
    return text.strip()


def squash_whitespace(text: str) -> str:
    """Make one blank of every run of white space, line breaks included."""
    return re.sub(r"\s+", " ", text)


def keep_newlines(text: str) -> str:
    """Make one blank of every run of white space within a line, drop it at a line's ends, and keep line breaks."""
    return "\n".join(re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))


def verbatim(text: str) -> str:
    """Change nothing."""
    return text


def compose(*formatters: Formatter) -> Formatter:
    """The formatter that applies `formatters` from left to right."""

    def composed(text: str) -> str:
        for formatter in formatters:
            text = formatter(text)
        return text

    return composed


DEFAULT: Formatter = compose(dedent, strip)
