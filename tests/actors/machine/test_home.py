from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from myna.actors import config
from myna.actors.config import Address
from myna.actors.machine import home
from myna.actors.machine.home import AlreadyRunning, Info

INFO = Info(os.getpid(), "nats://127.0.0.1:4222", "myna", "hunter2")


def test_a_machine_is_found_while_it_holds_the_lock(tmp_path: Path) -> None:
    with home.locked(tmp_path), home.published(tmp_path, INFO):
        assert home.find(tmp_path) == INFO
        assert stat.S_IMODE(home.info_path(tmp_path).stat().st_mode) == 0o600
    assert home.find(tmp_path) is None
    assert not home.info_path(tmp_path).exists()


def test_a_file_that_a_killed_machine_left_is_not_believed(tmp_path: Path) -> None:
    with home.locked(tmp_path), home.published(tmp_path, INFO):
        left = home.info_path(tmp_path).read_bytes()
    home.info_path(tmp_path).write_bytes(left)  # its process id lives again, as somebody else's
    assert home.find(tmp_path) is None
    with home.locked(tmp_path):
        assert not home.info_path(tmp_path).exists()


@pytest.mark.parametrize("content", [b"", b"not json", b'{"pid": "seven"}', b"\xff"])
def test_a_broken_file_is_no_machine(tmp_path: Path, content: bytes) -> None:
    with home.locked(tmp_path):
        home.info_path(tmp_path).write_bytes(content)
        assert home.find(tmp_path) is None


def test_a_home_that_does_not_exist_has_no_machine(tmp_path: Path) -> None:
    assert home.find(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_the_second_is_told_who_is_there(tmp_path: Path) -> None:
    with home.locked(tmp_path):
        with pytest.raises(AlreadyRunning, match="just starting"), home.locked(tmp_path):
            pass
        with (
            home.published(tmp_path, INFO),
            pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}, at nats://127\.0\.0\.1:4222"),
            home.locked(tmp_path),
        ):
            pass
    with home.locked(tmp_path):
        pass


def test_settings_without_an_address_get_that_of_the_machine(tmp_path: Path) -> None:
    settings = config.read({"MYNA_HOME": str(tmp_path)})
    assert home.located(settings) == settings
    with home.locked(tmp_path), home.published(tmp_path, INFO):
        assert home.located(settings).address == INFO.address
        elsewhere = config.with_address(settings, Address("nats://elsewhere:1"))
        assert home.located(elsewhere) == elsewhere


def test_the_password_is_not_in_the_repr() -> None:
    assert "hunter2" not in repr(INFO)
    assert "hunter2" not in repr(INFO.address)
