from __future__ import annotations

import os
from pathlib import Path

import pytest

from myna.actors.config import ConfigError
from myna.actors.gateway.keys import Caller, Keys, digest, make, read


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_table_holds_digests_and_no_key(tmp_path: Path) -> None:
    key, entry = make("acme", 'a "quoted" name')
    table = tmp_path / "keys.toml"
    table.write_text(entry)
    assert key not in entry
    assert digest(key) in entry
    assert read(table, 60.0) == {digest(key): Caller(entry and "acme", 'a "quoted" name', 60.0)}  # type: ignore[arg-type]


def test_keys_are_never_the_same() -> None:
    assert len({make("acme", "x")[0] for _ in range(100)}) == 100


def test_without_a_table_everybody_is_the_one_tenant() -> None:
    keys = Keys(None, "acme", None, Clock())
    assert not keys.needed
    assert keys.find(None) == keys.find("anything")
    assert keys.tenants == ("acme",)


def test_a_changed_table_counts_from_the_next_second_on_and_a_broken_one_not_at_all(tmp_path: Path) -> None:
    clock = Clock()
    first, entry = make("acme", "one")
    second, later = make("globex", "two")
    table = tmp_path / "keys.toml"
    table.write_text(entry)
    keys = Keys(table, "default", None, clock)
    table.write_text(later)
    os.utime(table, (1, 1))
    assert keys.find(first) is not None
    clock.now = 1.0
    assert keys.find(first) is None
    assert keys.find(second) == Caller("globex", "two")  # type: ignore[arg-type]
    table.write_text("[[key")
    clock.now = 2.0
    assert keys.find(second) is not None


@pytest.mark.parametrize(
    "text", ["[[key]]\nsha256 = 'x'\ntenant = 'a'", "[[key]]\ntenant = 'a b'", "keys = 1", "[[key"]
)
def test_a_table_that_cannot_be_right_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match="API keys"):
        Keys(tmp_path / "keys.toml", "default", None, Clock())
