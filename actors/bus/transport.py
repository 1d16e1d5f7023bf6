"""What replaces parts of nats-py's client below `link.py`: a transport that is aborted, and a subscription without a queue."""

from __future__ import annotations

import contextlib
from urllib.parse import ParseResult

from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport


class Transport(TcpTransport):
    """TCP whose close doesn't wait for the other side: a graceful one would wait for a frozen server to read what is unsent."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py types only some of its functions

    def __bool__(self) -> bool:
        return True  # else nats-py replaces it before it has connected

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect; what was connected is gone."""
        self.close()  # nats-py drops an attempt that got no answer without closing it
        await super().connect(uri, buffer_size, connect_timeout)

    def write(self, payload: bytes) -> None:
        """Write, where there is a connection."""
        if self._io_writer is not None:
            self._io_writer.write(payload)

    def close(self) -> None:
        """Drop the connection, and what is unsent with it."""
        if self._io_writer is not None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone
                self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Return when it is gone."""
        if self._io_writer is not None:
            with contextlib.suppress(OSError):
                await self._io_writer.wait_closed()

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is in place."""
        return self._io_writer is not None and self._io_writer.get_extra_info("ssl_object") is not None

    @property
    def unsent(self) -> int:
        """Bytes written that the kernel has not taken."""
        return 0 if self._io_writer is None else self._io_writer.transport.get_write_buffer_size()


class Subscribed(Subscription):
    """What nats-py must know of a subscription, to make it again after a reconnect. The queue that it would make for each, into
    which nothing ever comes, takes 3 KB in blocks that the C heap serves, and scatters."""

    def __init__(self, subject: str) -> None:  # the class above would make the queue
        self._subject, self._queue, self._max_msgs = subject, "", 0
        self._wait_for_msgs_task = self._message_iterator = None
        self._pending_next_msgs_calls = {}
