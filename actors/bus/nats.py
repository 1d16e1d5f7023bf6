"""The bus over NATS: every promise of the seam, kept by a real nats-server with JetStream.

JetStream is spoken here directly: publishing, direct get, follow and administration are requests with JSON answers. A direct
get is all the JetStream that a reader needs (Law 8). Requests that can be repeated safely are, until their time-out.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from myna.actors.bus import (
    Bus,
    Delivery,
    ErrorHandler,
    Handler,
    LeaseState,
    NotAllowed,
    Receipt,
    Stored,
    StoredHandler,
    StreamSize,
    Subscription,
    Unavailable,
)
from myna.actors.bus.checks import check_size, check_subject
from myna.actors.bus.follow import Follow, Wanted
from myna.actors.bus.headers import pack_headers, unpack_headers
from myna.actors.bus.jetstream import NO_RESPONDERS, JetStream, Tries, sent_headers, stream_config
from myna.actors.bus.leases import Leases
from myna.actors.bus.link import Link
from myna.actors.bus.mailbox import Limits, Mailbox
from myna.actors.bus.pulse import Pulse
from myna.actors.subjects import Stream

_log = structlog.get_logger(__name__)

Hook = Callable[[], None]

_SUBSCRIBE_TIMEOUT = 5.0
_CLOSE_TIMEOUT = 2.0
_NO_HEADERS: Mapping[str, str] = {}


class NatsBus(Bus):
    """A connection to NATS. Use `await NatsBus.connect(...)`."""

    def __init__(
        self, link: Link, *, replicas: int = 1, limits: Limits | None = None, on_error: ErrorHandler | None = None
    ) -> None:
        self._link = link
        self._replicas = replicas
        self._limits = limits or Limits()
        self._on_error = on_error
        self._jetstream = JetStream(link)
        self._leases = Leases(self._jetstream, replicas)
        self._mailboxes: dict[Mailbox[Delivery], int] = {}
        self._follows: set[Follow] = set()
        self._pulse: Pulse | None = None
        link.on_denied = self._denied

    @classmethod
    async def connect(
        cls,
        servers: str | Sequence[str],
        *,
        name: str = "myna",
        user: str | None = None,
        password: str | None = None,
        credentials: Path | None = None,
        tls: ssl.SSLContext | None = None,
        inbox_prefix: str = "_INBOX",
        pulse: str | None = None,
        replicas: int = 1,
        limits: Limits | None = None,
        timeout: float = 10.0,
        on_error: ErrorHandler | None = None,
        on_disconnect: Hook | None = None,
        on_reconnect: Hook | None = None,
    ) -> NatsBus:
        """Connect to one of `servers` (`nats://host:port`), and again for ever when the connection is lost.

        `credentials` is a NATS credentials file. `replicas` is for the streams that `ensure` creates, `limits` for every
        mailbox. `on_error` takes errors that belong to no subscription (a forbidden `publish`). On `pulse` something comes
        every few seconds; of several servers, one through which it does not is left. Raises `Unavailable` after `timeout`
        seconds, `NotAllowed` for a wrong credential.
        """
        link = Link()
        bus = cls(link, replicas=replicas, limits=limits, on_error=on_error)

        def up() -> None:
            if bus._pulse is not None:
                bus._pulse.connected()
            for follow in bus._follows:
                follow.renew()
            _call(on_reconnect)

        known = [servers] if isinstance(servers, str) else servers
        await link.open(
            known,
            timeout=timeout,
            on_down=lambda: _call(on_disconnect),
            on_up=up,
            name=name,
            user=user,
            password=password,
            user_credentials=None if credentials is None else str(credentials),
            tls=tls,
            inbox_prefix=inbox_prefix,
            ping_interval=1,
            max_outstanding_pings=2,
            reconnect_time_wait=0.1,
            connect_timeout=2,
        )
        if pulse is not None and len(known) > 1:
            bus._pulse = Pulse(link, pulse)
            try:
                await bus._pulse.begin()
            except BaseException:
                await bus.close()
                raise
        return bus

    # --- plain messages ---

    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str | None = None
    ) -> None:
        """Send at most once. Without a connection it waits in a buffer of 16 MiB; `Unavailable` where that is full."""
        head = pack_headers(headers) if headers else b""
        check_size(subject, data, len(head), self._link.max_payload)
        self._check_open()
        if reply is not None:
            check_subject(reply)
        await self._link.send(subject, data, reply=reply or "", head=head)

    async def subscribe(self, subject: str, handler: Handler, *, on_error: ErrorHandler | None = None) -> Subscription:
        """Handle what comes on `subject`. Raises `NotAllowed`, `Unavailable`. In a cluster, "whatever is published afterwards"
        holds for the server that we are connected to; the others learn of it a moment later."""
        self._check_open()
        mailbox = Mailbox[Delivery](subject, handler, on_error or self._on_error, self._limits, self._detach)

        def arrived(subject: str, reply: str, head: bytes, data: bytes) -> None:
            headers = sent_headers(unpack_headers(head)) if head else _NO_HEADERS
            mailbox.put(Delivery(subject, data, headers, reply or None), len(data))

        try:
            self._mailboxes[mailbox] = await self._link.listen(
                subject, arrived, timeout=_SUBSCRIBE_TIMEOUT, refused=mailbox.fail
            )
        except BaseException:
            await mailbox.close()
            raise
        return mailbox

    async def request(self, subject: str, data: bytes, *, timeout: float = 5.0) -> Delivery:
        """Ask and await one answer."""
        check_size(subject, data, 0, self._link.max_payload)
        self._check_open()
        tries = Tries(self._link, timeout)
        await tries.connected(subject)
        try:
            answer = await self._link.ask(subject, data, timeout=tries.left)
        except TimeoutError as error:
            raise Unavailable(f"{subject}: no answer within {timeout:g} s") from error
        if answer.status == NO_RESPONDERS:
            raise Unavailable(f"nobody listens on {subject}")
        headers = sent_headers(unpack_headers(answer.head)) if answer.head else _NO_HEADERS
        return Delivery(answer.subject, answer.data, headers)

    # --- streams ---

    async def ensure(self, streams: Sequence[Stream]) -> None:
        """Create streams or bring them up to date, and create the bucket of the leases; may run at the same time elsewhere."""
        self._check_open()
        await self._leases.create()
        for stream in streams:
            await self._jetstream.configure(stream_config(stream, self._replicas))

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        """Store a message in the stream of `subject`."""
        self._check_open()
        return await self._jetstream.append(subject, data, message_id=message_id, headers=headers, timeout=timeout)

    async def get(self, stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        """The last message of `subject`. Unless it is `fresh`, a replica may not know what was stored a moment ago."""
        self._check_open()
        get = self._jetstream.get_fresh if fresh else self._jetstream.get
        return await get(stream.name, subject, timeout)

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
        """Handle every stored message above `after`. Raises `BusError` where there is no such stream."""
        self._check_open()
        wanted = Wanted(stream.name, subject, after, headers_only)
        follow = Follow(self._jetstream, wanted, handler, caught_up, on_error or self._on_error, self._follows.discard)
        self._follows.add(follow)
        try:
            await follow.start()
        except BaseException:
            self._follows.discard(follow)
            raise
        return follow

    async def purge(self, stream: Stream, subject: str, *, keep: int = 0) -> int:
        """Delete the messages of `subject` but for the last `keep`."""
        self._check_open()
        return await self._jetstream.purge(stream.name, subject, keep)

    async def measure(self, stream: Stream) -> StreamSize:
        """How much a stream holds, as its leader says."""
        self._check_open()
        return await self._jetstream.measure(stream.name)

    # --- leases ---

    async def acquire(self, name: str, holder: bytes, *, ttl: float) -> int:
        """Create lease `name`. `ttl` belongs to the bucket: everybody must give the same."""
        self._check_open()
        return await self._leases.acquire(name, holder, ttl)

    async def renew(self, name: str, holder: bytes, revision: int) -> int:
        """Renew by compare-and-set."""
        self._check_open()
        return await self._leases.renew(name, holder, revision)

    async def lease(self, name: str) -> LeaseState | None:
        """Who holds the lease now."""
        self._check_open()
        return await self._leases.state(name)

    async def release(self, name: str, revision: int) -> None:
        """Give the lease up, if it is still ours."""
        self._check_open()
        await self._leases.release(name, revision)

    # --- life ---

    @property
    def connected(self) -> bool:
        """Whether the connection is there. A frozen server is noticed after three seconds."""
        return self._link.up.is_set()

    async def close(self) -> None:
        """End all subscriptions, write out what was published, close. Takes at most about three seconds."""
        if self._pulse is not None:
            self._pulse.end()
        for follow in tuple(self._follows):
            await follow.stop()
        for mailbox in tuple(self._mailboxes):
            await mailbox.close()
        await self._link.shut(_CLOSE_TIMEOUT)

    # --- inside ---

    def _check_open(self) -> None:
        if self._link.is_closed:
            raise Unavailable("the bus is closed")

    def _detach(self, mailbox: Mailbox[Delivery]) -> None:
        number = self._mailboxes.pop(mailbox, None)
        if number is not None:
            self._link.forget(number)

    def _denied(self, error: NotAllowed) -> None:
        if self._on_error is None:
            _log.error("bus.not_allowed", error=str(error))
        else:
            self._on_error(error)


def _call(hook: Hook | None) -> None:
    """Run an owner's hook; its failure must not end the connection."""
    if hook is None:
        return
    try:
        hook()
    except Exception as error:
        _log.error("bus.hook_failed", exc_info=error)
