"""The two applications of the showcase, written once for both kinds of caller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import myna
from myna.sdk.examples._callers import Application, Calls, Result
from myna.sdk.examples._common import GREEDY
from myna.sdk.examples.map_reduce import join, note


@dataclass(frozen=True, slots=True)
class Named:
    """An application with its name and how many calls it makes."""

    name: str
    application: Application
    calls: int


# --- Map-reduce summary -----------------------------------------------------------------------------------------------


def map_reduce(parts: Sequence[str]) -> Named:
    """A sentence on each of `parts`, side by side, then a paragraph made of the sentences."""

    def application(calls: Calls) -> Sequence[Result]:
        notes = [calls.call(f"note {n}", note, part=part) for n, part in enumerate(parts, start=1)]
        return [calls.call("join", join, notes=notes)]

    return Named("map-reduce", application, len(parts) + 1)


# --- Writer, teacher, editor, and a native check ----------------------------------------------------------------------


@myna.function
def draft(text: myna.Input, explanation: Annotated[str, myna.Output(max_tokens=40, **GREEDY)]) -> None:
    """
    {{#user}}
    Text:
    {{text}}

    You are the writer. Explain to a beginner what this text is about, in two short sentences.
    {{/user}}
    {{#assistant}}{{explanation}}{{/assistant}}
    """


@myna.agent
def overlooked(text: str, explanation: str) -> str:
    """The sentence of `text` with the most terms that `explanation` does not mention."""
    said = set(_terms(explanation))
    return max(_sentences(text), key=lambda sentence: len(set(_terms(sentence)) - said), default="nothing")


def _sentences(text: str) -> list[str]:
    """Whole sentences of moderate length; no headings, grammar or code."""
    prose = [p for p in text.split("\n\n") if not re.search(r"::=|\*\*\*|>>>|^ {3}", p)]
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z\"])", " ".join(" ".join(prose).split()))
    return [s for s in sentences if 30 < len(s) < 220]


def _terms(text: str) -> list[str]:
    return re.findall(r"[a-z_]{4,}", text.lower())


@myna.function
def teach(sentence: myna.Input, meaning: Annotated[str, myna.Output(max_tokens=28, **GREEDY)]) -> None:
    """
    {{#user}}
    A sentence of the Python documentation:
    {{sentence}}

    You are the teacher. Say in simpler words, in one short sentence, what it means.
    {{/user}}
    {{#assistant}}It means that{{meaning}}{{/assistant}}
    """


@myna.function
def edit(
    text: myna.Input,
    explanation: myna.Input,
    meaning: myna.Input,
    better: Annotated[str, myna.Output(max_tokens=64, **GREEDY)],
) -> None:
    """
    {{#user}}
    Text:
    {{text}}

    You are the editor. A writer and a teacher explain the text:
    {{explanation}}
    This means that{{meaning}}

    Write their explanations as one short text for a beginner.
    {{/user}}
    {{#assistant}}{{better}}{{/assistant}}
    """


def team(texts: Sequence[str]) -> Named:
    """Each text explained by a writer; what a function finds missing is added by a teacher, and both are joined by an editor."""

    def application(calls: Calls) -> Sequence[Result]:
        return [explained(calls, number, text) for number, text in enumerate(texts, start=1)]

    return Named("three roles", application, 4 * len(texts))


def explained(calls: Calls, number: int, text: str) -> Result:
    """The way of one text through the team."""
    explanation = calls.call(f"draft {number}", draft, text=text)
    sentence = calls.call(f"check {number}", overlooked, text=text, explanation=explanation)
    meaning = calls.call(f"teach {number}", teach, sentence=sentence)
    return calls.call(f"edit {number}", edit, text=text, explanation=explanation, meaning=meaning)
