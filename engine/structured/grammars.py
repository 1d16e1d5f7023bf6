"""Compiles constraints to grammars over a tokenizer's vocabulary, through llguidance, in threads of its own.

Law: compiling holds up no step. It is bounded in time and memory: by the length of definitions, and by the library's limits.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, assert_never

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from myna.engine.errors import InvalidConstraint
from myna.engine.structured.constraint import Constraint, ConstraintKind, source_of
from myna.engine.structured.matcher import Matcher

_KEPT = 256
"""Compiled grammars that are kept for those who come with the same."""
_LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=100_000, verbose_errors=False)
_MESSAGE = 400


class Grammar:
    """A constraint, compiled."""

    def __init__(self, machine: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._machine = machine
        self._tokenizer = tokenizer

    def matcher(self, stops: frozenset[int]) -> Matcher:
        """A new matcher at the beginning of a text. `stops`: the tokens that end it."""
        return Matcher(self._machine, self._tokenizer, stops)


class Grammars:
    """The grammars of one engine. `tokenizer`: a Hugging Face tokenizer; `vocabulary`: tokens that the model's logits have."""

    def __init__(self, tokenizer: Any, vocabulary: int, stops: frozenset[int]) -> None:
        self._hugging_face = tokenizer
        self._vocabulary = vocabulary
        self._stops = stops
        self._compiled: OrderedDict[Constraint, Future[Grammar]] = OrderedDict()

    def compile(self, constraint: Constraint) -> Future[Grammar]:
        """The constraint's grammar, now or soon. The future's error is an InvalidConstraint."""
        found = self._compiled.get(constraint)
        if found is None or found.cancelled():
            found = self._compiled[constraint] = self._threads.submit(self._compile, constraint)
        self._compiled.move_to_end(constraint)
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return found

    def prepare(self) -> None:
        """Read the tokenizer's vocabulary: it takes up to a second, and would hold a step up. Raises InvalidConstraint."""
        _ = self._tokenizer

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(2, "myna-grammars")

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        backend = getattr(self._hugging_face, "backend_tokenizer", None)
        if backend is None:
            raise InvalidConstraint("the model's tokenizer has no fast form, without which no format can be followed")
        try:
            # Whatever the grammar's end is to the library: which tokens end an output, its matcher knows.
            return LLTokenizer(backend.to_str(), n_vocab=self._vocabulary, eos_token=sorted(self._stops) or None)
        except Exception as error:  # the library raises what it likes
            raise InvalidConstraint(f"no format can be followed with the model's tokenizer: {error}") from error

    def _compile(self, constraint: Constraint) -> Grammar:
        try:
            machine = LLMatcher(self._tokenizer, _source(constraint), log_level=0, limits=_LIMITS)
        except InvalidConstraint:
            raise
        except Exception as error:  # what no reading of the definition foresaw; it concerns its request alone
            raise InvalidConstraint(f"the {constraint.kind} can't be followed: {_short(error)}") from error
        if machine.is_error():
            raise InvalidConstraint(f"the {constraint.kind} can't be followed: {_short(machine.get_error())}")
        return Grammar(machine, self._tokenizer)


def _source(constraint: Constraint) -> str:
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT | ConstraintKind.JSON_SCHEMA:
            return grammar_from("json_schema", source_of(constraint))
        case ConstraintKind.REGEX:
            return grammar_from("regex", constraint.definition)
        case ConstraintKind.CHOICE:
            return grammar_from("choice", constraint.definition)
        case ConstraintKind.GRAMMAR:
            return grammar_from("grammar", constraint.definition)
        case _:
            assert_never(constraint.kind)


def _short(error: object) -> str:
    text = str(error).strip()
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]} …"
