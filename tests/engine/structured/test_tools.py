from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import InvalidConstraint
from myna.engine.prompt import Call, Message, Placeholder, Text, render
from myna.engine.request import Generate, Request, RequestId, Step
from myna.engine.sampling import SamplingParams
from myna.engine.structured.constraint import constraint_of
from myna.engine.structured.grammars import Grammars
from myna.engine.structured.matcher import Matcher
from myna.engine.structured.tools import ToolForm
from myna.engine.tokens import PromptTokenizer
from tests.engine.driving import drain
from tests.engine.hash_model import HashModel
from tests.engine.tiny_tokenizers import CHATML, byte_level

LOOK = {
    "name": "look_up",
    "description": "Finds a word.",
    "parameters": {
        "type": "object",
        "properties": {"word": {"enum": ["fox", "dog"]}, "deep": {"type": "boolean"}},
        "required": ["word"],
        "additionalProperties": False,
    },
}
ROLL = {"name": "roll", "description": "", "parameters": {}}
TOOLS = tuple({"type": "function", "function": function} for function in (LOOK, ROLL))

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SYSTEM = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
CALL = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'

HERMES = SYSTEM + TURN + "{% for c in m.tool_calls or [] %}\n<tool_call>\n" + CALL + "\n</tool_call>{% endfor %}" + END
LLAMA = (
    SYSTEM
    + TURN
    + "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    + "{% set c = m.tool_calls[0] %}"
    + '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endif %}'
    + END
)
MISTRAL = (
    SYSTEM
    + TURN
    + "{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    + CALL.removesuffix("}")
    + ', "id": "{{ c.id }}"}{{ ", " if not loop.last }}{% endfor %}]{% endif %}'
    + END
)
NAMES_OUTSIDE = (
    SYSTEM
    + TURN
    + "{% for c in m.tool_calls or [] %}to={{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    + END
)


def tokenizer(template: str, specials: tuple[str, ...] = ()) -> PromptTokenizer:
    known = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *specials)
    fast = byte_level(known, chat=False)
    fast.chat_template = template
    return PromptTokenizer(fast)


def program(tokens: PromptTokenizer, choice: str, *, parallel: bool = True, **more: Any) -> tuple[Step, ...]:
    sampling = SamplingParams(temperature=4.0, seed=3, max_tokens=400, **more)
    turns = (Message("user", (Text("which?"),)), Message("assistant", (Placeholder(0, sampling),)))
    return render(Call(turns, TOOLS, tool_choice=choice, parallel=parallel), tokens)


def said(tokens: PromptTokenizer, steps: tuple[Step, ...]) -> str:
    size = len(tokens.tokenizer)
    machine = Engine(
        HashModel(vocabulary=size, context_length=2000, eos=2), tokens.tokenizer, EngineConfig(kv_tokens=2000)
    )
    machine.submit(Request(RequestId("r"), steps))
    drained = drain(machine)
    assert not drained.failed
    assert drained.finished["r", 0].reason == "stop"
    return drained.text["r", 0]


def form(template: str) -> ToolForm:
    from myna.engine.prompt import _form

    return _form(Call((), TOOLS), tokenizer(template))


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (
            HERMES,
            ToolForm(
                '<tool_call>\n{"name": "',
                '", "arguments": ',
                "}\n</tool_call>",
                '}\n</tool_call><tool_call>\n{"name": "',
            ),
        ),
        (LLAMA, ToolForm('{"name": "', '", "parameters": ', "}", None)),
        (MISTRAL, ToolForm('[TOOL_CALLS] [{"name": "', '", "arguments": ', "}]", '}, {"name": "')),
        (CHATML, ToolForm()),
        (NAMES_OUTSIDE, ToolForm()),
    ],
    ids=["hermes", "llama", "mistral", "no tools", "names outside of JSON"],
)
def test_the_form_of_calls_is_read_off_the_template(template: str, wanted: ToolForm) -> None:
    assert form(template) == wanted


@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, CHATML], ids=["hermes", "llama", "mistral", "no tools"])
@pytest.mark.parametrize("choice", ["required", "look_up"])
def test_a_forced_call_is_written_in_that_form_with_valid_arguments(template: str, choice: str) -> None:
    tokens = tokenizer(template)
    text = said(tokens, program(tokens, choice, parallel=False))
    wanted = form(template)
    assert text.startswith(wanted.before)
    assert text.endswith(wanted.after)
    call = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert call["name"] == "look_up" if choice == "look_up" else call["name"] in ("look_up", "roll")
    arguments = call.get("arguments", call.get("parameters"))
    if call["name"] == "look_up":
        jsonschema.validate(arguments, LOOK["parameters"])
    else:
        assert arguments == {}, "a function without parameters takes none"


def test_a_mark_that_is_a_control_token_is_drawn_as_that_token() -> None:
    tokens = tokenizer(MISTRAL, ("[TOOL_CALLS]",))
    text = said(tokens, program(tokens, "look_up", parallel=False))
    assert text.lstrip().startswith('[{"name": "look_up"'), "control tokens are no text"


def test_several_calls_are_made_only_where_they_may_be() -> None:
    tokens = tokenizer(CHATML)
    counts = set()
    for seed in range(8):
        steps = program(tokens, "required")
        last = steps[-1]
        assert isinstance(last, Generate)
        drawn = replace(last, sampling=replace(last.sampling, seed=seed, temperature=50.0, max_tokens=900))
        counts.add(said(tokens, (*steps[:-1], drawn)).count("<tool_call>"))
    assert max(counts) > 1
    assert said(tokens, program(tokens, "required", parallel=False)).count("<tool_call>") == 1


def test_left_to_the_model_an_output_with_a_format_has_it_or_calls() -> None:
    tokens = tokenizer(CHATML)
    seen = set()
    for seed in range(12):
        answer = constraint_of("json_schema", {"type": "array", "items": {"type": "integer"}, "maxItems": 1})
        steps = program(tokens, "", parallel=False, constraint=answer)
        last = steps[-1]
        assert isinstance(last, Generate)
        text = said(tokens, (*steps[:-1], replace(last, sampling=replace(last.sampling, seed=seed, temperature=50.0))))
        seen.add(text[0])
        assert text.startswith("<tool_call>") or isinstance(json.loads(text), list)
    assert seen == {"<", "["}


@pytest.mark.parametrize("choice", ["", "auto", "none"])
def test_left_to_the_model_it_says_what_it_likes(choice: str) -> None:
    last = program(tokenizer(CHATML), choice)[-1]
    assert isinstance(last, Generate)
    assert last.sampling.constraint is None


STRICT = tuple({**tool, "function": {**LOOK, "strict": True}} for tool in TOOLS[:1])


def left_to_the_model(tokens: PromptTokenizer, *tools: dict[str, Any]) -> Matcher:
    """What may be said where the model chooses."""
    turns = (Message("user", (Text("?"),)), Message("assistant", (Placeholder(0, SamplingParams()),)))
    last = render(Call(turns, tools), tokens)[-1]
    assert isinstance(last, Generate)
    assert last.sampling.constraint is not None
    grammars = Grammars(tokens.tokenizer, len(tokens.tokenizer), frozenset())
    return grammars.compile(last.sampling.constraint).result().matcher(frozenset())


@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL, CHATML], ids=["hermes", "llama", "mistral", "no tools"])
def test_left_to_the_model_a_strict_tool_is_called_with_valid_arguments_or_not_at_all(template: str) -> None:
    matcher, wanted = left_to_the_model(tokenizer(template), *STRICT), form(template)
    right, wrong = (
        f"{wanted.before}look_up{wanted.between}{arguments}{wanted.after}"
        for arguments in ('{"word": "fox"}', '{"word": "cat"}')
    )
    for text in ("", "no need", "a { b [ c <tool", right, f"\n{right}"):
        assert matcher.accepts_text(text), text
    for text in (wrong, f"\n{wrong}", right[:-5]):
        assert not matcher.accepts_text(text), text
    if template is not LLAMA:  # which has no mark: there a call is all that is said
        assert matcher.accepts_text(f"let me look. {right}")
        assert not matcher.accepts_text(f"let me look. {wrong}")


def test_a_strict_call_is_told_by_the_control_token_that_marks_it() -> None:
    tokens, wanted = tokenizer(MISTRAL, ("[TOOL_CALLS]",)), form(MISTRAL)
    matcher = left_to_the_model(tokens, *STRICT)
    encode = tokens.tokenizer.encode
    call = wanted.before.removeprefix("[TOOL_CALLS]") + "look_up" + wanted.between
    said = [*encode("so: "), tokens.special["[TOOL_CALLS]"], *encode(call)]
    for place, token in enumerate(said):
        assert matcher.allows(token), tokens.tokenizer.decode(said[: place + 1])
        matcher.take(place, token)
    assert not matcher.allows(encode("x")[0])


def test_a_strict_schema_that_cant_be_kept_to_is_refused() -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"not": {}}, "strict": True}}
    with pytest.raises(InvalidConstraint, match="not"):
        left_to_the_model(tokenizer(CHATML), odd)


def test_a_choice_that_names_no_tool_is_refused() -> None:
    with pytest.raises(InvalidConstraint, match="names no tool"):
        program(tokenizer(CHATML), "drop_tables")
