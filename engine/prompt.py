"""Renders a call to a program of fills and generates. A piece of text becomes the same tokens whoever asks, and BOS
stands once, at the start.

Nothing from outside is ever inside the string that a chat template makes or that control tokens are read from: the
template sees placeholders, and the text is tokenized apart, as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from myna.engine.errors import InvalidPrompt
from myna.engine.request import Fill, Generate, Step
from myna.engine.sampling import SamplingParams
from myna.engine.structured import tools as tool_calls
from myna.engine.structured.tools import ToolForm
from myna.engine.tokens import PromptTokenizer

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is given: a constant of the prompt or the value of a variable. Both are plain text to the model. `token_ids`: as
    which a model with this tokenizer drew it, if one did: used where they are this very text."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where an output is generated. `forced_token_ids`: for each sibling what an earlier attempt has published."""

    index: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    forced_token_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """An output that an earlier attempt has completed, as the tokens that it drew."""

    token_ids: tuple[int, ...]


Segment: TypeAlias = Text | Placeholder | Tokens


@dataclass(frozen=True, slots=True)
class Message:
    """A part of a conversation, or, without a role, a plain prompt. `fields` go to the chat template beside role and content:
    `tool_calls`, `tool_call_id`, `name`."""

    role: str | None
    segments: tuple[Segment, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be rendered. `tools` (JSON schemas) and `template_arguments` go to the chat template as they are. `tool_choice`:
    "required", or a tool's name: then the last output calls it, or, if `parallel`, them."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    tool_choice: str = ""
    parallel: bool = True


def render(call: Call, tokenizer: PromptTokenizer, *, prefix: bool = False) -> tuple[Step, ...]:
    """The program of a call. Raises InvalidPrompt and InvalidConstraint.

    Without roles the messages' segments follow each other. With roles the model's chat template is asked for all
    messages but the last, and for the beginning of the assistant's turn; the last message must be the assistant's, and
    its segments follow: a text that it begins with is put into the model's mouth. Earlier messages may hold outputs
    too. A model without a template gets lines of the form `role: text`. Text behind the last output is left out.
    `prefix`: render what can be filled before the first output, which needn't exist.
    """
    roles = [message.role for message in call.messages]
    if any(role is None for role in roles) and any(role is not None for role in roles):
        raise InvalidPrompt("either every message of a call has a role or none has")
    segments = [segment for message in call.messages for segment in message.segments]
    if not prefix and not any(isinstance(segment, Placeholder) for segment in segments):
        raise InvalidPrompt("the call has no output")
    steps = _Steps(tokenizer)
    if not call.messages or call.messages[0].role is None:
        steps.extend(segments)
    else:
        steps.extend(_conversation(call, tokenizer, prefix))
    program = steps.program(prefix)
    if prefix or not call.tools or call.tool_choice == "none":
        return program
    return _calling(program, call, tokenizer)


@dataclass(frozen=True, slots=True)
class _Literal:
    """A chat template's own text."""

    text: str


class _Steps:
    """Collects token ids and outputs."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self._tokenizer = tokenizer
        self._steps: list[Step] = []
        self._ids: list[int] = [] if tokenizer.bos is None else [tokenizer.bos]
        self._first = True

    def extend(self, pieces: Sequence[Segment | _Literal]) -> None:
        for piece in pieces:
            match piece:
                case Text(text, token_ids):
                    self._add(self._tokenizer.drawn(text, token_ids, first=self._first), text)
                case _Literal(text):
                    ids = self._tokenizer.literal(text, first=self._first)
                    written = self._first and self._tokenizer.bos is not None and ids[:1] == (self._tokenizer.bos,)
                    self._add(ids[1:] if written else ids, text)
                case Tokens(token_ids):
                    self._ids += token_ids
                    self._first = False
                case Placeholder(index, sampling, forced):
                    self._flush()
                    self._steps.append(Generate(index, sampling, forced))
                    self._first = False

    def program(self, prefix: bool) -> tuple[Step, ...]:
        """All steps up to the last output, or, of a prefix, the fill before the first."""
        if prefix:
            self._flush()
            return tuple(self._steps[:1]) if self._steps and isinstance(self._steps[0], Fill) else ()
        return tuple(self._steps)

    def _add(self, ids: Sequence[int], text: str) -> None:
        self._ids += ids
        self._first = self._first and not text

    def _flush(self) -> None:
        if self._ids:
            self._steps.append(Fill(tuple(self._ids)))
            self._ids = []


def _conversation(call: Call, tokenizer: PromptTokenizer, prefix: bool) -> list[Segment | _Literal]:
    for message in call.messages:
        if _ROLE.fullmatch(message.role or "") is None:
            raise InvalidPrompt(f"{message.role!r} is no role: a role is a word of letters, digits, - and _")
        if message.role != "assistant" and any(_generated(segment) for segment in message.segments):
            raise InvalidPrompt(f"only the assistant's messages can hold an output, not the {message.role}'s")
    last = call.messages[-1]
    asks = last.role == "assistant" and any(_generated(segment) for segment in last.segments)
    if not asks and not prefix:
        raise InvalidPrompt("the last message of a conversation must be the assistant's and hold an output")
    history: Sequence[Message] = call.messages[:-1] if asks else call.messages
    pieces: list[Segment | _Literal] = []
    if call.tools and not _knows_tools(call, tokenizer):
        history = _tools_as_text(history, call.tools)
        call = replace(call, tools=())
    if tokenizer.tokenizer.chat_template is None:
        pieces += _lines(history)
        pieces += [_Literal("assistant:")] if asks else []
    else:
        pieces += _templated(history, call, tokenizer, opens=asks)
    return [*pieces, *last.segments] if asks else pieces


def _generated(segment: Segment) -> bool:
    return isinstance(segment, Placeholder | Tokens)


def _lines(history: Sequence[Message]) -> list[Segment | _Literal]:
    pieces: list[Segment | _Literal] = []
    for message in history:
        pieces += [_Literal(f"{message.role}: "), *message.segments, _Literal("\n")]
    return pieces


def _templated(
    history: Sequence[Message], call: Call, tokenizer: PromptTokenizer, *, opens: bool
) -> list[Segment | _Literal]:
    """The history through the chat template, with a mark for every segment, cut at the marks."""
    given = _given(call, history, tokenizer)
    marks = _Marks(given + str(tokenizer.tokenizer.chat_template))
    messages = [
        {**message.fields, "role": message.role, "content": "".join(marks.add(s) for s in message.segments)}
        for message in history
    ]
    return marks.split(_apply(messages, call, tokenizer, opens=opens))


def _apply(messages: list[dict[str, Any]], call: Call, tokenizer: PromptTokenizer, *, opens: bool) -> str:
    try:
        text = tokenizer.tokenizer.apply_chat_template(
            messages,
            tools=[dict(tool) for tool in call.tools] or None,
            tokenize=False,
            add_generation_prompt=opens,
            **call.template_arguments,
        )
    except Exception as error:  # a template is the model maker's program and may raise whatever it likes
        raise InvalidPrompt(f"the model's chat template refuses the messages: {error}") from error
    return str(text)


def _calling(program: tuple[Step, ...], call: Call, tokenizer: PromptTokenizer) -> tuple[Step, ...]:
    """The same program; its last output calls a tool, or may call one beside having its format."""
    *before, last = program
    assert isinstance(last, Generate), "a program ends with its last output"
    otherwise = None
    words = False
    if call.tool_choice in tool_calls.ANY:
        otherwise = last.sampling.constraint
        words = otherwise is None and any(tool.get("function", tool).get("strict") for tool in call.tools)
        if not words and (otherwise is None or not otherwise.is_json):
            return program
    constraint = tool_calls.calls_constraint(
        call.tools,
        call.tool_choice,
        _form(call, tokenizer),
        parallel=call.parallel,
        special=tokenizer.special,
        otherwise=otherwise,
        words=words,
    )
    return *before, replace(last, sampling=replace(last.sampling, constraint=constraint))


def _form(call: Call, tokenizer: PromptTokenizer) -> ToolForm:
    """How the model writes calls: as its template does, or as `_TOOLS` tells it."""
    if not _knows_tools(call, tokenizer):
        return ToolForm()
    return tool_calls.form_of(
        lambda messages, opens: _apply(messages, call, tokenizer, opens=opens), tokenizer.tokenizer.eos_token
    )


_TOOLS = """You can call these functions, each described by a JSON schema:
{schemas}
To call one, answer only with <tool_call>{{"name": its name, "arguments": its arguments as an object}}</tool_call>."""


def _knows_tools(call: Call, tokenizer: PromptTokenizer) -> bool:
    """Whether the model's chat template writes tools into the prompt: many leave them out without a word."""
    if tokenizer.tokenizer.chat_template is None:
        return False
    asked = [{"role": "user", "content": "?"}]
    try:
        bare = _apply(asked, replace(call, tools=()), tokenizer, opens=True)
    except InvalidPrompt:
        return True  # it can't do without
    return _apply(asked, call, tokenizer, opens=True) != bare


def _tools_as_text(history: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Tools for a template without a place for them: told in the system's message; earlier calls as the text that makes one."""
    schemas = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    told = Text(_TOOLS.format(schemas=schemas))
    messages = [_calls_as_text(message) for message in history]
    if messages and messages[0].role == "system":
        return [replace(messages[0], segments=(*messages[0].segments, Text("\n\n"), told)), *messages[1:]]
    return [Message("system", (told,)), *messages]


def _calls_as_text(message: Message) -> Message:
    calls = message.fields.get("tool_calls") or ()
    made = [json.dumps(call.get("function", call), ensure_ascii=False) for call in calls if isinstance(call, Mapping)]
    return replace(message, segments=(*message.segments, *(Text(f"<tool_call>{text}</tool_call>") for text in made)))


def _given(call: Call, history: Sequence[Message], tokenizer: PromptTokenizer) -> str:
    """Tools, arguments and fields as JSON. They stand inside the rendered string, so they may not spell a control token."""
    everything = [list(call.tools), dict(call.template_arguments), [dict(message.fields) for message in history]]
    try:
        given = json.dumps(everything, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidPrompt(f"tools and template arguments must be JSON: {error}") from error
    reserved = {"tools", "tokenize", "add_generation_prompt", "continue_final_message", "conversation", "chat_template"}
    if taken := reserved.intersection(call.template_arguments):
        raise InvalidPrompt(f"a template argument can't be called {min(taken)!r}")
    for text in _strings(everything):
        for control in tokenizer.control_texts:
            if control in text:
                raise InvalidPrompt(f"a tool, tool call or argument holds {control!r}, a control token of the model")
    return given


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


class _Marks:
    """Placeholders for segments in a string that a template makes; `avoid` is all else that the string may hold."""

    def __init__(self, avoid: str) -> None:
        number = 0
        while (word := f"MYNA{number}S") in avoid:
            number += 1
        self._word = word
        self._segments: list[Segment] = []

    def add(self, segment: Segment) -> str:
        self._segments.append(segment)
        return f"{self._word}{len(self._segments) - 1}E"

    def split(self, text: str) -> list[Segment | _Literal]:
        """The template's literals and the segments between them. Raises InvalidPrompt if it lost or doubled one."""
        parts = re.split(f"{self._word}([0-9]+)E", text)
        order = [int(number) for number in parts[1::2]]
        for number, segment in enumerate(self._segments):
            if number not in order and segment != Text(""):
                raise InvalidPrompt("the model's chat template leaves a part of the messages out")
        outputs = [number for number in order if _generated(self._segments[number])]
        if outputs != sorted(set(outputs)):
            raise InvalidPrompt("the model's chat template repeats or reorders the outputs")
        pieces: list[Segment | _Literal] = [_Literal(parts[0])]
        for number, literal in zip(order, parts[2::2], strict=True):
            pieces += [self._segments[number], _Literal(literal)]
        return pieces
