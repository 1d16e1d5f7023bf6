"""A credentials file: a user's signed claims and its seed, in the form that all NATS clients read; mode 0600.

What it says of itself (whose it is) is for the client's convenience: the servers decide by the signature.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myna.actors import subjects
from myna.actors.messages import Tenant
from myna.actors.tenants import keys
from myna.actors.tenants.keys import InvalidClaims, Key
from myna.actors.tenants.rights import Role

_TOKEN = "NATS USER JWT"
_SEED = "USER NKEY SEED"


class InvalidCredentials(ValueError):
    """A file that is no credentials of Myna's, or can't be read."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose a credentials file is: a tenant's, or that of a process of Myna's own (`admin` changes accounts)."""

    tenant: Tenant | None
    role: str | None
    public: str

    @property
    def inbox_prefix(self) -> str:
        """Where this user's answers come in: nobody else may listen there."""
        return subjects.inbox(self.tenant or self.role or "")

    @property
    def is_operator(self) -> bool:
        """Whether it may ask about all tenants."""
        return self.role == Role.OPERATOR


def text(token: str, user: Key) -> str:
    """The contents of the file."""
    return "".join(f"-----BEGIN {what}-----\n{body}\n------END {what}------\n\n" for what, body in _parts(token, user))


def _parts(token: str, user: Key) -> tuple[tuple[str, str], ...]:
    return (_TOKEN, token), (_SEED, user.seed)


def claims(path: Path) -> dict[str, Any]:
    """The signed claims in the file, whose signature is not looked at. Raises `InvalidCredentials`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return keys.read(lines[next(n for n, line in enumerate(lines) if f"BEGIN {_TOKEN}" in line) + 1])
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCredentials(f"the credentials {path} can't be read: {error}") from None
    except (InvalidClaims, StopIteration, IndexError):
        raise InvalidCredentials(f"{path} is no credentials file") from None


def identity(path: Path) -> Identity:
    """Whose the file is. Raises `InvalidCredentials`."""
    said = claims(path)
    kind, _, name = str(said.get("name", "")).partition(":")
    try:
        subjects.token(name)
    except subjects.InvalidName:
        raise InvalidCredentials(f"{path} holds credentials of another system") from None
    public = str(said.get("sub", ""))
    return Identity(Tenant(name), None, public) if kind == "tenant" else Identity(None, name, public)


def write_private(path: Path, contents: str) -> None:
    """Write a file that only its owner can read: a reader sees the whole of it, or what was there before."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
