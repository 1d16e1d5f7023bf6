"""Outputs with constraints, drawn by an engine from a model that means nothing: only the grammar keeps them in form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import ConstraintFailed, InvalidConstraint, InvalidSampling
from myna.engine.interface import BatchLimits
from myna.engine.request import Failed, Fill, FinishReason, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from myna.engine.structured.constraint import Constraint, ConstraintKind, constraint_of
from myna.engine.structured.grammars import Grammars
from tests.engine.driving import Said, ask, drain
from tests.engine.hash_model import HashModel
from tests.engine.tiny_tokenizers import byte_level

EOS = 2
PROMPT = (40, 41, 42)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["bird", "cat"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def engine(ahead: int = 0, *, pages: int = 400) -> Engine:
    model = HashModel(vocabulary=len(byte_level()), context_length=800, eos=EOS, ahead=ahead)
    config = EngineConfig(page_size=4, kv_tokens=4 * pages, limits=BatchLimits(6, 32), checks=True)
    return Engine(model, byte_level(), config)


def drawn(constraint: Constraint | None, **settings: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 3.0, "seed": 1, "max_tokens": 300, "constraint": constraint, **settings})


def schema(definition: dict[str, Any]) -> Constraint:
    return constraint_of("json_schema", definition)


def run(sampling: SamplingParams, machine: Engine | None = None) -> tuple[str, FinishReason]:
    said = drain_all(machine or engine(), ask("r", PROMPT, sampling))
    if said.failed:
        raise said.failed["r"]
    return said.text["r", 0], said.finished["r", 0].reason


def drain_all(machine: Engine, *requests: Request) -> Said:
    for request in requests:
        machine.submit(request)
    return drain(machine, most=20_000)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        (constraint_of("regex", "(ab|c){2,5}[0-9]"), lambda text: re.fullmatch("(ab|c){2,5}[0-9]", text)),
        (constraint_of("choice", ["yes", "no", "yes, but", 'a "quoted" \\ one']), lambda text: text in CHOICES),
        (constraint_of("choice", ["你好，世界", "🙂🙃", "naïve"]), lambda text: text in ("你好，世界", "🙂🙃", "naïve")),
        (constraint_of("grammar", 'start: "a" (NUMBER ",")~2 "z"\nNUMBER: /[0-9]{1,3}/'), re.compile(r"a(\d+,){2}z").fullmatch),
        (constraint_of("grammar", 'root ::= ("up" | "down") "!"\n'), lambda text: text in ("up!", "down!")),
        (schema(PERSON), lambda text: jsonschema.validate(json.loads(text), PERSON) is None),
    ],
    ids=["regex", "choice", "choice of halves of characters", "lark", "gbnf", "schema"],
)  # fmt: skip
def test_what_is_drawn_obeys(constraint: Constraint, holds: Any, temperature: float) -> None:
    text, reason = run(drawn(constraint, temperature=temperature))
    assert reason is FinishReason.STOP
    assert holds(text), text


CHOICES = ("yes", "no", "yes, but", 'a "quoted" \\ one')


def test_a_json_object_is_one_or_is_said_to_be_cut() -> None:
    for seed in range(5):
        text, reason = run(drawn(constraint_of("json_object", None), seed=seed, max_tokens=80))
        if reason is FinishReason.STOP:
            assert isinstance(json.loads(text), dict)
        else:
            assert reason is FinishReason.TRUNCATED


# --- random schemas ---

SCALARS = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -5, "maximum": 99},
        {"type": "number", "minimum": 0, "maximum": 10},
        {"type": "string", "maxLength": 4},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
        {"enum": [1, "two", None, [3]]},
        {"const": {"a": 1}},
    ]
)


def wider(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", 'q"', "ü"])
    objects = st.dictionaries(names, inner, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties) or ["a"])).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & properties.keys()),
                "additionalProperties": False,
            }
        )
    )
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": least + 1},
        inner,
        st.integers(0, 2),
    )
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return objects | arrays | choices


@settings(max_examples=40, deadline=None)
@given(schemas=st.lists(st.recursive(SCALARS, wider, max_leaves=6), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_every_output_of_a_batch_is_valid_by_its_own_schema_pipelined_or_not(
    schemas: list[dict[str, Any]], seed: int
) -> None:
    requests = [ask(f"r{i}", PROMPT, drawn(schema(s), seed=seed + i, n=1 + i)) for i, s in enumerate(schemas)]
    requests.append(ask("free", PROMPT, drawn(None, seed=seed, max_tokens=20)))
    plain, ahead = (drain_all(engine(k, pages=900), *requests) for k in (0, 1))
    assert not plain.failed
    assert (plain.text, plain.tokens) == (ahead.text, ahead.tokens)
    for (name, output), finished in plain.finished.items():
        if name != "free" and finished.reason is not FinishReason.TRUNCATED:
            jsonschema.validate(json.loads(plain.text[name, output]), schemas[int(name[1:])])


# --- ends ---


def test_it_ends_where_nothing_can_follow_without_a_stop_token() -> None:
    machine = engine()
    said = drain_all(machine, ask("r", PROMPT, drawn(constraint_of("regex", "[0-9]{4}"), min_tokens=50)))
    assert said.finished["r", 0].reason is FinishReason.STOP
    assert said.finished["r", 0].usage.output_tokens == len(said.tokens["r", 0]) == 4


def test_a_cut_that_leaves_a_whole_text_is_an_ordinary_one() -> None:
    assert run(drawn(constraint_of("regex", "[a-z]+"), max_tokens=5, min_tokens=5))[1] is FinishReason.LENGTH
    assert run(drawn(constraint_of("regex", "[a-z]{40}"), max_tokens=5))[1] is FinishReason.TRUNCATED


@pytest.mark.parametrize(("stop", "reason"), [("b", FinishReason.TRUNCATED), ("c", FinishReason.STOP)])
def test_a_stop_string_may_not_cut_what_must_be_whole(stop: str, reason: FinishReason) -> None:
    assert run(drawn(constraint_of("choice", ["abc"]), stop=(stop,)))[1] is FinishReason.TRUNCATED
    text, ended = run(drawn(constraint_of("grammar", 'start: "ab" ("c" "d"*)?'), stop=(stop,), min_tokens=0))
    assert ended is reason or text == "ab"


def test_a_stop_token_of_ones_own_comes_only_where_the_text_is_whole() -> None:
    comma = byte_level()(",", add_special_tokens=False)["input_ids"][0]
    for seed in range(6):
        said = drain_all(
            engine(),
            ask("r", PROMPT, drawn(constraint_of("regex", "[a-z]{3}[a-z,]*"), stop_token_ids=(comma,), seed=seed)),
        )
        assert said.finished["r", 0].reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert re.fullmatch("[a-z]{3}[a-z]*", said.text["r", 0])


def test_a_min_tokens_that_the_grammar_leaves_open_is_kept_to() -> None:
    text, _ = run(drawn(constraint_of("regex", "[a-z]*"), min_tokens=30, max_tokens=60))
    assert len(byte_level()(text)["input_ids"]) <= 60
    assert len(text) >= 30


# --- what runs beside, and after ---


def test_log_probabilities_are_the_models_own() -> None:
    said = drain_all(engine(), ask("r", PROMPT, drawn(constraint_of("regex", "[0-9]{3}"), logprobs=3, temperature=0)))
    own = [p for delta in said.deltas for p in delta.logprobs]
    assert len(own) == 3
    assert all(value > -20 for p in own for _, value in p.alternatives), "forbidden tokens would be infinitely unlikely"


def test_a_replayed_output_goes_on_as_it_would_have() -> None:
    sampling = drawn(schema(PERSON))
    whole = drain_all(engine(), ask("r", PROMPT, sampling))
    tokens = whole.tokens["r", 0]
    for published in (1, len(tokens) // 2, len(tokens) - 1, len(tokens)):
        steps = (Fill(PROMPT), Generate(0, sampling, (tuple(tokens[:published]),)))
        again = drain_all(engine(1), Request(RequestId("r"), steps))
        assert again.tokens["r", 0] == tokens[published:]
        assert again.finished["r", 0].reason is whole.finished["r", 0].reason


def test_outputs_of_one_program_each_keep_to_their_own() -> None:
    first, second = constraint_of("choice", ["alpha", "beta"]), constraint_of("regex", "[0-9]{2}")
    steps = (Fill(PROMPT), Generate(0, drawn(first)), Fill((50, 51)), Generate(1, drawn(second)))
    said = drain_all(engine(1), Request(RequestId("r"), steps))
    assert said.text["r", 0] in ("alpha", "beta")
    assert re.fullmatch("[0-9]{2}", said.text["r", 1])


def test_a_preempted_output_keeps_to_its_grammar() -> None:
    machine = engine(1, pages=30)
    pattern = "([a-z]{2}[0-9]){25}"
    requests = [ask(f"r{i}", [40 + i, 50, 60], drawn(constraint_of("regex", pattern), seed=i)) for i in range(4)]
    said = drain_all(machine, *requests)
    assert machine.stats().preemptions > 0
    assert all(re.fullmatch(pattern, said.text[f"r{i}", 0]) for i in range(4))


def test_in_an_open_context_requests_come_in_their_order() -> None:
    machine = engine()
    context = machine.open_context()
    machine.fill(context, PROMPT)
    first = machine.generate(context, drawn(constraint_of("regex", "[0-9]{2}")))
    second = machine.generate(context, drawn(None, max_tokens=2, ignore_eos=True))
    said = drain(machine)
    assert said.done.index(first) < said.done.index(second)
    machine.free(context)


def test_a_request_that_is_cancelled_while_its_grammar_is_compiled_leaves_nothing_behind() -> None:
    machine = engine()
    machine.submit(ask("r", PROMPT, drawn(schema({"enum": [f"word {i}" for i in range(1500)]}))))
    machine.cancel(RequestId("r"))
    assert [event for event in machine.step() if isinstance(event, Failed)]
    assert not machine.has_work


# --- hostile and mistaken ---


def bad() -> Iterator[tuple[str, Any, str]]:
    yield "json_schema", {"type": "foo"}, "foo"
    yield "json_schema", {"type": "object", "if": {}, "not": {}}, "if"
    yield "json_schema", {"$ref": "#/nowhere"}, "nowhere"
    yield "json_schema", {"$ref": "http://example.com/x"}, "example.com"
    yield "json_schema", {"type": "integer", "minimum": 5, "maximum": 4}, "minimum"
    yield "json_schema", {"if": {}, "x-guidance": {"lenient": True}}, "if"
    yield "json_schema", {"type": "integer", "minimum": 10**400}, "can't be followed"
    yield "json_schema", nested({"type": "integer"}, 300), "recursion"
    yield "json_schema", {"allOf": [{"anyOf": [one_of(i, j) for j in range(4)]} for i in range(9)]}, "large"
    yield "regex", "(a", "unclosed"
    yield "regex", "(?<=a)b", "look-around"
    yield "grammar", "start: nowhere", "nowhere"
    yield "grammar", "root ::= (", ""


def nested(inner: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        inner = {"type": "array", "items": inner}
    return inner


def one_of(i: int, j: int) -> dict[str, Any]:
    return {"properties": {f"p{i}_{j}": {"type": "string"}}}


def test_a_definition_that_cannot_be_followed_fails_its_request_alone_and_says_why() -> None:
    machine = engine()
    cases = list(bad())
    requests = [ask(f"r{i}", PROMPT, drawn(constraint_of(kind, it))) for i, (kind, it, _) in enumerate(cases)]
    said = drain_all(machine, *requests, ask("good", PROMPT, drawn(constraint_of("regex", "[0-9]"))))
    assert re.fullmatch("[0-9]", said.text["good", 0])
    for request in requests:
        error = said.failed[request.id]
        assert isinstance(error, InvalidConstraint)
        assert cases[int(request.id[1:])][2] in str(error)


@pytest.mark.parametrize(
    ("kind", "definition", "says"),
    [
        ("poem", None, "kind"),
        ("json_schema", "{}", "object"),
        ("json_schema", {"a": {1, 2}}, "JSON"),
        ("regex", "", "empty"),
        ("choice", [], "list"),
        ("choice", ["a", 1], "texts"),
        ("grammar", 5, "text"),
        ("regex", "a" * 70_000, "longer"),
    ],
)
def test_what_is_no_definition_is_refused_when_it_is_made(kind: str, definition: Any, says: str) -> None:
    with pytest.raises(InvalidConstraint, match=says):
        constraint_of(kind, definition)


def test_a_grammar_without_any_text_fails_and_does_not_hang() -> None:
    with pytest.raises(ConstraintFailed):
        run(drawn(constraint_of("grammar", 'start: a\na: a "x"')))


@pytest.mark.parametrize(
    "pattern", ["((((a{1,100}){1,100}){1,100}){1,100}){1,100}", "(a|a)*(a|aa)*b", ".*a.{200}b", r"\w{1,1000}"]
)
def test_patterns_that_explode_elsewhere_are_followed_or_refused(pattern: str) -> None:
    try:
        run(drawn(constraint_of("regex", pattern), max_tokens=40))
    except InvalidConstraint:
        return


def test_a_format_and_ignore_eos_contradict_each_other() -> None:
    with pytest.raises(InvalidSampling, match="ignore_eos"):
        SamplingParams(ignore_eos=True, constraint=Constraint(ConstraintKind.JSON_OBJECT))


def test_the_same_constraint_is_compiled_once() -> None:
    machine = engine()
    shaped = ask("a", PROMPT, drawn(schema(PERSON)))
    machine.submit(shaped)
    drain(machine)
    machine.submit(ask("b", PROMPT, drawn(schema(PERSON))))
    assert machine.stats().waiting == 1, "it had to wait for its grammar again"
    drain(machine)


@pytest.mark.parametrize(("pattern", "narrow"), [("[a-z]{3}", False), ("[0-9]{3}", True), ("(yes|no)", True)])
def test_a_letter_tells_whether_little_may_come_next(pattern: str, narrow: bool) -> None:
    grammars = Grammars(byte_level(), len(byte_level()), frozenset({EOS}))
    matcher = grammars.compile(constraint_of("regex", pattern)).result().matcher(frozenset({EOS}))
    assert matcher.narrow() is narrow


def test_where_a_text_has_ended_nothing_is_narrow() -> None:
    grammars = Grammars(byte_level(), len(byte_level()), frozenset({EOS}))
    matcher = grammars.compile(constraint_of("regex", "[0-9]?")).result().matcher(frozenset({EOS}))
    assert matcher.narrow()
    matcher.take(0, EOS)
    assert not matcher.narrow()
