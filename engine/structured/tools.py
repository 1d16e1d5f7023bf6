"""Makes sure that a tool is called, in the form in which the model's own chat template writes calls.

Law: the form is read off the template, by showing it a conversation in which a tool was called. Where it has no form that can be
read back from text, calls are `<tool_call>{"name": …, "arguments": …}</tool_call>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from myna.engine.errors import InvalidConstraint, InvalidPrompt
from myna.engine.structured.constraint import Constraint, ConstraintKind, json_source, source_of

ANY = ("", "auto", "none")
"""Choices that leave it to the model."""
_ALL = r"(.|\n)*"
_NAME, _OTHER = "mynaProbeOne", "mynaProbeTwo"
_ARGUMENTS = re.compile(r"\{\s*\"mynaKey\"\s*:\s*\"mynaValue\"\s*\}")
_BEFORE = re.compile(r"\{\s*(\"type\":\s*\"function\",\s*)?(\"function\":\s*\{\s*)?\"name\":\s*\"\Z")
_BETWEEN = re.compile(r"\"\s*,\s*\"(arguments|parameters)\":\s*")
_ID = re.compile(r",\s*\"id\":\s*\"mynaId[0-9]{3}\"")

Render = Callable[[list[dict[str, Any]], bool], str]
"""Messages through a chat template; the second argument: with the beginning of the assistant's turn."""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How calls are written: `before` NAME `between` ARGUMENTS, then `after`; or, where a turn may hold several, `join` NAME
    `between` ARGUMENTS before that."""

    before: str = '<tool_call>{"name": "'
    between: str = '", "arguments": '
    after: str = "}</tool_call>"
    join: str | None = '}</tool_call>\n<tool_call>{"name": "'


def form_of(render: Render, end_of_turn: str | None) -> ToolForm:
    """How a template writes calls. `end_of_turn`: the token that ends what the model says."""
    try:
        single = _turn(render, (_NAME,), end_of_turn)
    except InvalidPrompt:
        return ToolForm()
    found = _ARGUMENTS.search(single)
    parts = single[: found.start()].split(_NAME) if found is not None else []
    if found is None or len(parts) != 2 or not _BEFORE.search(parts[0]) or not _BETWEEN.fullmatch(parts[1]):
        return ToolForm()
    before, between = parts
    return ToolForm(before, between, single[found.end() :], _join(render, end_of_turn, before, between))


def _turn(render: Render, names: Sequence[str], end_of_turn: str | None) -> str:
    """What the model says in the turn that makes these calls."""
    calls = [
        {
            "id": f"mynaId{number:03}",
            "type": "function",
            "function": {"name": name, "arguments": {"mynaKey": "mynaValue"}},
        }
        for number, name in enumerate(names)
    ]
    asked = [{"role": "user", "content": "?"}]
    begin = render(asked, True)
    whole = render([*asked, {"role": "assistant", "content": "", "tool_calls": calls}], False)
    if not whole.startswith(begin):
        raise InvalidPrompt("the template begins an answer otherwise than it writes it")
    said = _ID.sub("", whole[len(begin) :])
    return said.split(end_of_turn)[0] if end_of_turn else said.rstrip()


def _join(render: Render, end_of_turn: str | None, before: str, between: str) -> str | None:
    """What stands between the arguments of one call and the name of the next, if there may be a next."""
    try:
        said = _turn(render, (_NAME, _OTHER), end_of_turn)
    except InvalidPrompt:
        return None
    first, *rest = _ARGUMENTS.split(said)
    if first != f"{before}{_NAME}{between}" or len(rest) != 2:
        return None
    join, found, after = rest[0].partition(_OTHER)
    return join if found and after == between else None


def calls_constraint(
    tools: Sequence[Mapping[str, Any]],
    choice: str,
    form: ToolForm,
    *,
    parallel: bool,
    special: Mapping[str, int],
    otherwise: Constraint | None = None,
    words: bool = False,
) -> Constraint:
    """The constraint by which tools, or the one that `choice` names, are called. `special`: control tokens that may stand in the
    form. `otherwise`: the JSON that may stand there instead of calls. `words`: any text may, and before them, in which no call
    begins. Raises InvalidConstraint."""
    functions = [tool.get("function", tool) for tool in tools]
    if choice not in (*ANY, "required"):
        functions = [function for function in functions if function.get("name") == choice]
    if not functions:
        raise InvalidConstraint(f"the choice {choice!r} names no tool")
    join = form.join if parallel else None
    again = f" ({_literal(join, special)} call)*" if join is not None else ""
    lines = ["start: calls" if otherwise is None else f"start: calls | %json {source_of(otherwise)}"]
    before = _literal(form.before, special)
    if words:
        lines, before = _after_words(form.before, special)
    lines += [
        f"calls: {before} call{again} {_literal(form.after, special)}",
        "call: " + " | ".join(f"tool_{number}" for number in range(len(functions))),
    ]
    for number, function in enumerate(functions):
        name = json.dumps(function["name"], ensure_ascii=False)[1:-1]
        head = _literal(f"{name}{form.between}", special)
        lines.append(f"tool_{number}: {head} %json {_arguments(function)}")
    return Constraint(ConstraintKind.GRAMMAR, "\n".join(lines) + "\n")


def _after_words(before: str, special: Mapping[str, int]) -> tuple[list[str], str]:
    """The rules by which calls stand behind any text, or there are none; and how they begin there. A call is told from text by
    the mark before its JSON, or, where a template writes none, by being the first that is said."""
    mark = before[: before.rindex("{")].rstrip(" \n\t[").lstrip()
    mark = next((token for token in special if token in mark), mark)
    if not mark:
        json_ = before.lstrip()
        words = rf"WORDS: /(\s*[^{re.escape(json_[0])}\s]{_ALL})?/"
        return ["start: WORDS | calls", words, r"GAP: /\s+/"], f"GAP? {_literal(json_, {})}"
    rest = before.partition(mark)[2]
    if mark in special:
        return ["start: WORDS? calls?", f"WORDS: /{_ALL[:-1]}+/"], _literal(mark + rest, special)
    found = _ALL + re.escape(mark).replace("/", r"\/") + _ALL
    lines = [
        "start: WORDS | calls",
        f"WORDS: /{_ALL}/ & ~/{found}/",
        f"MARKED: (/{_ALL}/ & ~/{found}/) {_literal(mark, {})}",
    ]
    return lines, f"MARKED {_literal(rest, special)}"


def _arguments(function: Mapping[str, Any]) -> str:
    """What a schema says that can't be kept to is passed over, as everybody does who isn't told to be strict."""
    schema = function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    return json_source({"type": "object", **schema}, lenient=not function.get("strict"))


def _literal(text: str, special: Mapping[str, int]) -> str:
    """A text as a grammar's terms; control tokens are tokens, not text."""
    if not special:
        return json.dumps(text, ensure_ascii=False)
    pattern = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    pieces = re.split(f"({pattern})", text)
    return " ".join(
        f"<[{special[piece]}]>" if piece in special else json.dumps(piece, ensure_ascii=False)
        for piece in pieces
        if piece
    )
