"""API keys: whose a request is.

Law: a key is known by its SHA-256 digest alone; the table of keys holds no secret that opens anything. (Keys are 256 random bits:
a slow hash, which passwords need, would add nothing.) A changed table counts from the next second on, without a restart.

    [[key]]                 # MYNA_GATEWAY_KEYS names a file of these; `myna key TENANT` makes one
    name = "laptop"
    sha256 = "9f86…"
    tenant = "acme"
    rate = 600              # requests a minute; without it, the gateway's own limit
    operator = true         # may look at what engines do and at all tenants' sessions; without it, at its own tenant's alone
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import structlog

from myna.actors.config import ConfigError
from myna.actors.messages import Id, Tenant

_log = structlog.get_logger(__name__)

LOOK_AGAIN = 1.0
"""Seconds between two looks at the table's file."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the tenant whose sessions these are, the key's name, and how many requests a minute it may make. An operator may
    also look at what engines do, and at other tenants' sessions."""

    tenant: Tenant
    name: str
    rate: float | None = None
    operator: bool = False


class _Key(msgspec.Struct, forbid_unknown_fields=True):
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    tenant: Id
    name: str = ""
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    operator: bool = False


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    key: list[_Key] = []


def digest(key: str) -> str:
    """What the table holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def make(tenant: str, name: str, *, operator: bool = False) -> tuple[str, str]:
    """A new key, and its entry for the table."""
    key = f"myna-{secrets.token_urlsafe(32)}"
    entry = f'[[key]]\nname = {json.dumps(name)}\nsha256 = "{digest(key)}"\ntenant = "{tenant}"\n'
    return key, entry + ("operator = true\n" if operator else "")


def read(path: Path, rate: float | None = None) -> dict[str, Caller]:
    """The callers by their keys' digests. `rate` is for keys without one. Raises `ConfigError`."""
    try:
        table = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Table)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the table of API keys {path} can't be read: {error}") from None
    return {k.sha256: Caller(Tenant(k.tenant), k.name or k.sha256[:8], k.rate or rate, k.operator) for k in table.key}


class Keys:
    """The table in a file. Without a file everybody is `tenant`, and the operator too, and no key is asked for."""

    def __init__(self, path: Path | None, tenant: str, rate: float | None, clock: Callable[[], float]) -> None:
        """Raises `ConfigError`."""
        self._path = path
        self._open = Caller(Tenant(tenant), "everybody", rate, operator=True)
        self._rate = rate
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        self._callers = read(path, rate) if path is not None else {}

    @property
    def needed(self) -> bool:
        """Whether a key is asked for."""
        return self._path is not None

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """Whose keys there are."""
        callers = [self._open] if self._path is None else self._callers.values()
        return tuple(dict.fromkeys(caller.tenant for caller in callers))

    def find(self, key: str | None) -> Caller | None:
        """Whose key this is; None if nobody's."""
        if self._path is None:
            return self._open
        self._look(self._path)
        return self._callers.get(digest(key)) if key else None

    def _look(self, path: Path) -> None:
        now = self._clock()
        if now - self._looked < LOOK_AGAIN:
            return
        self._looked = now
        if (stamp := _stamp(path)) != self._stamp:
            try:
                self._callers = read(path, self._rate)
                self._stamp = stamp
            except ConfigError as error:  # the old table stands until the new one can be read
                _log.error("keys not read", reason=str(error))


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        return None if path is None else ((found := path.stat()).st_mtime_ns, found.st_size)
    except OSError:
        return None
