from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest

from myna.actors import codec
from myna.actors import messages as m
from myna.actors.plain import MAX_DEPTH, is_plain


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", {1: "int key"}, {"a": {"b": object()}}, 2**64, {1, 2}])
def test_what_is_no_json_is_not_plain(value: Any) -> None:
    assert not is_plain(value)
    assert not is_plain([value])


def test_plain_data_has_a_depth() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert is_plain(nested)
    assert not is_plain([nested])


@pytest.mark.parametrize("odd", [math.nan, b"bytes", {1: "int key"}, msgpack.ExtType(4, b"x"), msgpack.Timestamp(1)])
def test_free_form_fields_refuse_what_is_no_json(odd: Any) -> None:
    frame = msgpack.packb({"t": "value", "text": "x", "json": [odd]})
    with pytest.raises(codec.WireError, match="must be JSON data"):
        codec.decode(frame, m.Value)
