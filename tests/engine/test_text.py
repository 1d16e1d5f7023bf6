from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.engine.text import Detokenizer, StopScanner, decoder
from tests.engine.tiny_tokenizers import byte_fallback, byte_level

HOSTILE = "naïve 🙂🙃 你好\n\n\tالسلام e\u0301 👩‍👩‍👧‍👦 \ufffd \u202e ZWJ\u200d <|im_end|> \0 end"


def stream(tokenizer: object, ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(decoder(tokenizer), prompt)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@given(text=st.one_of(st.just(HOSTILE), st.text(max_size=40)))
def test_pieces_join_to_the_full_decoding_of_any_text(make: object, text: str) -> None:
    tokenizer = make()  # type: ignore[operator]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(stream(tokenizer, ids)) == decoder(tokenizer)(ids)


@given(ids=st.lists(st.integers(0, 350), max_size=60))
def test_pieces_join_to_the_full_decoding_of_any_byte_level_tokens(ids: list[int]) -> None:
    tokenizer = byte_level()
    ids = [token % len(tokenizer) for token in ids]
    assert "".join(stream(tokenizer, ids)) == decoder(tokenizer)(ids)


def test_no_piece_holds_half_a_character() -> None:
    tokenizer = byte_level()
    ids = tokenizer("🙂 你好", add_special_tokens=False)["input_ids"]
    pieces = stream(tokenizer, ids)
    assert any(not piece for piece in pieces), "no character was ever in halves: the test tests nothing"
    assert not any("\ufffd" in piece for piece in pieces)


def test_endless_garbage_is_not_held_back_for_ever() -> None:
    tokenizer = byte_level()
    half = tokenizer("🙂", add_special_tokens=False)["input_ids"][:1]
    pieces = stream(tokenizer, half * 200)
    assert sum(bool(piece) for piece in pieces[:-1]) > 3
    assert len("".join(pieces)) == len(decoder(tokenizer)(half * 200))


def test_a_window_of_bounded_size_is_decoded_however_long_the_output() -> None:
    tokenizer = byte_level()
    lengths: list[int] = []
    decode = decoder(tokenizer)

    def measured(ids: object) -> str:
        lengths.append(len(ids))  # type: ignore[arg-type]
        return decode(ids)  # type: ignore[arg-type]

    detokenizer = Detokenizer(measured)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for token in [*tokenizer("a plain word " * 50)["input_ids"], *([end] * 500)]:
        detokenizer.feed(token)
    assert max(lengths) < 80


def test_the_space_before_a_first_word_survives_after_a_prompt() -> None:
    tokenizer = byte_fallback()
    prompt = tokenizer("so", add_special_tokens=False)["input_ids"]
    word = tokenizer("the", add_special_tokens=False)["input_ids"]
    assert "".join(stream(tokenizer, word, tuple(prompt))) == " the"


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def scan(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    said = ""
    for piece in pieces:
        result = scanner.feed(piece)
        said += result.text
        if result.stopped:
            return said, True
    return said + scanner.flush(), False


@given(stops=STOPS, text=st.text("abc", max_size=24), data=st.data())
def test_however_text_is_cut_it_ends_at_the_same_place(stops: list[str], text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert scan(stops, pieces) == scan(stops, [text]) == scan(stops, list(text))


@given(stops=STOPS, text=st.text("abc", max_size=24))
def test_text_ends_before_the_stop_string_that_is_complete_first(stops: list[str], text: str) -> None:
    said, stopped = scan(stops, [text])
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stopped == bool(ends)
    assert said == (text[: min(ends)[1]] if ends else text)


@given(stops=STOPS, text=st.text("abc", max_size=24))
def test_nothing_is_said_that_a_stop_string_takes_back(stops: list[str], text: str) -> None:
    final, _ = scan(stops, [text])
    scanner = StopScanner(stops)
    said = ""
    for letter in text:
        result = scanner.feed(letter)
        said += result.text
        assert final.startswith(said)
        if result.stopped:
            break
