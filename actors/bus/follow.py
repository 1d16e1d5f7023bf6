"""Following a stream: an ordered consumer of our own, replaced whenever it may have missed something.

The consumer is ephemeral, unacknowledged and in memory; it numbers what it sends. A gap in these numbers, a heartbeat that
doesn't match or doesn't come, or a new connection (perhaps to a restarted server) ends it, and another one goes on behind
the last message that reached the mailbox. So nothing is lost and nothing comes twice. The server's flow control is answered
by the mailbox, in its turn, so that what waits is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from myna.actors.bus import BusError, ErrorHandler, NotAllowed, Stored, StoredHandler, Subscription
from myna.actors.bus.headers import status_of, unpack_headers
from myna.actors.bus.jetstream import API, ApiError, JetStream, nanoseconds, sent_headers
from myna.actors.bus.mailbox import UNLIMITED, CaughtUp, Mailbox

_HEARTBEAT = 1.0  # seconds between two heartbeats of an idle consumer
_MISSED = 3.2  # heartbeats after which it is given up
_ABANDONED = 10.0  # seconds after which the server drops a consumer that nobody listens to
_GOODBYE = 1.0  # seconds to wait for the deletion of a consumer
_CONTROL = 100
_SIZE = "Nats-Msg-Size"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _FlowControl:
    reply: str


_Item = Stored | _FlowControl | CaughtUp


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a follow wants of its stream."""

    stream: str
    subject: str | None
    after: int
    headers_only: bool


class Follow(Subscription):
    """One running follow. `start` it once."""

    def __init__(
        self,
        jetstream: JetStream,
        wanted: Wanted,
        handler: StoredHandler,
        caught_up: Callable[[], Awaitable[None]] | None,
        on_error: ErrorHandler | None,
        detach: Callable[[Follow], None],
    ) -> None:
        self._jetstream = jetstream
        self._link = jetstream.link
        self._wanted = wanted
        self._handler = handler
        self._on_caught_up = caught_up
        self._detach = detach
        self._last = wanted.after
        self._received = 0
        self._stored_at_start: int | None = None  # counted as the consumer counts
        self._behind = caught_up is not None
        self._heard = 0.0
        self._stale = asyncio.Event()
        self._number: int | None = None
        self._consumer = ""
        self._task: asyncio.Task[None] | None = None
        self._mailbox: Mailbox[_Item] = Mailbox(
            f"stream {wanted.stream}", self._handle, on_error, UNLIMITED, lambda _: None
        )

    async def start(self, timeout: float = 10.0) -> None:
        """Begin. Raises `Unavailable`, `NotAllowed`, or `BusError` where there is no such stream."""
        try:
            await self._create(timeout)
        except BaseException:
            await self._mailbox.close()
            raise
        self._task = asyncio.create_task(self._supervise(), name=f"follow {self._wanted.stream}")

    def renew(self) -> None:
        """Replace the consumer: it may have missed something, or be gone."""
        self._stale.set()

    async def close(self) -> None:
        """Stop; no handler runs after this returns, and the server has no consumer of ours if it answers in a second."""
        consumer = await self._end()
        if consumer is not None and self._link.up.is_set():
            with contextlib.suppress(TimeoutError, BusError):
                await self._link.ask(consumer, b"", timeout=_GOODBYE)

    async def stop(self) -> None:
        """Stop as `close` does, without awaiting the server."""
        consumer = await self._end()
        if consumer is not None and self._link.up.is_set():
            self._link.tell(consumer)

    async def _end(self) -> str | None:
        task, self._task = self._task, None
        consumer = None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            consumer = self._drop()
            self._detach(self)
        await self._mailbox.close()
        return consumer

    # --- the consumer ---

    async def _supervise(self) -> None:
        delay = 0.05
        while True:
            await self._watch()
            consumer = self._drop()
            if consumer is not None and self._link.up.is_set():
                self._link.tell(consumer)
            try:
                await self._create(10.0)
                delay = 0.05
            except NotAllowed as error:
                self._mailbox.fail(error)
                return
            except BusError as error:
                _log.warning("bus.follow_retries", stream=self._wanted.stream, after=self._last, error=str(error))
                self._stale.set()
                await asyncio.sleep(delay)
                delay = min(2 * delay, 2.0)

    async def _watch(self) -> None:
        """Await the need for another consumer."""
        loop = asyncio.get_running_loop()
        while not self._stale.is_set():
            left = self._heard + _MISSED * _HEARTBEAT - loop.time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._stale.wait()

    async def _create(self, timeout: float) -> None:
        self._stale.clear()
        self._received = 0
        self._stored_at_start = None
        self._heard = asyncio.get_running_loop().time()
        inbox = self._link.new_inbox()
        number = await self._link.listen(inbox, self._arrived, timeout=timeout)
        try:
            request = {"stream_name": self._wanted.stream, "config": self._config(inbox)}
            answer = await self._jetstream.api(f"CONSUMER.CREATE.{self._wanted.stream}", request, timeout=timeout)
        except ApiError as error:
            self._link.forget(number)
            raise BusError(f"stream {self._wanted.stream} can't be followed: {error}") from error
        except BaseException:
            self._link.forget(number)
            raise
        self._number = number
        self._consumer = answer["name"]
        self._stored_at_start = int(answer.get("num_pending", 0)) + int(answer["delivered"]["consumer_seq"])
        self._note_progress(pending=None)

    def _config(self, inbox: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "flow_control": True,
            "idle_heartbeat": nanoseconds(_HEARTBEAT),
            "inactive_threshold": nanoseconds(_ABANDONED),
            "headers_only": self._wanted.headers_only,
            "deliver_policy": "all",
        }
        if self._last:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self._last + 1}
        if self._wanted.subject is not None:
            config["filter_subject"] = self._wanted.subject
        return config

    def _drop(self) -> str | None:
        """Stop listening to the consumer; returns where to have it deleted (if nobody does, the server will by itself)."""
        if self._number is None:
            return None
        self._link.forget(self._number)
        self._number = None
        return f"{API}.CONSUMER.DELETE.{self._wanted.stream}.{self._consumer}"

    # --- what arrives, in the connection's order ---

    def _arrived(self, subject: str, reply: str, head: bytes, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = status_of(head) if head else None
        if status is None:
            self._message(subject, reply, head, data)
        elif status == _CONTROL:
            self._control(reply, unpack_headers(head))
        else:  # the consumer was deleted, or its leader changed
            self._stale.set()

    def _message(self, subject: str, reply: str, head: bytes, data: bytes) -> None:
        stream_sequence, number, nanos, pending = _delivery_numbers(reply)
        if number != self._received + 1:
            self._stale.set()
        if self._stale.is_set():
            return
        self._received = number
        self._last = stream_sequence
        headers = unpack_headers(head) if head else {}
        size = _size(headers) if self._wanted.headers_only else None
        stored = Stored(
            subject, data, sent_headers(headers), stream_sequence, len(data) if size is None else size, nanos / 1e9
        )
        self._mailbox.put(stored, len(data) + len(head))
        self._note_progress(pending)

    def _control(self, reply: str, headers: dict[str, str]) -> None:
        stalled = headers.get("Nats-Consumer-Stalled")
        if flow := reply or stalled:
            self._mailbox.put(_FlowControl(flow), 0)
        if not reply:  # a heartbeat
            if int(headers.get("Nats-Last-Consumer", self._received)) != self._received:
                self._stale.set()
            elif not stalled:
                self._note_progress(pending=0)

    def _note_progress(self, pending: int | None) -> None:
        """Put the mark into the mailbox once all that was stored at the start is there."""
        if not self._behind or self._stale.is_set():
            return
        if pending == 0 or (self._stored_at_start is not None and self._received >= self._stored_at_start):
            self._behind = False
            self._mailbox.put(CaughtUp(), 0)

    # --- what is handled, one after another ---

    async def _handle(self, item: _Item) -> None:
        match item:
            case Stored():
                await self._handler(item)
            case _FlowControl(reply):
                if self._link.up.is_set():
                    self._link.tell(reply)
            case CaughtUp():
                if self._on_caught_up is not None:
                    await self._on_caught_up()


def _size(headers: dict[str, str]) -> int | None:
    """The body's size, where the server left the body out. A sender may have forged the header."""
    text = headers.get(_SIZE, "")
    return int(text) if text.isdecimal() and len(text) < 12 else None


def _delivery_numbers(reply: str) -> tuple[int, int, int, int]:
    """Stream sequence, consumer sequence, time in nanoseconds and pending count of a consumer's message.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<number>.<time>.<pending>`; with a domain, `<domain>.<account>` comes
    behind `ACK`, and a random token last.
    """
    tokens = reply.split(".")
    first = 5 if len(tokens) == 9 else 7
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 2]), int(tokens[first + 3])
