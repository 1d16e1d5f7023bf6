"""Leases over a JetStream key-value bucket: one key a lease, compare-and-set by revision, and the bucket's time to live.

A key's revision is its sequence in the bucket's stream. The stream drops a key `ttl` seconds after its last write, and the
lease is free. The server checks the expected revision before the message id, so a repeated write reads back; and a write that was
never acknowledged may yet be there when the next one comes, which is no reason to lose one's own lease.

No per-message time to live and no limit markers: both misbehave with nats-py 2.16. A released lease leaves the
bucket's usual delete marker.
"""

from __future__ import annotations

import secrets
from typing import Any

from myna.actors import subjects
from myna.actors.bus import LeaseLost, LeaseState, Stored
from myna.actors.bus.jetstream import STREAM_NAME_IN_USE, WRONG_LAST_SEQUENCE, ApiError, JetStream, Tries, nanoseconds
from myna.actors.subjects import MESSAGE_ID, token

_STREAM = f"KV_{subjects.LEASES}"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_OPERATION = "KV-Operation"
_TIMEOUT = 5.0
_CREATE_TIMEOUT = 20.0
_CATCH_UP = 1.0
"""Seconds for a replica that is behind."""


class Leases:
    """The leases of one bus."""

    def __init__(self, jetstream: JetStream, replicas: int) -> None:
        self._jetstream = jetstream
        self._replicas = replicas
        self._ttl: float | None = None
        self._doubtful: dict[str, set[str]] = {}
        """Message ids of our writes to a lease since the last one of which we know what became of it."""

    async def create(self) -> None:
        """Create the bucket, if there is none."""
        try:
            await self._jetstream.api(
                f"STREAM.CREATE.{_STREAM}", self._config(subjects.LEASE_TTL), timeout=_CREATE_TIMEOUT
            )
        except ApiError as error:
            if error.number != STREAM_NAME_IN_USE:
                raise

    async def acquire(self, name: str, holder: bytes, ttl: float) -> int:
        """Take a free lease; returns its revision. `ttl` is the whole bucket's. Raises `LeaseLost`."""
        if self._ttl != ttl:
            await self._jetstream.configure(self._config(ttl), timeout=_CREATE_TIMEOUT)
            self._ttl = ttl
        last = await self._jetstream.get(_STREAM, _key(name), _TIMEOUT)
        if last is not None and _OPERATION not in last.headers:
            raise LeaseLost(f"lease {name} is held")
        return await self._write(name, holder, last.sequence if last is not None else 0)

    async def renew(self, name: str, holder: bytes, revision: int) -> int:
        """Write the lease again if it still has `revision`; returns the new one. Raises `LeaseLost`."""
        return await self._write(name, holder, revision)

    async def state(self, name: str) -> LeaseState | None:
        """Who holds the lease."""
        last = await self._jetstream.get(_STREAM, _key(name), _TIMEOUT)
        return None if last is None or _OPERATION in last.headers else LeaseState(last.data, last.sequence)

    async def release(self, name: str, revision: int) -> None:
        """Free the lease if it still has `revision`."""
        try:
            await self._write(name, b"", revision, {_OPERATION: "DEL"})
        except LeaseLost:
            return

    async def _write(self, name: str, data: bytes, expected: int, headers: dict[str, str] | None = None) -> int:
        message_id = secrets.token_hex(12)
        self._doubtful.setdefault(name, set()).add(message_id)
        try:
            receipt = await self._jetstream.append(
                _key(name),
                data,
                message_id=message_id,
                headers={_EXPECTED: str(expected), **(headers or {})},
                timeout=_TIMEOUT,
            )
        except ApiError as error:
            if error.number != WRONG_LAST_SEQUENCE:
                raise
            last = await self._after(name, expected)
            ours = self._doubtful.pop(name, set())
            if last is None or last.headers.get(MESSAGE_ID) not in ours:
                raise LeaseLost(f"lease {name} is not ours: it changed since revision {expected}") from error
            return last.sequence  # of a write whose acknowledgement was lost
        self._doubtful.pop(name, None)
        return receipt.sequence

    async def _after(self, name: str, revision: int) -> Stored | None:
        """What was written after `revision`. Raises `Unavailable` where no replica shows it soon."""
        tries = Tries(self._jetstream.link, _CATCH_UP)
        while True:
            last = await self._jetstream.get(_STREAM, _key(name), _TIMEOUT)
            if last is None or last.sequence > revision:
                return last
            await tries.again(f"lease {name}", "it has changed, and a replica that is behind does not show how")

    def _config(self, ttl: float) -> dict[str, Any]:
        return {
            "name": _STREAM,
            "subjects": [f"$KV.{subjects.LEASES}.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": self._replicas,
            "max_msgs_per_subject": 1,
            "max_age": nanoseconds(ttl),
            "duplicate_window": nanoseconds(ttl),
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
        }


def _key(name: str) -> str:
    return f"$KV.{subjects.LEASES}.{token(name, 'lease')}"
