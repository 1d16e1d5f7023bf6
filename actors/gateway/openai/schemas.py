"""What the requests of OpenAI's API hold. What we don't know is ignored, as everybody does who speaks this API; what we know and
can't do is refused by whoever reads the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from myna.actors.gateway.openai.extension import Extension

Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
Stops = str | Annotated[list[str], Meta(max_length=16)] | None
Bias = dict[str, Annotated[float, Meta(ge=-100, le=100)]]


class Part(Struct):
    """A part of a message. Only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Struct):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Struct):
    """A tool call that a model has made."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Struct):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionSpec(Struct):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Struct):
    """A tool; functions are the only ones."""

    type: str
    function: FunctionSpec | None = None


class NamedFunction(Struct):
    """The name of a function."""

    name: str


class NamedTool(Struct):
    """The choice of one tool."""

    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool | None


class JsonSchema(Struct):
    """A schema with its name."""

    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Struct):
    """What a stream has beside the text."""

    include_usage: bool = False


class _Sampled(Struct, kw_only=True):
    """What chat and completion have in common."""

    model: str = ""
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    n: Choices | None = None
    seed: Seed | None = None
    stop: Stops = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    user: str | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    ignore_eos: bool | None = None
    myna: Extension | None = None


class ChatRequest(_Sampled, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(_Sampled, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]] | None = None
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    suffix: str | None = None


class Item(Struct):
    """An item of a response's input: a message, a tool call, or a tool's result."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class ResponseTool(Struct):
    """A tool; functions are the only ones. Here their fields stand beside the type."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolChoice(Struct):
    """The choice of one tool."""

    type: str
    name: str | None = None


class TextFormat(Struct):
    """What the text must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema: dict[str, Any] | None = None


class TextOptions(Struct):
    """Settings of the text."""

    format: TextFormat = field(default_factory=TextFormat)


class ResponseRequest(Struct, kw_only=True):
    """`POST /v1/responses`."""

    input: str | list[Item]
    model: str = ""
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    myna: Extension | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Any = None
    model: str = ""
