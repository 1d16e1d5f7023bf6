"""The authority of one system: the folder with its signing keys and the table of its tenants. It lets everybody in.

Law: the folder is the only place of the keys, and readable by its owner alone. Servers get signed claims without secrets;
a tenant gets one credentials file, which is not kept here. Every change is written before it is told to anybody, under a
lock, and can be told again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Struct, structs

from myna.actors.messages import Tenant, TenantPolicy
from myna.actors.subjects import token
from myna.actors.tenants import accounts, credentials, keys
from myna.actors.tenants.keys import Key, KeyKind
from myna.actors.tenants.rights import Grant, Role

Clock = Callable[[], float]


class TenancyError(Exception):
    """A change that can't be: the tenant is there already, or unknown."""


class Granted(Struct, frozen=True):
    """What another tenant lets this one read; see `rights.Grant`."""

    owner: str
    session: str = "*"
    variable: str = "*"


class Member(Struct, frozen=True):
    """A tenant in the table."""

    seed: str
    public: str
    created: int
    policy: TenantPolicy
    users: tuple[str, ...] = ()
    """Public keys of the users that may connect."""
    revoked: dict[str, int] = {}
    granted: tuple[Granted, ...] = ()
    connections: int | None = None


class _Issued(Struct, frozen=True):
    """The claims of an account that were signed last: their second, and a digest of the rest."""

    at: int
    content: str


class _Book(Struct):
    """The file: keys of operator and accounts, and all tenants."""

    operator: str
    system: str
    streams: str
    routes: str
    tenants: dict[str, Member] = {}
    removed: dict[str, str] = {}
    """Accounts of tenants that are no more, by public key; the name is kept for people."""
    roles_since: int = 0
    """The second before which users of Myna's own processes are void."""
    issued: dict[str, _Issued] = {}
    """By public key of the account."""


class Authority:
    """The keys and the table, in `folder`. Use `Authority.at(folder)`."""

    def __init__(self, folder: Path, clock: Clock = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._book: _Book

    @classmethod
    def at(cls, folder: Path, clock: Clock = time.time) -> Self:
        """The authority in `folder`, made there if there is none."""
        self = cls(folder, clock)
        with self._locked():
            if self._path.exists():
                self._load()
            else:
                operator, system, streams = (Key.new(kind).seed for kind in _KINDS)
                self._book = _Book(operator, system, streams, secrets.token_urlsafe(24))
                self._save()
        return self

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is an authority in `folder`."""
        return (folder / _FILE).exists()

    # --- the table ---

    @property
    def tenants(self) -> dict[Tenant, Member]:
        """All tenants by name."""
        return {Tenant(name): member for name, member in sorted(self._book.tenants.items())}

    def tenant(self, name: Tenant) -> Member:
        """One of them. Raises `TenancyError`."""
        try:
            return self._book.tenants[name]
        except KeyError:
            raise TenancyError(f"there is no tenant {name!r}") from None

    def create(self, name: Tenant, policy: TenantPolicy | None = None) -> str:
        """A new tenant; returns the text of its credentials file. Raises `TenancyError`, `InvalidName`."""
        with self._changing():
            if token(name, "tenant") in self._book.tenants:
                raise TenancyError(f"there is a tenant {name!r} already: give it new credentials with rotate")
            account = Key.new(KeyKind.ACCOUNT)
            self._book.tenants[name] = Member(
                account.seed, account.public, self._now(), policy or TenantPolicy(tenant=name)
            )
            return self._issue(name)

    def rotate(self, name: Tenant, *, keep: bool = False) -> str:
        """New credentials for a tenant; the old ones are void, unless they are to be kept. Raises `TenancyError`."""
        with self._changing():
            member = self.tenant(name)
            if not keep:
                void = {**member.revoked, **dict.fromkeys(member.users, self._now())}
                self._book.tenants[name] = structs.replace(member, users=(), revoked=void)
            return self._issue(name)

    def revoke(self, name: Tenant, public: str) -> None:
        """Make one of a tenant's users void. Raises `TenancyError`."""
        with self._changing():
            member = self.tenant(name)
            if public not in member.users:
                raise TenancyError(f"tenant {name!r} has no user {public}")
            rest = tuple(user for user in member.users if user != public)
            void = {**member.revoked, public: self._now()}
            self._book.tenants[name] = structs.replace(member, users=rest, revoked=void)

    def set_policy(self, policy: TenantPolicy) -> None:
        """What a tenant may have. Raises `TenancyError`."""
        with self._changing():
            member = self.tenant(Tenant(policy.tenant))
            self._book.tenants[policy.tenant] = structs.replace(member, policy=policy)

    def limit_connections(self, name: Tenant, most: int | None) -> None:
        """How many connections the tenant may have at once. Raises `TenancyError`."""
        with self._changing():
            self._book.tenants[name] = structs.replace(self.tenant(name), connections=most)

    def grant(self, reader: Tenant, grant: Grant) -> None:
        """Let `reader` read what `grant` names. Raises `TenancyError`."""
        with self._changing():
            self.tenant(grant.owner)
            member = self.tenant(reader)
            entry = _entry(grant)
            if entry not in member.granted:
                self._book.tenants[reader] = structs.replace(member, granted=(*member.granted, entry))

    def withdraw(self, reader: Tenant, grant: Grant) -> None:
        """Take a grant back. Raises `TenancyError`."""
        with self._changing():
            member = self.tenant(reader)
            if _entry(grant) not in member.granted:
                raise TenancyError(f"tenant {reader!r} was never granted that of {grant.owner!r}")
            rest = tuple(g for g in member.granted if g != _entry(grant))
            self._book.tenants[reader] = structs.replace(member, granted=rest)

    def remove(self, name: Tenant) -> None:
        """The tenant is no more: all its users are void, and what others were granted of it is gone. Raises `TenancyError`."""
        with self._changing():
            self._book.removed[self.tenant(name).public] = name
            del self._book.tenants[name]
            for other, member in self._book.tenants.items():
                rest = tuple(g for g in member.granted if g.owner != name)
                self._book.tenants[other] = structs.replace(member, granted=rest)

    # --- credentials of our own ---

    def role(self, role: Role) -> str:
        """New credentials for a process of Myna's own."""
        user = Key.new(KeyKind.USER)
        claims = accounts.role_user(user.public, role, self._now())
        return credentials.text(keys.sign(claims, Key.of(self._book.streams)), user)

    def admin(self) -> str:
        """New credentials with which accounts are changed on running servers."""
        user = Key.new(KeyKind.USER)
        claims = accounts.administrator(user.public, self._now())
        return credentials.text(keys.sign(claims, Key.of(self._book.system)), user)

    def renew_roles(self) -> None:
        """Make all credentials of Myna's own processes void that were issued before this second."""
        with self._changing():
            self._book.roles_since = self._now() - 1

    # --- what servers are told ---

    @property
    def operator_claims(self) -> str:
        """The operator's signed claims, the root of a server's trust: the same whenever they are asked for."""
        operator = Key.of(self._book.operator)
        return keys.sign(accounts.operator(operator, self.system_account, 0), operator)

    @property
    def system_claims(self) -> str:
        """Signed claims of the account in which servers are administered: they never change."""
        return keys.sign(accounts.system(self.system_account, 0), Key.of(self._book.operator))

    @property
    def system_account(self) -> str:
        """Public key of the account in which servers are administered."""
        return Key.of(self._book.system).public

    @property
    def routes_password(self) -> str:
        """By which a cluster's servers know each other."""
        return self._book.routes

    @property
    def streams_account(self) -> str:
        """Public key of the account that has the streams."""
        return Key.of(self._book.streams).public

    def account_claims(self) -> dict[str, str]:
        """Signed claims of all other accounts by public key, as the folder has them now; those of removed tenants last."""
        with self._changing():
            now = self._now()
            void = {accounts.EVERYBODY: self._book.roles_since} if self._book.roles_since else None
            claims = [accounts.streams(self.streams_account, now, void)]
            claims += [self._tenant_claims(name, now) for name in self.tenants]
            claims += [accounts.removed(public, name, now) for public, name in self._book.removed.items()]
            return {body["sub"]: self._sign(body) for body in claims}

    def tenant_claims(self, name: Tenant) -> str:
        """Signed claims of a tenant's account. Raises `TenancyError`."""
        with self._changing():
            return self._sign(self._tenant_claims(name, self._now()))

    def removed_claims(self, public: str) -> str:
        """Signed claims of a removed tenant's account, which let nobody in."""
        with self._changing():
            return self._sign(accounts.removed(public, self._book.removed[public], self._now()))

    def policies(self) -> list[TenantPolicy]:
        """What schedulers are told of all tenants, and of those that are no more, as the folder has them now."""
        self._reload()
        gone = sorted(set(self._book.removed.values()) - self._book.tenants.keys())
        there = [member.policy for member in self.tenants.values()]
        return [*there, *(TenantPolicy(tenant=name, removed=True) for name in gone)]

    # --- inside ---

    @property
    def _path(self) -> Path:
        return self.folder / _FILE

    def _now(self) -> int:
        return int(self._clock())

    def _sign(self, claims: dict[str, Any]) -> str:
        """An account's claims, signed. Servers tell newer from older by the second of issue: each change gets one of its own."""
        content = hashlib.sha256(msgspec.json.encode({**claims, "iat": 0}, order="sorted")).hexdigest()
        last = self._book.issued.get(claims["sub"])
        if last is None or last.content != content:
            at = claims["iat"] if last is None else max(claims["iat"], last.at + 1)
            last = self._book.issued[claims["sub"]] = _Issued(at, content)
        return keys.sign({**claims, "iat": last.at}, Key.of(self._book.operator))

    def _tenant_claims(self, name: Tenant, now: int) -> dict[str, Any]:
        member = self.tenant(name)
        return accounts.tenant(
            name,
            member.public,
            self.streams_account,
            now,
            grants=(Grant(Tenant(g.owner), g.session, g.variable) for g in member.granted),
            revoked=member.revoked,
            connections=member.connections,
        )

    def _issue(self, name: Tenant) -> str:
        member, user = self.tenant(name), Key.new(KeyKind.USER)
        self._book.tenants[name] = structs.replace(member, users=(*member.users, user.public))
        token = keys.sign(accounts.tenant_user(user.public, name, self._now()), Key.of(member.seed))
        return credentials.text(token, user)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the newest state of the folder: another process may have changed it since."""
        with self._locked():
            self._load()
            yield
            self._save()

    def _reload(self) -> None:
        with self._locked():
            self._load()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _load(self) -> None:
        self._book = msgspec.json.decode(self._path.read_bytes(), type=_Book)

    def _save(self) -> None:
        credentials.write_private(self._path, msgspec.json.format(msgspec.json.encode(self._book)).decode())


_FILE = "authority.json"
_KINDS = (KeyKind.OPERATOR, KeyKind.ACCOUNT, KeyKind.ACCOUNT)


def _entry(grant: Grant) -> Granted:
    return Granted(grant.owner, grant.session, grant.variable)
