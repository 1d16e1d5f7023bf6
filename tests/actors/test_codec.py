from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.actors import codec
from myna.actors import messages as m
from tests.actors import golden

FRAMES = sorted(golden.load().values())
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def only_wire_errors(data: bytes) -> None:
    with contextlib.suppress(codec.WireError):
        assert isinstance(codec.decode(data, m.AnyMessage), m.AnyMessage)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_only_wire_errors(data: bytes) -> None:
    only_wire_errors(data)


@settings(deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_mutated_frames_raise_only_wire_errors(frame: bytes, data: st.DataObject) -> None:
    mutated = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        match data.draw(st.sampled_from(["flip", "insert", "cut"])):
            case "flip" if at < len(mutated):
                mutated[at] = data.draw(st.integers(0, 255))
            case "insert":
                mutated[at:at] = data.draw(st.binary(min_size=1, max_size=5))
            case _:
                del mutated[at:]
    only_wire_errors(bytes(mutated))


@settings(deadline=None)
@given(
    st.sampled_from(["t", "text", "attempt", "tokens", "variables", "calls", "code", "worker"]),
    PLAIN,
    st.sampled_from(FRAMES),
)
def test_frames_with_one_odd_field_raise_only_wire_errors(key: str, value: Any, frame: bytes) -> None:
    plain = msgpack.unpackb(frame, strict_map_key=False)
    if isinstance(plain, dict):
        only_wire_errors(msgpack.packb(plain | {key: value}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used
        b"\x81\xa1t",  # cut off
        b"\xc0\xc0",  # two objects
        b"\x91" * 100_000,  # deep nesting
        b"\x81\xa1a" * 5_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",  # claims four billion items
        b"\xc6\xff\xff\xff\xff",  # claims four gigabytes
        b"\x81\x90\xc0",  # a list as a key
        b"\x82\xa1t\xa5close\xa6reason\xa1\xff",  # not UTF-8
        b"\x82\xa1t\xa5close\xa6reason\xc4\x01a",  # bytes where text belongs
        b"\x82\xa1t\xa5close\xa6reason\xc7\x01\x05a",  # an extension type
        msgpack.packb({"t": "drain", "lease": float("nan")}),
        msgpack.packb({"t": "drain", "lease": "1"}),
        msgpack.packb({"t": "open", "protocol": 1, "ttl": float("nan")}),
        msgpack.packb({"t": "open", "protocol": 1, "ttl": float("inf")}),
        msgpack.packb({"t": "open", "protocol": 1, "ttl": -1.0}),
        msgpack.packb({"t": ["close"]}),
        msgpack.packb({b"t": b"close"}),
        msgpack.packb({"reason": "no tag"}),
        msgpack.packb([]),
        msgpack.packb("close"),
    ],
)
def test_hostile_frames_are_wire_errors(data: bytes) -> None:
    with pytest.raises(codec.WireError):
        codec.decode(data, m.AnyMessage)


@settings(deadline=None)
@given(PLAIN)
def test_free_form_data_comes_back_as_it_was(value: Any) -> None:
    message = m.Value(text="x", json=value)
    assert codec.decode(codec.encode(message), m.Outcome) == message


def test_maps_keep_their_order() -> None:
    schema = {"properties": {"reason": {"type": "string"}, "answer": {"type": "integer"}}, "type": "object"}
    sent = m.ResponseFormat(kind=m.FormatKind.JSON_SCHEMA, definition=schema)
    got = codec.decode(codec.encode(sent), m.ResponseFormat)
    assert list(got.definition["properties"]) == ["reason", "answer"], "a model writes them in this order"


@settings(deadline=None)
@given(st.text(), st.lists(st.integers(0, 2**31)))
def test_text_and_tokens_come_back_as_they_were(text: str, tokens: list[int]) -> None:
    message = m.Chunk(attempt=1, text=text, tokens=tuple(tokens))
    assert codec.decode(codec.encode(message), m.Chunk) == message


def test_what_messagepack_can_not_hold_is_a_wire_error_that_names_the_message() -> None:
    with pytest.raises(codec.WireError, match="Value can't be encoded"):
        codec.encode(m.Value(text="\ud800"))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, object()], ids=["huge", "tiny", "object"])
def test_a_value_takes_no_data_that_is_no_json(value: Any) -> None:
    with pytest.raises(ValueError, match="must be JSON data"):
        m.Value(text="", json=value)


def test_a_value_takes_no_cycle() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="must be JSON data"):
        m.Value(text="", json=loop)


def test_the_limit_is_on_the_encoded_bytes() -> None:
    frame = len(codec.encode(m.Close(reason="x" * 100_000))) - 100_000
    fits = m.Close(reason="x" * (codec.MAX_BODY - frame))
    assert len(codec.encode(fits)) == codec.MAX_BODY
    with pytest.raises(
        codec.TooLarge, match=f"Close takes {codec.MAX_BODY + 1} bytes.*{codec.MAX_BODY} bytes"
    ) as caught:
        codec.encode(m.Close(reason="x" * (codec.MAX_BODY - frame + 1)))
    assert (caught.value.size, caught.value.limit) == (codec.MAX_BODY + 1, codec.MAX_BODY)
