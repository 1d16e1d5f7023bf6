from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from myna.actors.gateway import keys as api_keys
from myna.actors.messages import Tenant
from myna.actors.tenants import credentials
from myna.actors.tenants.keyring import Keyring, role_file
from myna.actors.tenants.rights import Role
from myna.sdk.cli import main

NODES = ("nats-1=route-1", "nats-2=route-2", "nats-3=route-3")


def init(home: Path, out: Path, *more: str) -> str:
    arguments = ["tenants", "init", *NODES, "--out", str(out), "--keys", str(out / "keys"), "--monitor", "8222", *more]
    result = CliRunner().invoke(main, arguments, env={"MYNA_HOME": str(home), "MYNA_URL": "", "MYNA_TENANT": ""})
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file() and f.name != "lock"}


def test_to_make_a_cluster_again_changes_nothing(tmp_path: Path) -> None:
    init(tmp_path / "home", tmp_path / "out")
    made, known = contents(tmp_path / "out"), contents(tmp_path / "home" / "keys")
    assert 'http: "127.0.0.1:8222"' in made["nats-1/nats.conf"]
    assert "@route-2:6222" in made["nats-1/nats.conf"]
    init(tmp_path / "home", tmp_path / "out")
    assert contents(tmp_path / "out") == made
    assert contents(tmp_path / "home" / "keys") == known


def test_each_kind_of_process_gets_its_own_key_and_no_other(tmp_path: Path) -> None:
    init(tmp_path / "home", tmp_path / "out")
    keys = tmp_path / "out" / "keys"
    assert {str(f.relative_to(keys)) for f in keys.rglob("*") if f.is_file()} == {
        "scheduler/scheduler.creds",
        "engine/engine.creds",
        "gateway/gateway.creds",
        "gateway/api-keys.toml",
        "agents/tenant.creds",
    }
    for role in (Role.SCHEDULER, Role.ENGINE, Role.GATEWAY):
        assert credentials.identity(keys / role / f"{role}.creds").role == role
    assert credentials.identity(keys / "agents" / "tenant.creds").tenant == "default"
    key = (tmp_path / "home" / "keys" / "api" / "default.key").read_text().strip()
    assert api_keys.read(keys / "gateway" / "api-keys.toml")[api_keys.digest(key)].tenant == "default"


def test_renewed_keys_are_others(tmp_path: Path) -> None:
    init(tmp_path / "home", tmp_path / "out")
    before = (tmp_path / "out" / "keys" / "engine" / "engine.creds").read_text()
    init(tmp_path / "home", tmp_path / "out", "--renew")
    assert (tmp_path / "out" / "keys" / "engine" / "engine.creds").read_text() != before


def test_a_release_in_which_a_role_has_other_rights_gets_new_credentials_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = Keyring.at(tmp_path)
    keyring.complete(Tenant("default"))
    old = {role: role_file(tmp_path, role).read_text() for role in Role}
    from myna.actors.tenants import accounts, rights

    of_role = rights.of_role
    wider = rights.Rights(("another.subject",), ())
    monkeypatch.setattr(accounts.rights, "of_role", lambda role: wider if role is Role.ENGINE else of_role(role))
    keyring.complete(Tenant("default"))
    assert {role for role in Role if role_file(tmp_path, role).read_text() != old[role]} == {Role.ENGINE}


def test_servers_know_each_other_by_the_authority_that_clients_need_no_certificate_of(tmp_path: Path) -> None:
    files = ("--certificate", "/tls/server.pem", "--key", "/tls/server.key", "--routes-ca", "/tls/ca.pem")
    init(tmp_path / "home", tmp_path / "out", *files)
    for_clients, between = (tmp_path / "out" / "nats-1" / "nats.conf").read_text().split("cluster {")
    assert "server.pem" in for_clients
    assert "verify" not in for_clients
    assert 'ca_file: "/tls/ca.pem", verify: true' in between
