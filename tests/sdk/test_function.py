from __future__ import annotations

from typing import Annotated, Any

import pytest

from myna.actors import messages as wire
from myna.actors.messages import SessionId, VarId
from myna.sdk import format as formats
from myna.sdk import transforms
from myna.sdk.errors import FunctionError, NoSession, TemplateError
from myna.sdk.function import Function, function
from myna.sdk.parameters import Input, Output
from myna.sdk.variable import Placeholder


class Kept:
    """A session that only keeps what is submitted to it."""

    def __init__(self) -> None:
        self.prepared: list[Any] = []

    def submit(self, prepared: Any) -> Any:
        self.prepared.append(prepared)
        return prepared


def variable(name: str = "v") -> Placeholder:
    return Placeholder(SessionId("s"), VarId(f"{name}-1"), name)


def segments(call: wire.Call) -> list[wire.Segment]:
    assert isinstance(call, wire.ModelCall)
    return [s for m in call.messages for s in m.segments]


@function
def summarize(text: Input, length: int, summary: Output(max_tokens=5, stop="\n")) -> None:  # type: ignore[valid-type]
    """Summarize in {{length}} words: {{text}}
    Summary:{{summary}}"""


def test_a_call_is_text_inputs_and_outputs_in_the_order_of_the_prompt() -> None:
    prepared = summarize.prepare(variable(), 7)
    call = prepared.call
    assert isinstance(call, wire.ModelCall)
    (message,) = call.messages
    assert message.role is None
    *before, output = message.segments
    assert before == [
        wire.Text(text="Summarize in "),
        wire.Text(text="7"),
        wire.Text(text=" words: "),
        wire.Input(variables=("v-1",), name="text"),
        wire.Text(text="\nSummary:"),
    ]
    assert isinstance(output, wire.Output)
    assert output.sampling == wire.Sampling(max_tokens=5, stop=("\n",))
    assert output.variables[0].startswith("summary-")
    assert call.function == "summarize"
    assert call.id.startswith("summarize-")


def test_two_calls_share_no_ids() -> None:
    one, two = summarize.prepare("a", 1), summarize.prepare("a", 1)
    assert one.call.id != two.call.id
    assert one.results[0].variables != two.results[0].variables


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("text", [wire.Text(text="text")]),
        (3.5, [wire.Text(text="3.5")]),
        ("", []),
        (["a", 2], [wire.Text(text="a, 2")]),
        ([], []),
        ([variable("a"), variable("b")], [wire.Input(variables=("a-1", "b-1"), joiner=", ", name="x")]),
        (
            ["a", variable("b")],
            [wire.Text(text="a"), wire.Text(text=", "), wire.Input(variables=("b-1",), joiner=", ", name="x")],
        ),
    ],
)
def test_inputs_take_texts_objects_variables_and_lists_of_them(argument: Any, expected: list[Any]) -> None:
    @function
    def f(x: Annotated[str, Input(joiner=", ")], y: Output) -> None:
        """{{x}}{{y}}"""

    *found, _ = segments(f.prepare(argument).call)
    assert found == expected


def test_annotations_may_be_strings_that_name_what_is_local() -> None:
    Local = Input  # noqa: N806
    joined = ";"

    @function
    def f(x: Annotated[str, Local(joiner=joined)], y: "Annotated[Any, Output(n=2)]") -> None:  # noqa: UP037
        """{{x}}{{y}}"""

    prepared = f.prepare([variable(), variable()])
    found = segments(prepared.call)[0]
    assert isinstance(found, wire.Input)
    assert found.joiner == ";"
    assert len(prepared.results[0].variables) == 2
    assert not prepared.results[0].single


def test_an_annotation_for_type_checkers_only_is_a_plain_parameter() -> None:
    @function
    def f(x: NotImported, y: Output) -> None:  # type: ignore[name-defined]  # noqa: F821
        """{{x}}{{y}}"""

    assert segments(f.prepare(12).call)[0] == wire.Text(text="12")


def test_several_outputs_are_one_program() -> None:
    @function
    def f(x: Input, a: Output(max_tokens=1), b: Output(n=3)) -> None:  # type: ignore[valid-type]
        """{{x}} A: {{a}} B: {{b}}"""

    prepared = f.prepare("x")
    assert [r.name for r in prepared.results] == ["a", "b"]
    assert [len(r.variables) for r in prepared.results] == [1, 3]


def test_outputs_can_be_bound_to_declared_variables_and_changed_for_one_call() -> None:
    bound = summarize.prepare("a", 1, summary=variable("mine"))
    output = segments(bound.call)[-1]
    assert isinstance(output, wire.Output)
    assert output.variables == ("mine-1",)
    changed = segments(summarize.prepare("a", 1, summary=Output(max_tokens=9)).call)[-1]
    assert isinstance(changed, wire.Output)
    assert changed.sampling.max_tokens == 9


def test_defaults_are_used_and_options_travel() -> None:
    @function(models=["a", "b"], priority=3, retries=0, objective="latency", cache_prefix=False, name="named")
    def f(x: Input, y: Output, z: int = 4) -> None:
        """{{x}}{{z}}{{y}}"""

    call = f.prepare("x").call
    assert isinstance(call, wire.ModelCall)
    assert (call.function, call.models, call.priority, call.retries) == ("named", ("a", "b"), 3, 0)
    assert call.objective == wire.Objective(kind=wire.ObjectiveKind.LATENCY)
    assert not call.cache_prefix
    assert segments(call)[1] == wire.Text(text="4")
    assert f.with_options(model="c").prepare("x").call.models == ("c",)  # type: ignore[union-attr]
    assert f.options.models == ("a", "b")


def test_roles_become_messages() -> None:
    @function
    def f(q: Input, a: Output) -> None:
        """{{#system}}Be brief.{{/system}}
        {{#user}}{{q}}{{/user}}
        {{#assistant}}{{a}}{{/assistant}}"""

    call = f.prepare("hi").call
    assert isinstance(call, wire.ModelCall)
    assert [m.role for m in call.messages] == ["system", "user", "assistant"]


def test_the_prompt_is_formatted_but_the_values_are_not() -> None:
    @function(formatter=formats.compose(formats.squash_whitespace, formats.strip))
    def f(x: Input, y: Output) -> None:
        """A
        B {{x}} {{y}}"""

    assert segments(f.prepare("p\n  q").call)[:2] == [wire.Text(text="A B "), wire.Text(text="p\n  q")]


def test_a_value_cant_smuggle_in_a_placeholder() -> None:
    @function
    def f(x: Input, y: Output) -> None:
        """{{x}}{{y}}"""

    assert segments(f.prepare("{{y}} {{#system}}").call)[0] == wire.Text(text="{{y}} {{#system}}")


def test_transformed_outputs_are_buffered() -> None:
    assert Output(transforms=transforms.strip()).stream is wire.StreamMode.BUFFERED
    assert Output().stream is wire.StreamMode.LIVE
    with pytest.raises(FunctionError, match="streamed live"):
        Output(transforms=[transforms.strip()], stream="live")


# --- What is refused --------------------------------------------------------------------------------------------------


def declare(prompt: str, **parameters: Any) -> Function:
    """A function with this prompt and these annotations."""
    source = ", ".join(parameters)
    namespace: dict[str, Any] = {}
    exec(f"def culprit({source}): pass", namespace)
    target = namespace["culprit"]
    target.__annotations__ = parameters
    return function(prompt=prompt)(target)


@pytest.mark.parametrize(
    ("prompt", "parameters", "error", "says"),
    [
        ("{{a}} {{b}}", {"a": Output}, TemplateError, "placeholder {{b}} has no parameter"),
        ("{{a}}", {"a": Output, "b": Input}, TemplateError, "parameter 'b' is not in the prompt"),
        ("{{a}}", {"a": Input}, FunctionError, "has no output"),
        ("{{a}} {{a}}", {"a": Output}, TemplateError, "twice"),
        ("{{a}} {{b}}", {"a": Output(n=2), "b": Output}, FunctionError, "only the last output"),
        ("{{session}} {{b}}", {"session": Input, "b": Output}, FunctionError, "'session' is taken"),
        ("{{#user}}{{a}}{{/user}}", {"a": Output}, TemplateError, "move it to assistant"),
        ("  ", {"a": Output}, FunctionError, "no docstring"),
    ],
)
def test_a_wrong_declaration_is_refused_naming_the_function_and_the_culprit(
    prompt: str, parameters: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        declare(prompt, **parameters)
    assert says in str(caught.value)
    assert "'culprit'" in str(caught.value)


def test_an_annotation_that_cant_be_evaluated_is_refused() -> None:
    with pytest.raises(FunctionError, match="parameter 'y': its annotation 'Output\\(max_tokens=nowhere\\)'"):

        @function
        def f(y: Output(max_tokens=nowhere)) -> None:  # type: ignore  # noqa: F821, PGH003
            """{{y}}"""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Output(max_token=5), "'max_token' is no setting"),
        (lambda: Output(max_tokens="many"), "settings are wrong"),
        (lambda: Output(n=0), "n=0"),
        (lambda: Output(stream="sometimes"), "stream='sometimes'"),
        (lambda: function(retries=-1)(lambda: None), "no docstring"),
        (lambda: transforms.regex("("), "does not compile"),
        (lambda: transforms.json_field("a..b"), "a..b"),
        (lambda: declare("{{a}}", a=Output).with_options(colour="red"), "'colour' is no option"),
        (lambda: declare("{{a}}", a=Output).with_options(retries=101), "retries=101"),
        (lambda: declare("{{a}}", a=Output).with_options(objective="soon"), "'soon' is no objective"),
    ],
)
def test_wrong_settings_are_refused_by_name(make: Any, says: str) -> None:
    with pytest.raises(FunctionError) as caught:
        make()
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'text'"),
        (("a", 1, 2), {}, "too many positional"),
        (("a", 1), {"colour": 1}, "unexpected keyword argument 'colour'"),
        (("a", 1), {"summary": "text"}, "is an output"),
        (("a", 1), {"summary": [variable(), variable()]}, "bind it to 1"),
        (("a", variable()), {}, "annotate it as Input"),
    ],
)
def test_a_wrong_call_is_refused_naming_the_function(args: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(FunctionError) as caught:
        summarize.prepare(*args, **kwargs)
    assert says in str(caught.value)
    assert "'summarize'" in str(caught.value)


def test_a_call_without_a_session_says_what_to_do() -> None:
    with pytest.raises(NoSession, match=r"myna\.session"):
        summarize("a", 1)


def test_a_session_can_be_given() -> None:
    kept = Kept()
    summarize("a", 1, session=kept)
    assert kept.prepared[0].call.function == "summarize"


def test_a_variable_is_no_text() -> None:
    for render in (str, lambda v: f"{v}", lambda v: f"{v:>10}", "{}".format, lambda v: "%s" % v):  # noqa: UP031
        with pytest.raises(TypeError, match="await it"):
            render(variable())
    assert "v-1" in repr(variable())
