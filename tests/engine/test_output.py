from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myna.engine.output import Output
from myna.engine.request import FinishReason
from myna.engine.sampling import SamplingParams
from myna.engine.text import decoder
from tests.engine.tiny_tokenizers import byte_level

EOS = 2


def make(sampling: SamplingParams, prompt: tuple[int, ...] = (5,)) -> Output:
    return Output(0, sampling, 0, prompt, decoder(byte_level()), frozenset({EOS}))


def feed(output: Output, tokens: list[int], room: int = 1000) -> str:
    text = ""
    for number, token in enumerate(tokens):
        text += output.accept(token, room - number - 1)
        if output.reason is not None:
            break
    return text


def ids(text: str) -> list[int]:
    return list(byte_level()(text, add_special_tokens=False)["input_ids"])


def test_a_stop_token_ends_the_output_and_is_not_part_of_it() -> None:
    output = make(SamplingParams())
    assert feed(output, [*ids("the fox"), EOS, *ids("more")]) == "the fox"
    assert (output.reason, output.tokens, output.drawn) == (FinishReason.STOP, ids("the fox"), len(ids("the fox")) + 1)
    assert output.kept == len(ids("the fox"))


def test_ignore_eos_goes_on_and_a_stop_token_of_ones_own_still_ends() -> None:
    comma = ids(",")[0]
    output = make(SamplingParams(ignore_eos=True, stop_token_ids=(comma,)))
    assert feed(output, [*ids("a"), EOS, *ids("b"), comma, *ids("c")]) == "ab"
    assert output.reason is FinishReason.STOP


def test_a_stop_string_across_tokens_cuts_text_and_context() -> None:
    tokens = [token for letter in "quick STOP it" for token in ids(letter)]
    output = make(SamplingParams(stop=("STOP",)))
    assert feed(output, tokens) == "quick "
    assert output.reason is FinishReason.STOP
    assert decoder(byte_level())(output.tokens[: output.kept]) == "quick "


def test_max_tokens_and_the_end_of_the_context_end_by_length_and_nothing_held_back_is_lost() -> None:
    tokens = [token for letter in "no STO" for token in ids(letter)]
    output = make(SamplingParams(stop=("STOP",), max_tokens=len(tokens)))
    assert feed(output, tokens) == "no STO"
    assert output.reason is FinishReason.LENGTH
    full = make(SamplingParams())
    feed(full, tokens, room=3)
    assert (full.reason, len(full.tokens), full.kept) == (FinishReason.LENGTH, 3, 3)


def test_before_min_tokens_no_stop_counts() -> None:
    output = make(SamplingParams(stop=("b",), min_tokens=3))
    assert output.bans_stops()
    tokens = [*ids("b"), *ids("b"), *ids("a"), *ids("a"), *ids("b")]
    assert feed(output, tokens) == "bbaa"
    assert not output.bans_stops()
    assert output.drawn == 5


@given(
    tokens=st.lists(st.integers(0, 300), max_size=30),
    stops=st.lists(st.text("aeit ", min_size=1, max_size=3), max_size=2),
)
def test_the_text_is_the_decoding_up_to_the_first_stop(tokens: list[int], stops: list[str]) -> None:
    tokens = [token % len(byte_level()) for token in tokens]
    output = make(SamplingParams(stop=tuple(stops), ignore_eos=True, max_tokens=len(tokens) + 1))
    text = feed(output, tokens)
    whole = decoder(byte_level())(tokens)
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    if ends:
        if output.reason is FinishReason.STOP:
            assert text == whole[: min(ends)[1]]
            assert decoder(byte_level())(output.tokens[: output.kept]).startswith(text)
    else:
        assert output.reason is None
        assert whole.startswith(text)
