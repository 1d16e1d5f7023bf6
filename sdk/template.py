"""Prompts with placeholders: a text is parsed once, where a function is declared, into blocks of literals and slots.

    {{name}}                      a slot: the parameter of that name (white space inside the braces is allowed)
    {{#system}} … {{/system}}     a chat message of that role: system, user, assistant or tool; white space at its ends is dropped
    {{{{  and  }}}}               the literal braces {{ and }}; single braces, and }} that close nothing, mean themselves

A prompt without roles is one block without a role. A prompt with roles has no text outside of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from myna.sdk.errors import TemplateError


class Role(StrEnum):
    """Who speaks in a chat message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Literal:
    """Constant text."""

    text: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A placeholder."""

    name: str


@dataclass(frozen=True, slots=True)
class Block:
    """One message; a plain prompt is one block without a role."""

    role: Role | None
    parts: tuple[Literal | Slot, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed prompt."""

    blocks: tuple[Block, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The placeholders in their order, each as often as it occurs."""
        return tuple(part.name for block in self.blocks for part in block.parts if isinstance(part, Slot))


@dataclass(frozen=True, slots=True)
class _Tag:
    opens: bool
    role: str


_TOKEN = re.compile(
    r"\{\{\{\{|\}\}\}\}|\{\{\s*(?P<name>[^\W\d]\w*)\s*\}\}|\{\{\s*(?P<mark>[#/])\s*(?P<role>\w+)\s*\}\}"
)
_BROKEN = re.compile(r"\{\{(?!\{)[^{}]{0,40}")


def parse(text: str, where: str = "the prompt") -> Template:
    """Parse `text`. `where` names the function in errors. Raises `TemplateError`."""
    blocks: list[Block] = []
    role: Role | None = None
    parts: list[Literal | Slot] = []
    outside: list[Literal | Slot] = []
    for token in _tokens(text, where):
        match token:
            case _Tag(opens=True):
                if role is not None:
                    raise TemplateError(
                        f"{where}: {{{{#{token.role}}}}} inside {{{{#{role}}}}}: close that block first"
                    )
                role, parts = _role(token.role, where), []
            case _Tag():
                if role is None or token.role != role.value:
                    raise TemplateError(f"{where}: {{{{/{token.role}}}}} closes no {{{{#{token.role}}}}}")
                blocks.append(Block(role, _trim(parts)))
                role = None
            case Literal() | Slot():
                (outside if role is None else parts).append(token)
    if role is not None:
        raise TemplateError(f"{where}: {{{{#{role}}}}} is never closed: add {{{{/{role}}}}}")
    if not blocks:
        return Template((Block(None, _merge(outside)),))
    _check_outside(outside, where)
    return Template(tuple(blocks))


def _tokens(text: str, where: str) -> Iterator[Literal | Slot | _Tag]:
    at = 0
    for match in _TOKEN.finditer(text):
        yield from _literal(text[at : match.start()], where)
        at = match.end()
        if match["name"]:
            yield Slot(match["name"])
        elif match["role"]:
            yield _Tag(match["mark"] == "#", match["role"])
        else:
            yield Literal(match[0][:2])
    yield from _literal(text[at:], where)


def _literal(text: str, where: str) -> Iterator[Literal]:
    if broken := _BROKEN.search(text):
        raise TemplateError(
            f"{where}: {broken[0]!r} opens a placeholder that is none: write {{{{name}}}} with a Python name, "
            "or {{{{ for literal braces"
        )
    if text:
        yield Literal(text)


def _role(text: str, where: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise TemplateError(f"{where}: {{{{#{text}}}}} is no role: use one of {', '.join(Role)}") from None


def _merge(parts: list[Literal | Slot]) -> tuple[Literal | Slot, ...]:
    merged: list[Literal | Slot] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Literal) and isinstance(last, Literal):
            merged[-1] = Literal(last.text + part.text)
        else:
            merged.append(part)
    return tuple(merged)


def _trim(parts: list[Literal | Slot]) -> tuple[Literal | Slot, ...]:
    merged = list(_merge(parts))
    if merged and isinstance(merged[0], Literal):
        merged[0] = Literal(merged[0].text.lstrip())
    if merged and isinstance(merged[-1], Literal):
        merged[-1] = Literal(merged[-1].text.rstrip())
    return tuple(part for part in merged if part != Literal(""))


def _check_outside(parts: list[Literal | Slot], where: str) -> None:
    for part in parts:
        if isinstance(part, Slot):
            raise TemplateError(f"{where}: placeholder {part.name!r} stands outside of the roles: move it into one")
        if text := part.text.strip():
            raise TemplateError(f"{where}: {text[:40]!r} stands outside of the roles: move it into one")
