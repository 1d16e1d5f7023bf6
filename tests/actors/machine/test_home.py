from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from myna.actors import config
from myna.actors.config import Address, ConfigError, Tls
from myna.actors.machine import home
from myna.actors.machine.home import AlreadyRunning, Info
from myna.actors.messages import Tenant
from myna.actors.tenants.keyring import Keyring, role_file
from myna.actors.tenants.rights import Role

INFO = Info(os.getpid(), "nats://127.0.0.1:4222")


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


def test_settings_without_an_address_get_that_of_the_machine_as_their_tenant(tmp_path: Path) -> None:
    settings = config.read({"MYNA_HOME": str(tmp_path), "MYNA_TENANT": "acme"})
    assert home.located(settings) == settings
    credentials = Keyring.at(tmp_path).create(Tenant("acme"))
    with home.locked(tmp_path), home.published(tmp_path, INFO):
        assert home.located(settings).address == Address(INFO.url, credentials=credentials)
        elsewhere = config.with_address(settings, Address("nats://elsewhere:1"))
        assert home.located(elsewhere) == elsewhere


def test_a_tenant_that_the_machine_does_not_have_is_told_how_to_become_one(tmp_path: Path) -> None:
    settings = config.read({"MYNA_HOME": str(tmp_path), "MYNA_TENANT": "acme"})
    with (
        home.locked(tmp_path),
        home.published(tmp_path, INFO),
        pytest.raises(ConfigError, match="has no tenant 'acme': make it one with `myna tenants create acme`"),
    ):
        home.located(settings)


def test_the_operator_of_the_machine_is_located_by_role(tmp_path: Path) -> None:
    settings = config.read({"MYNA_HOME": str(tmp_path)})
    Keyring.at(tmp_path).begin(Tenant("default"))
    with home.locked(tmp_path), home.published(tmp_path, INFO):
        located = home.located(settings, Role.OPERATOR)
    assert located.address == Address(INFO.url, credentials=role_file(tmp_path, Role.OPERATOR))
    assert config.asks_as_operator(located)


def test_a_machine_known_by_its_certificate_is_found_with_it(tmp_path: Path) -> None:
    info = Info(os.getpid(), "tls://127.0.0.1:4222", tmp_path / "ca.pem")
    with home.locked(tmp_path), home.published(tmp_path, info):
        assert home.find(tmp_path) == info
    assert info.tls == Tls(tmp_path / "ca.pem")
