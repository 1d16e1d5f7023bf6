"""Rights as NATS claims: an account for the streams and Myna's own processes, one for each tenant, one for the servers.

The streams' account exports what tenants may ask and hear, with a wildcard for the tenant; a tenant's account imports it with
its own name there. Nobody but the authority can sign an account's claims, so nobody imports more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from myna.actors import subjects
from myna.actors.messages import Tenant
from myna.actors.tenants import rights
from myna.actors.tenants.keys import Key
from myna.actors.tenants.rights import Grant, Rights, Role

STREAMS_ACCOUNT = "MYNA"
SYSTEM_ACCOUNT = "SYS"
ADMIN = "admin"
EVERYBODY = "*"
"""In place of a user's key, where all users are revoked."""

_UNLIMITED = -1  # how NATS writes "no limit"
_ANSWER_SECONDS = 60


def operator(key: Key, system: str, now: int) -> dict[str, Any]:
    """Claims of the operator, under whom all accounts are."""
    return _claims(key.public, "myna", now, {"type": "operator", "system_account": system})


def system(account: str, now: int) -> dict[str, Any]:
    """Claims of the account in which servers are administered."""
    return _claims(account, SYSTEM_ACCOUNT, now, {"type": "account", "limits": _limits()})


def streams(account: str, now: int, revoked: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Claims of the account that has the streams. `revoked` as in `tenant`."""
    exports = [_port(name, "service", response_type="Singleton") for name in rights.SERVICES]
    exports += [_port(name, "stream") for name in rights.FEEDS]
    limits = _limits() | {"mem_storage": _UNLIMITED, "disk_storage": _UNLIMITED}
    body = {"type": "account", "exports": exports, "limits": limits}
    return _claims(account, STREAMS_ACCOUNT, now, body | _revocations(revoked))


def tenant(
    name: Tenant,
    account: str,
    provider: str,
    now: int,
    *,
    grants: Iterable[Grant] = (),
    revoked: Mapping[str, int] | None = None,
    connections: int | None = None,
) -> dict[str, Any]:
    """Claims of a tenant's account, importing from account `provider`, with the permissions of its users. `revoked`: users'
    public keys and the second until which their claims are void. `connections` at once is a limit."""
    granted = tuple(grants)
    imports = [_port(s, "service", account=provider) for s in rights.services(name, granted)]
    imports += [_port(s, "stream", account=provider) for s in rights.feeds(name, granted)]
    limits = _limits()
    if connections is not None:
        limits["conn"] = connections
    may = _permissions(rights.of_tenant(name, granted))
    body = {"type": "account", "imports": imports, "limits": limits, "default_permissions": may}
    return _claims(account, name, now, body | _revocations(revoked))


def removed(account: str, name: str, now: int) -> dict[str, Any]:
    """Claims of an account that is no more: nothing is imported, and every user that it ever had is void."""
    limits = _limits() | {"conn": 0}
    return _claims(account, name, now, {"type": "account", "limits": limits, **_revocations({EVERYBODY: now})})


def deletion(operator_key: str, accounts: Iterable[str], now: int) -> dict[str, Any]:
    """The order to servers to forget `accounts`."""
    return _claims(operator_key, "delete", now, {"type": "generic", "accounts": list(accounts)})


def role_user(public: str, role: Role, now: int) -> dict[str, Any]:
    """Claims of a process of Myna's own."""
    return _user(public, f"role:{role}", now, _permissions(rights.of_role(role)))


def tenant_user(public: str, name: Tenant, now: int) -> dict[str, Any]:
    """Claims of a tenant's user, whose permissions are its account's: they change without a new user."""
    return _user(public, f"tenant:{name}", now, {})


def administrator(public: str, now: int) -> dict[str, Any]:
    """Claims of the user that changes accounts on running servers."""
    may = Rights(("$SYS.REQ.CLAIMS.>", "$SYS.REQ.SERVER.PING"), (f"{subjects.inbox(ADMIN)}.>",))
    return _user(public, f"role:{ADMIN}", now, _permissions(may))


def _claims(subject: str, name: str, now: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"sub": subject, "name": name, "iat": now, "nats": {"version": 2, **body}}


def _port(subject: str, kind: str, **more: str) -> dict[str, str]:
    return {"name": subject, "subject": subject, "type": kind, **more}


def _limits() -> dict[str, Any]:
    names = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
    return dict.fromkeys(names, _UNLIMITED) | {"leaf": 0, "wildcards": True}


def _user(public: str, name: str, now: int, may: dict[str, Any]) -> dict[str, Any]:
    limits = dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
    return _claims(public, name, now, {"type": "user", **may, **limits})


def _permissions(may: Rights) -> dict[str, Any]:
    body: dict[str, Any] = {"pub": {"allow": list(may.publish)}, "sub": {"allow": list(may.subscribe)}}
    if may.answers:
        body["resp"] = {"max": 1, "ttl": _ANSWER_SECONDS * 10**9}
    return body


def _revocations(revoked: Mapping[str, int] | None) -> dict[str, Any]:
    return {"revocations": dict(revoked)} if revoked else {}
