"""Nkeys (Ed25519) and claims signed with them: the JSON web tokens by which NATS servers know accounts and users.

A seed is a secret that never leaves the authority's folder, or the one credentials file that it was made for. Servers hold
public keys only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import nkeys

_ALGORITHM = {"typ": "JWT", "alg": "ed25519-nkey"}


class InvalidClaims(ValueError):
    """A text that is no signed claims, or is not signed by the key that it names."""


class KeyKind(Enum):
    """What a key stands for; the first letter of its public form."""

    OPERATOR = nkeys.PREFIX_BYTE_OPERATOR
    ACCOUNT = nkeys.PREFIX_BYTE_ACCOUNT
    USER = nkeys.PREFIX_BYTE_USER


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair."""

    public: str
    seed: str = field(repr=False)

    @classmethod
    def new(cls, kind: KeyKind) -> Key:
        """A new random one."""
        return cls.of(nkeys.encode_seed(secrets.token_bytes(32), kind.value).decode())

    @classmethod
    def of(cls, seed: str) -> Key:
        """The pair of a seed."""
        return cls(nkeys.from_seed(bytearray(seed.encode())).public_key.decode(), seed)

    def sign(self, data: bytes) -> bytes:
        """64 bytes that only the holder of the seed can make."""
        signature: bytes = nkeys.from_seed(bytearray(self.seed.encode())).sign(data)
        return signature


def sign(claims: Mapping[str, Any], issuer: Key) -> str:
    """`claims` (with `sub`, `name`, `iat` and `nats`) as a token of `issuer`."""
    body = {**claims, "iss": issuer.public}
    body["jti"] = base64.b32encode(hashlib.sha256(_json(body)).digest()).decode().rstrip("=")
    signed = f"{_text(_json(_ALGORITHM))}.{_text(_json(body))}"
    return f"{signed}.{_text(issuer.sign(signed.encode()))}"


def read(token: str) -> dict[str, Any]:
    """The claims of a token, whose signature is not checked: servers do. Raises `InvalidClaims`."""
    try:
        _, body, _ = token.strip().split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError as error:
        raise InvalidClaims(f"no signed claims: {error}") from None
    if not isinstance(claims, dict) or not isinstance(claims.get("nats"), dict):
        raise InvalidClaims("no claims of a NATS operator, account or user")
    return claims


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
