"""The seam between actors and the network: what every bus promises, as one abstract class.

Two buses keep the promise: `nats.NatsBus` (production) and `memory.MemoryBus` (tests, simulators); one contract suite runs over
both.

Promises:
- Messages of one subscription are handled one after another, in order: a handler is a mailbox.
- `publish` is at most once and not acknowledged. `append` is stored when it returns.
- A stream with `single` takes one message a subject and refuses a second with `AlreadyAssigned`; the same `message_id` again is
  acknowledged as a duplicate. What it accepted, and only that, is republished to plain subscribers.
- A mailbox that overflows is an error of its owner (`on_error` is called with `SlowConsumer`), never a silent drop.
- `Unavailable` is raised within the time-out where the network, or a stream's leader, is gone: no call waits for ever.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from myna.actors.subjects import Stream


class BusError(Exception):
    """Base of what a bus raises."""


class Unavailable(BusError):
    """The network, the server, or a stream's leader did not answer in time. Trying again later may help."""


class NotAllowed(BusError):
    """The server forbids this subject or call to this user."""


class AlreadyAssigned(BusError):
    """A single-assignment subject already has its message (server error 10077). `stream` has it, if that is known."""

    def __init__(self, subject: str, stream: str = "") -> None:
        super().__init__(f"{subject} already has its one message")
        self.subject = subject
        self.stream = stream


class SlowConsumer(BusError):
    """A subscription's pending messages overflowed: messages are lost to it, so its owner must fail and start again."""


class LeaseLost(BusError):
    """A lease is held by somebody else, or was changed under us."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as a subscriber gets it. `reply` is where an answer is awaited, if one is."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream. `data` is empty where only headers were asked for; `size` is the body's size in bytes always."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    sequence: int
    size: int
    timestamp: float
    """Seconds since the epoch when the stream took it."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A stream took a message (`duplicate`: it had it already, by message id)."""

    stream: str
    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StreamSize:
    """What a stream holds: messages, and the bytes that each replica of it takes."""

    messages: int
    size: int


@dataclass(frozen=True, slots=True)
class LeaseState:
    """A lease as it stands: who holds it and since which revision."""

    holder: bytes
    revision: int


Handler = Callable[[Delivery], Awaitable[None]]
StoredHandler = Callable[[Stored], Awaitable[None]]
ErrorHandler = Callable[[BusError], None]


class Subscription(ABC):
    """A running subscription or follow."""

    @abstractmethod
    async def close(self) -> None:
        """Stop; no handler runs after this returns. Idempotent."""


class Bus(ABC):
    """One connection to the network."""

    # --- plain messages ---

    @abstractmethod
    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str | None = None
    ) -> None:
        """Send at most once, without acknowledgement."""

    @abstractmethod
    async def subscribe(self, subject: str, handler: Handler, *, on_error: ErrorHandler | None = None) -> Subscription:
        """Handle every message on `subject` (wildcards `*` and `>` allowed), one after another. The server knows the
        subscription when this returns: whatever is published afterwards, by anybody, is delivered."""

    @abstractmethod
    async def request(self, subject: str, data: bytes, *, timeout: float = 5.0) -> Delivery:
        """Ask and await one answer. Raises `Unavailable` after `timeout` seconds or at once if nobody listens."""

    # --- streams ---

    @abstractmethod
    async def ensure(self, streams: Sequence[Stream]) -> None:
        """Create streams, or bring their configuration up to date. Only schedulers and tests call this."""

    @abstractmethod
    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        """Store a message in the stream of `subject`. With a `message_id` it is tried again, with back-off, until `timeout`
        seconds have passed, and what an earlier try of this call stored unseen is a duplicate, not `AlreadyAssigned`; without
        one, once. Raises `AlreadyAssigned`, `Unavailable`, `codec.TooLarge`."""

    @abstractmethod
    async def get(self, stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        """The last message of `subject`, None if there is none. By direct get, which any replica answers, even one that is
        behind; `fresh` asks the stream's leader, who knows all that was ever acknowledged, and not every user may ask him."""

    @abstractmethod
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
        """Handle every stored message with a sequence above `after`, in order and without gaps, for ever, across reconnects and
        server restarts. `caught_up` runs once, between two messages, when all that was stored at the start has been handled."""

    @abstractmethod
    async def purge(self, stream: Stream, subject: str, *, keep: int = 0) -> int:
        """Delete the messages of `subject` (wildcards allowed) but for the last `keep`; returns how many."""

    @abstractmethod
    async def measure(self, stream: Stream) -> StreamSize:
        """How much a stream holds. Raises `Unavailable`, `BusError` where there is no such stream."""

    # --- leases ---

    @abstractmethod
    async def acquire(self, name: str, holder: bytes, *, ttl: float) -> int:
        """Create lease `name`, if nobody holds it; returns its revision. Raises `LeaseLost` if it is held."""

    @abstractmethod
    async def renew(self, name: str, holder: bytes, revision: int) -> int:
        """Renew by compare-and-set on `revision`; returns the new revision. Raises `LeaseLost`."""

    @abstractmethod
    async def lease(self, name: str) -> LeaseState | None:
        """Who holds the lease now."""

    @abstractmethod
    async def release(self, name: str, revision: int) -> None:
        """Give the lease up, if it is still ours; no error otherwise."""

    # --- life ---

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the network is there right now, as far as is known."""

    @abstractmethod
    async def close(self) -> None:
        """Flush what was published, then close. Idempotent; bounded in time."""
