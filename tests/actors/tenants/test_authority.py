from __future__ import annotations

import stat
import threading
from pathlib import Path

import nkeys
import pytest
from msgspec import structs

from myna.actors.messages import Tenant, TenantPolicy
from myna.actors.tenants import credentials, keys
from myna.actors.tenants.authority import Authority, TenancyError
from myna.actors.tenants.credentials import Identity, InvalidCredentials, identity, write_private
from myna.actors.tenants.keyring import Keyring, role_file, tenant_file
from myna.actors.tenants.keys import InvalidClaims, Key, KeyKind
from myna.actors.tenants.rights import Grant, Role
from myna.actors.tenants.trust import lay_out, server_lines

ALICE, BOB = Tenant("alice"), Tenant("bob")
NOW = 1_800_000_000


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.at(tmp_path / "authority", clock=lambda: NOW)


def claims_of(authority: Authority, tenant: Tenant) -> dict[str, object]:
    found: dict[str, object] = keys.read(authority.tenant_claims(tenant))["nats"]
    return found


def user_of(text: str, folder: Path) -> str:
    write_private(folder / "some.creds", text)
    return identity(folder / "some.creds").public


@pytest.mark.parametrize(("kind", "letter"), [(KeyKind.OPERATOR, "O"), (KeyKind.ACCOUNT, "A"), (KeyKind.USER, "U")])
def test_a_key_is_known_by_its_kind_and_signs_what_its_public_half_verifies(kind: KeyKind, letter: str) -> None:
    key = Key.new(kind)
    assert key.public[0] == letter
    assert key.seed[:2] == f"S{letter}"
    assert Key.of(key.seed) == key
    nkeys.from_seed(bytearray(key.seed.encode())).verify(b"data", key.sign(b"data"))
    assert key.seed not in repr(key)
    assert Key.new(kind) != key


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "a.bnVsbA.c", "a.e30.c", "\0.\0.\0", "a.{}.c"])
def test_what_is_no_signed_claims_is_said_to_be_none(text: str) -> None:
    with pytest.raises(InvalidClaims):
        keys.read(text)


def test_the_table_outlives_the_process_and_is_its_owners_alone(authority: Authority) -> None:
    authority.create(ALICE, TenantPolicy(tenant=ALICE, calls=3))
    again = Authority.at(authority.folder)
    assert again.tenants == authority.tenants
    assert again.tenant(ALICE).policy.calls == 3
    assert (again.streams_account, again.system_account) == (authority.streams_account, authority.system_account)
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in authority.folder.iterdir()} == {0o600}


def test_changes_from_several_processes_are_all_kept(authority: Authority) -> None:
    others = [Authority.at(authority.folder) for _ in range(8)]
    threads = [threading.Thread(target=other.create, args=(Tenant(f"t{n}"),)) for n, other in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Authority.at(authority.folder).tenants) == [f"t{n}" for n in range(8)]


def test_servers_are_told_what_the_folder_says_now(authority: Authority, tmp_path: Path) -> None:
    Authority.at(authority.folder).create(ALICE)
    assert ALICE not in authority.tenants
    lay_out(authority, tmp_path / "accounts")
    alice = tmp_path / "accounts" / f"{Authority.at(authority.folder).tenant(ALICE).public}.jwt"
    assert keys.read(alice.read_text())["name"] == ALICE


def test_no_secret_reaches_a_servers_configuration(authority: Authority, tmp_path: Path) -> None:
    text = authority.create(ALICE)
    lay_out(authority, tmp_path / "accounts")
    files = [file.read_text() for file in (tmp_path / "accounts").iterdir()]
    lines = "\n".join([server_lines(authority, tmp_path), *files])
    assert len(files) == 2
    seeds = [
        line for line in (authority.folder / "authority.json").read_text().split('"') if line[:2] in ("SO", "SA", "SU")
    ]
    assert len(seeds) == 4
    assert [seed for seed in (*seeds, *text.split()) if seed[:2] in ("SO", "SA", "SU") and seed in lines] == []


def test_rotation_makes_the_users_before_void_and_keeping_does_not(authority: Authority, tmp_path: Path) -> None:
    first = user_of(authority.create(ALICE), tmp_path)
    second = user_of(authority.rotate(ALICE, keep=True), tmp_path)
    assert authority.tenant(ALICE).users == (first, second)
    assert "revocations" not in claims_of(authority, ALICE)
    third = user_of(authority.rotate(ALICE), tmp_path)
    assert authority.tenant(ALICE).users == (third,)
    assert claims_of(authority, ALICE)["revocations"] == {first: NOW, second: NOW}


def test_one_user_can_be_made_void_alone(authority: Authority, tmp_path: Path) -> None:
    first = user_of(authority.create(ALICE), tmp_path)
    second = user_of(authority.rotate(ALICE, keep=True), tmp_path)
    authority.revoke(ALICE, first)
    assert authority.tenant(ALICE).users == (second,)
    assert claims_of(authority, ALICE)["revocations"] == {first: NOW}
    with pytest.raises(TenancyError, match="has no user"):
        authority.revoke(ALICE, first)


def test_a_removed_tenant_leaves_no_grant_and_a_new_one_of_its_name_is_another(authority: Authority) -> None:
    authority.create(ALICE)
    authority.create(BOB)
    authority.grant(BOB, Grant(ALICE))
    before = authority.tenant(ALICE).public
    authority.remove(ALICE)
    assert authority.tenant(BOB).granted == ()
    assert keys.read(authority.removed_claims(before))["nats"]["revocations"] == {"*": NOW}
    assert [p.removed for p in authority.policies() if p.tenant == ALICE] == [True]
    authority.create(ALICE)
    assert authority.tenant(ALICE).public != before
    assert [p.removed for p in authority.policies() if p.tenant == ALICE] == [False]


def test_what_can_not_be_is_refused_and_changes_nothing(authority: Authority) -> None:
    authority.create(ALICE)
    before = (authority.folder / "authority.json").read_bytes()
    for change in (
        lambda: authority.create(ALICE),
        lambda: authority.rotate(BOB),
        lambda: authority.remove(BOB),
        lambda: authority.set_policy(TenantPolicy(tenant=BOB)),
        lambda: authority.grant(ALICE, Grant(BOB)),
        lambda: authority.grant(BOB, Grant(ALICE)),
        lambda: authority.withdraw(ALICE, Grant(ALICE)),
        lambda: authority.limit_connections(BOB, 1),
    ):
        with pytest.raises(TenancyError):
            change()
    assert (authority.folder / "authority.json").read_bytes() == before


def test_a_policy_is_kept_and_told(authority: Authority) -> None:
    authority.create(ALICE)
    policy = structs.replace(authority.tenant(ALICE).policy, tokens=5)
    authority.set_policy(policy)
    assert authority.policies() == [policy]


def test_claims_changed_within_a_second_are_newer_than_those_before_and_unchanged_ones_are_the_same(
    authority: Authority,
) -> None:
    authority.create(ALICE)
    first = authority.tenant_claims(ALICE)
    assert authority.tenant_claims(ALICE) == first == authority.account_claims()[authority.tenant(ALICE).public]
    authority.rotate(ALICE)
    second = authority.tenant_claims(ALICE)
    assert keys.read(second)["iat"] == keys.read(first)["iat"] + 1, "servers compare seconds of issue"
    public = authority.tenant(ALICE).public
    authority.remove(ALICE)
    assert keys.read(authority.removed_claims(public))["iat"] > keys.read(second)["iat"]


# --- credentials ------------------------------------------------------------------------------------------------------


def test_credentials_say_whose_they_are(tmp_path: Path) -> None:
    keyring = Keyring.at(tmp_path)
    keyring.begin(ALICE)
    mine = identity(tenant_file(tmp_path, ALICE))
    assert (mine.tenant, mine.role, mine.inbox_prefix) == (ALICE, None, "_INBOX_alice")
    for role in Role:
        its = identity(role_file(tmp_path, role))
        assert (its.tenant, its.role, its.is_operator) == (None, role, role is Role.OPERATOR)


def test_a_tenant_named_like_a_role_is_not_that_role(tmp_path: Path) -> None:
    file = Keyring.at(tmp_path).create(Tenant("operator"))
    assert identity(file) == Identity(Tenant("operator"), None, identity(file).public)
    assert not identity(file).is_operator


@pytest.mark.parametrize(
    "text", ["", "nothing", "-----BEGIN NATS USER JWT-----", "-----BEGIN NATS USER JWT-----\na.b.c\n", "\udcff"]
)
def test_another_file_is_no_credentials(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidCredentials):
        identity(tmp_path / "file")
    with pytest.raises(InvalidCredentials, match="can't be read"):
        identity(tmp_path / "none")


def test_credentials_of_another_system_are_refused(tmp_path: Path) -> None:
    account, user = Key.new(KeyKind.ACCOUNT), Key.new(KeyKind.USER)
    token = keys.sign({"sub": user.public, "name": "somebody", "iat": NOW, "nats": {"type": "user"}}, account)
    write_private(tmp_path / "file", credentials.text(token, user))
    with pytest.raises(InvalidCredentials, match="another system"):
        identity(tmp_path / "file")


def test_a_private_file_is_replaced_whole_and_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    write_private(path, "one")
    path.chmod(0o644)
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_start_issues_new_keys_to_roles_and_keeps_those_of_tenants(tmp_path: Path) -> None:
    keyring = Keyring.at(tmp_path)
    keyring.begin(ALICE)
    tenant, role = tenant_file(tmp_path, ALICE).read_text(), role_file(tmp_path, Role.ENGINE).read_text()
    keyring.begin(ALICE)
    assert tenant_file(tmp_path, ALICE).read_text() == tenant
    assert role_file(tmp_path, Role.ENGINE).read_text() != role
    tenant_file(tmp_path, ALICE).unlink()
    keyring.begin(ALICE)
    assert identity(tenant_file(tmp_path, ALICE)).public in keyring.authority.tenant(ALICE).users
