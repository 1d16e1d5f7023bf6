from __future__ import annotations

import inspect
import re
from typing import Any

import msgpack
import msgspec
import pytest

from myna.actors import codec
from myna.actors import messages as m
from myna.actors.messages import Frozen
from tests.actors import golden

CLASSES = [c for _, c in inspect.getmembers(m, inspect.isclass) if issubclass(c, Frozen) and c is not Frozen]
NAMES = sorted(golden.EXAMPLES)


def plain(message: Frozen) -> Any:
    return msgpack.unpackb(codec.encode(message), strict_map_key=False)


def test_every_message_has_an_example_and_every_example_golden_bytes() -> None:
    assert {c.__name__ for c in CLASSES} == {type(e).__name__ for e in golden.EXAMPLES.values()}
    assert set(golden.load()) == set(golden.EXAMPLES)
    assert all(name.split(".")[0] == type(example).__name__ for name, example in golden.EXAMPLES.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_message_never_change(name: str) -> None:
    assert codec.encode(golden.EXAMPLES[name]).hex() == golden.load()[name].hex()


@pytest.mark.parametrize("name", NAMES)
def test_golden_bytes_decode_to_the_message_they_were_made_of(name: str) -> None:
    example = golden.EXAMPLES[name]
    assert codec.decode(golden.load()[name], type(example)) == example


@pytest.mark.parametrize("name", NAMES)
def test_any_messagepack_library_can_read_a_message(name: str) -> None:
    example = golden.EXAMPLES[name]
    unpacked = msgpack.unpackb(golden.load()[name], strict_map_key=False)
    tag = type(example).__struct_config__.tag
    assert (unpacked[0] if isinstance(unpacked, list) else unpacked["t"]) == tag


def test_tags_are_unique() -> None:
    tags = [c.__struct_config__.tag for c in CLASSES]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("name", [n for n in NAMES if not isinstance(golden.EXAMPLES[n], m.Running)])
def test_unknown_keys_are_ignored(name: str) -> None:
    example = golden.EXAMPLES[name]
    data = msgpack.packb(plain(example) | {"added_in_a_later_version": {"x": [1]}})
    assert codec.decode(data, type(example)) == example


@pytest.mark.parametrize("name", [n for n in NAMES if n.count(".") == 0 and golden.EXAMPLES[n].__struct_fields__])
def test_a_field_of_the_wrong_type_is_refused_and_named(name: str) -> None:
    example = golden.EXAMPLES[name]
    if isinstance(example, m.Running):
        with pytest.raises(codec.WireError):
            codec.decode(msgpack.packb(["running", "acme", "s1", "c", "one"]), m.Running)
        return
    whole = plain(example)
    field = next(f.name for f in msgspec.structs.fields(type(example)) if f.type is not Any and f.name in whole)
    with pytest.raises(codec.WireError, match=rf"\$\.{field}"):
        codec.decode(msgpack.packb(whole | {field: {"no": object.__name__, "such": [None]}}), type(example))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_field_without_default_is_refused(name: str) -> None:
    example = golden.EXAMPLES[name]
    required = [f.name for f in msgspec.structs.fields(type(example)) if f.required]
    whole = plain(example)
    if not required or isinstance(whole, list):
        assert codec.decode(codec.encode(example), type(example)) == example
        return
    for field in required:
        with pytest.raises(codec.WireError, match=re.escape(field)):
            codec.decode(msgpack.packb({k: v for k, v in whole.items() if k != field}), type(example))


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(codec.WireError, match="not a valid"):
        codec.decode(codec.encode(m.Close()), m.Open)
    with pytest.raises(codec.WireError, match="not a valid"):
        codec.decode(codec.encode(m.Drain(lease=1)), m.LogEntry)


@pytest.mark.parametrize("union", ["LogEntry", "Outcome", "WorkerMessage", "SchedulerMessage", "AnyMessage"])
def test_a_union_decodes_to_the_class_that_was_sent(union: str) -> None:
    kinds = getattr(m, union)
    sent = [e for e in golden.EXAMPLES.values() if isinstance(e, kinds)]
    assert sent
    for example in sent:
        assert codec.decode(codec.encode(example), kinds) == example


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", ">", "ä", "x" * 81])
def test_ids_are_subject_tokens(bad: str) -> None:
    data = msgpack.packb({"t": "declare", "variables": [bad]})
    with pytest.raises(codec.WireError, match=r"\$\.variables"):
        codec.decode(data, m.Declare)


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        m.Close().reason = "x"


def test_adding_golden_bytes_never_changes_old_ones(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "FILE", tmp_path / "golden.json")
    golden.FILE.write_text('{"Close": "00"}')
    added = golden.add_missing()
    assert "Close" not in added
    assert len(added) == len(golden.EXAMPLES) - 1
    assert golden.load()["Close"] == b"\x00"
    assert golden.load()["Open"] == codec.encode(golden.EXAMPLES["Open"])
