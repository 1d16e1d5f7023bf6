"""The bus in one process: the same promises, kept by a shared `MemoryBroker` on one event loop, without threads or a network.

What a real server does at its own pace happens here at once: a message is in every mailbox when `publish` or `append` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from myna.actors.bus import (
    Bus,
    Delivery,
    ErrorHandler,
    Handler,
    LeaseState,
    Receipt,
    Stored,
    StoredHandler,
    StreamSize,
    Subscription,
    Unavailable,
)
from myna.actors.bus.broker import Follower, MemoryBroker
from myna.actors.bus.checks import check_headers, check_pattern, check_size, check_subject
from myna.actors.bus.mailbox import UNLIMITED, CaughtUp, Limits, Mailbox
from myna.actors.subjects import MESSAGE_ID, Stream, token

__all__ = ["MemoryBroker", "MemoryBus"]


class MemoryBus(Bus):
    """One actor's connection to a `MemoryBroker`."""

    def __init__(
        self, broker: MemoryBroker, *, limits: Limits | None = None, on_error: ErrorHandler | None = None
    ) -> None:
        self._broker = broker
        self._limits = limits or Limits()
        self._on_error = on_error
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str | None = None
    ) -> None:
        """Deliver at once to whoever listens now."""
        self._broker.publish(self._message(subject, data, headers, reply))

    async def subscribe(self, subject: str, handler: Handler, *, on_error: ErrorHandler | None = None) -> Subscription:
        """Handle what comes on `subject`."""
        self._check_open()
        check_pattern(subject)

        def detach(mailbox: Mailbox[Delivery]) -> None:
            self._broker.unsubscribe(subject, mailbox)
            self._subscriptions.discard(mailbox)

        mailbox = Mailbox[Delivery](subject, handler, on_error or self._on_error, self._limits, detach)
        self._broker.subscribe(subject, mailbox)
        self._subscriptions.add(mailbox)
        return mailbox

    async def request(self, subject: str, data: bytes, *, timeout: float = 5.0) -> Delivery:
        """Ask and await one answer."""
        self._message(subject, data, None, None)
        return await self._broker.ask(subject, data, timeout)

    async def ensure(self, streams: Sequence[Stream]) -> None:
        """Create streams, or bring them up to date."""
        self._check_open()
        for stream in streams:
            self._broker.ensure(stream)

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        """Store a message. It never takes time, so `timeout` doesn't matter; other tasks run before it returns."""
        if message_id is not None:
            headers = {MESSAGE_ID: message_id, **(headers or {})}
        receipt = self._broker.append(self._message(subject, data, headers, None))
        await asyncio.sleep(0)
        return receipt

    async def get(self, stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        """The last message of `subject`; other tasks run before it is looked up."""
        self._check_open()
        await asyncio.sleep(0)
        return self._broker.stream(stream).latest(subject)

    async def follow(
        self,
        stream: Stream,
        handler: StoredHandler,
        *,
        subject: str | None = None,
        after: int = 0,
        headers_only: bool = False,
        caught_up: Callable[[], Awaitable[None]] | None = None,
        on_error: ErrorHandler | None = None,
    ) -> Subscription:
        """Handle every stored message above `after`. A follower is never too slow: it holds only references."""
        self._check_open()
        state = self._broker.stream(stream)

        async def handle(item: Stored | CaughtUp) -> None:
            match item:
                case Stored():
                    await handler(item)
                case CaughtUp():
                    if caught_up is not None:
                        await caught_up()

        def detach(mailbox: Mailbox[Stored | CaughtUp]) -> None:
            state.followers.remove(follower)
            self._subscriptions.discard(mailbox)

        mailbox = Mailbox[Stored | CaughtUp](
            f"stream {stream.name}", handle, on_error or self._on_error, UNLIMITED, detach
        )
        follower = Follower(mailbox, None if subject is None else subject.split("."), headers_only)
        for stored in state.messages.values():
            if stored.sequence > after:
                follower.put(stored)
        mailbox.put(CaughtUp(), 0)
        state.followers.append(follower)
        self._subscriptions.add(mailbox)
        return mailbox

    async def purge(self, stream: Stream, subject: str, *, keep: int = 0) -> int:
        """Delete the messages of `subject` but for the last `keep`."""
        self._check_open()
        return self._broker.stream(stream).purge(subject, keep)

    async def measure(self, stream: Stream) -> StreamSize:
        """Messages, and bytes of their bodies."""
        self._check_open()
        messages = self._broker.stream(stream).messages
        return StreamSize(len(messages), sum(stored.size for stored in messages.values()))

    async def acquire(self, name: str, holder: bytes, *, ttl: float) -> int:
        """Create lease `name`."""
        self._check_open()
        return self._broker.acquire(token(name, "lease"), holder, ttl)

    async def renew(self, name: str, holder: bytes, revision: int) -> int:
        """Renew by compare-and-set."""
        self._check_open()
        return self._broker.renew(token(name, "lease"), holder, revision)

    async def lease(self, name: str) -> LeaseState | None:
        """Who holds the lease now."""
        self._check_open()
        return self._broker.lease(token(name, "lease"))

    async def release(self, name: str, revision: int) -> None:
        """Give the lease up, if it is still ours."""
        self._check_open()
        self._broker.release(token(name, "lease"), revision)

    @property
    def connected(self) -> bool:
        """Whether it is still open."""
        return not self._closed

    async def close(self) -> None:
        """End all subscriptions."""
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the bus is closed")

    def _message(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str | None) -> Delivery:
        self._check_open()
        check_subject(subject)
        if reply is not None:
            check_subject(reply)
        check_size(subject, data)
        return Delivery(subject, data, check_headers(headers), reply)
