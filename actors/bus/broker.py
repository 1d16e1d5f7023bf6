"""What the memory buses of one process share: who listens where, streams, leases. Everything happens at once, on one event loop.

Time is injected (`clock`), so that leases, ages and duplicate windows expire when a test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from myna.actors.bus import AlreadyAssigned, Delivery, LeaseLost, LeaseState, Receipt, Stored, Unavailable
from myna.actors.bus.mailbox import CaughtUp, Mailbox
from myna.actors.subjects import MESSAGE_ID, Republish, Stream

Clock = Callable[[], float]


def matches(pattern: str, subject: str) -> bool:
    """Whether NATS would deliver `subject` to a subscription of `pattern`."""
    return _matches(pattern.split("."), subject.split("."))


def _matches(wanted: Sequence[str], given: Sequence[str]) -> bool:
    for i, part in enumerate(wanted):
        if part == ">":
            return len(given) > i
        if i >= len(given) or part not in ("*", given[i]):
            return False
    return len(wanted) == len(given)


class _Subjects:
    """Mailboxes by subject: a tree over tokens, so that a delivery looks only where somebody listens."""

    def __init__(self) -> None:
        self._children: dict[str, _Subjects] = {}
        self._here: list[Mailbox[Delivery]] = []

    def add(self, pattern: str, mailbox: Mailbox[Delivery]) -> None:
        node = self
        for part in pattern.split("."):
            node = node._children.setdefault(part, _Subjects())
        node._here.append(mailbox)

    def remove(self, pattern: str, mailbox: Mailbox[Delivery]) -> None:
        self._remove(pattern.split("."), mailbox)

    def _remove(self, parts: Sequence[str], mailbox: Mailbox[Delivery]) -> None:
        if not parts:
            self._here.remove(mailbox)
            return
        child = self._children[parts[0]]
        child._remove(parts[1:], mailbox)
        if not child._here and not child._children:
            del self._children[parts[0]]

    def find(self, parts: Sequence[str]) -> Iterator[Mailbox[Delivery]]:
        if not parts:
            yield from self._here
            return
        for part in (parts[0], "*"):
            if (child := self._children.get(part)) is not None:
                yield from child.find(parts[1:])
        if (rest := self._children.get(">")) is not None:
            yield from rest._here


@dataclass(frozen=True, slots=True)
class Follower:
    """Who follows a stream: `pattern` is what subjects it wants, in tokens (None: all)."""

    mailbox: Mailbox[Stored | CaughtUp]
    pattern: Sequence[str] | None
    headers_only: bool

    def put(self, stored: Stored) -> None:
        """Deliver a stored message, if it is wanted."""
        if self.pattern is None or _matches(self.pattern, stored.subject.split(".")):
            self.mailbox.put(replace(stored, data=b"") if self.headers_only else stored, 0)


class _Rewrite:
    """What a stream republishes, and where: `{{wildcard(n)}}` stands for what the source's nth wildcard matched."""

    def __init__(self, republish: Republish) -> None:
        self._source = republish.source.split(".")
        wildcards = [i for i, part in enumerate(self._source) if part == "*"]
        self._parts: list[str | int] = []
        for part in republish.destination.split("."):
            found = re.fullmatch(r"\{\{wildcard\((\d+)\)\}\}", part)
            self._parts.append(part if found is None else wildcards[int(found[1]) - 1])

    def __call__(self, subject: str) -> str | None:
        given = subject.split(".")
        if not _matches(self._source, given):
            return None
        return ".".join(part if isinstance(part, str) else given[part] for part in self._parts)


class StreamState:
    """The messages of one stream."""

    def __init__(self, config: Stream) -> None:
        self.messages: dict[int, Stored] = {}  # by sequence, ascending
        self.followers: list[Follower] = []
        self._by_subject: dict[str, deque[int]] = {}
        self._ids: dict[str, tuple[int, float]] = {}  # message id -> sequence, when; oldest first
        self._last = 0
        self.configure(config)

    def configure(self, config: Stream) -> None:
        """Change the configuration."""
        self.config = config
        self._patterns = [pattern.split(".") for pattern in config.subjects]
        self._rewrite = None if config.republish is None else _Rewrite(config.republish)

    def takes(self, parts: Sequence[str]) -> bool:
        """Whether the stream stores the subject of these tokens."""
        return any(_matches(pattern, parts) for pattern in self._patterns)

    def readers_subject(self, subject: str) -> str | None:
        """Where a message of `subject` is republished."""
        return None if self._rewrite is None else self._rewrite(subject)

    def expire(self, now: float) -> None:
        """Drop what is older than the stream allows, and message ids out of the duplicate window."""
        if (age := self.config.max_age) is not None:
            while self.messages and (oldest := next(iter(self.messages.values()))).timestamp + age <= now:
                self._delete(oldest)
        while self._ids and next(iter(self._ids.values()))[1] + self.config.duplicate_window <= now:
            del self._ids[next(iter(self._ids))]

    def duplicate(self, message_id: str | None) -> Receipt | None:
        """The receipt of an earlier message with this id, if the stream remembers it."""
        known = self._ids.get(message_id) if message_id is not None else None
        return None if known is None else Receipt(self.config.name, known[0], duplicate=True)

    def store(self, delivery: Delivery, now: float) -> Stored:
        """Store a message and tell the followers. Raises `AlreadyAssigned`."""
        subject = delivery.subject
        if self.config.single and subject in self._by_subject:
            raise AlreadyAssigned(subject)
        self._last += 1
        stored = Stored(subject, delivery.data, delivery.headers, self._last, len(delivery.data), now)
        self.messages[self._last] = stored
        self._by_subject.setdefault(subject, deque()).append(self._last)
        if (message_id := delivery.headers.get(MESSAGE_ID)) is not None:
            self._ids[message_id] = (self._last, now)
        for follower in self.followers:
            follower.put(stored)
        return stored

    def latest(self, subject: str) -> Stored | None:
        """The last message of a subject."""
        sequences = self._by_subject.get(subject)
        return self.messages[sequences[-1]] if sequences else None

    def purge(self, pattern: str, keep: int) -> int:
        """Delete the messages of a subject but for the last `keep`; returns how many."""
        parts = pattern.split(".")
        found = [stored for stored in self.messages.values() if _matches(parts, stored.subject.split("."))]
        gone = found[: max(0, len(found) - keep)]
        for stored in gone:
            self._delete(stored)
        return len(gone)

    def _delete(self, stored: Stored) -> None:
        del self.messages[stored.sequence]
        sequences = self._by_subject[stored.subject]
        sequences.remove(stored.sequence)
        if not sequences:
            del self._by_subject[stored.subject]


class MemoryBroker:
    """What all buses of one test or simulation share: subscriptions, streams, leases.

    `clock` gives seconds since the epoch. All methods belong to one event loop.
    """

    def __init__(self, clock: Clock = time.time) -> None:
        self.clock = clock
        self._subjects = _Subjects()
        self._streams: dict[str, StreamState] = {}
        self._answers: dict[str, asyncio.Future[Delivery]] = {}
        self._leases: dict[str, _Lease] = {}
        self._revision = 0
        self._next_inbox = 0

    def deliver(self, delivery: Delivery) -> bool:
        """Put a message where it is awaited; whether anybody awaits it."""
        answer = self._answers.get(delivery.subject)
        if answer is not None and not answer.done():
            answer.set_result(delivery)
        heard = answer is not None
        for mailbox in self._subjects.find(delivery.subject.split(".")):
            mailbox.put(delivery, len(delivery.data))
            heard = True
        return heard

    def publish(self, delivery: Delivery) -> bool:
        """Deliver, and store where a stream takes the subject; whether anybody heard it."""
        heard = self.deliver(delivery)
        state = self._taker(delivery.subject)
        if state is None:
            return heard
        with contextlib.suppress(AlreadyAssigned):
            self._store(state, delivery)
        return True

    def append(self, delivery: Delivery) -> Receipt:
        """Deliver and store. Raises `Unavailable` where no stream takes the subject, `AlreadyAssigned`."""
        self.deliver(delivery)  # as with a real server: subscribers of the written subject hear what is refused, too
        state = self._taker(delivery.subject)
        if state is None:
            raise Unavailable(f"{delivery.subject}: no stream takes this subject")
        return self._store(state, delivery)

    def subscribe(self, pattern: str, mailbox: Mailbox[Delivery]) -> None:
        """Deliver what matches `pattern` to `mailbox`."""
        self._subjects.add(pattern, mailbox)

    def unsubscribe(self, pattern: str, mailbox: Mailbox[Delivery]) -> None:
        """Undo `subscribe`."""
        self._subjects.remove(pattern, mailbox)

    async def ask(self, subject: str, data: bytes, timeout: float) -> Delivery:
        """Publish with an inbox and await the answer."""
        self._next_inbox += 1
        inbox = f"_INBOX.{self._next_inbox}"
        answer: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._answers[inbox] = answer
        try:
            if not self.publish(Delivery(subject, data, reply=inbox)):
                raise Unavailable(f"nobody listens on {subject}")
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as error:
            raise Unavailable(f"{subject}: no answer within {timeout:g} s") from error
        finally:
            del self._answers[inbox]

    # --- streams ---

    def ensure(self, stream: Stream) -> None:
        """Create a stream, or change its configuration."""
        known = self._streams.get(stream.name)
        if known is None:
            self._streams[stream.name] = StreamState(stream)
        else:
            known.configure(stream)

    def stream(self, stream: Stream) -> StreamState:
        """The state of a stream, without what has expired. Raises `Unavailable` where there is none."""
        state = self._streams.get(stream.name)
        if state is None:
            raise Unavailable(f"no stream {stream.name} answers")
        state.expire(self.clock())
        return state

    def _taker(self, subject: str) -> StreamState | None:
        parts = subject.split(".")
        return next((state for state in self._streams.values() if state.takes(parts)), None)

    def _store(self, state: StreamState, delivery: Delivery) -> Receipt:
        now = self.clock()
        state.expire(now)
        if (duplicate := state.duplicate(delivery.headers.get(MESSAGE_ID))) is not None:
            return duplicate
        stored = state.store(delivery, now)
        if (readers := state.readers_subject(delivery.subject)) is not None:
            self.deliver(Delivery(readers, delivery.data, delivery.headers))
        return Receipt(state.config.name, stored.sequence)

    # --- leases ---

    def acquire(self, name: str, holder: bytes, ttl: float) -> int:
        """Create a lease. Raises `LeaseLost`."""
        if self.lease(name) is not None:
            raise LeaseLost(f"lease {name} is held")
        return self._write(name, holder, ttl)

    def renew(self, name: str, holder: bytes, revision: int) -> int:
        """Renew a lease by compare-and-set. Raises `LeaseLost`."""
        state = self.lease(name)
        if state is None or state.revision != revision:
            raise LeaseLost(f"lease {name} is not ours: it changed since revision {revision}")
        return self._write(name, holder, self._leases[name].ttl)

    def lease(self, name: str) -> LeaseState | None:
        """Who holds a lease."""
        lease = self._leases.get(name)
        if lease is None or lease.expires <= self.clock():
            return None
        return lease.state

    def release(self, name: str, revision: int) -> None:
        """Free a lease, if it still has `revision`."""
        state = self.lease(name)
        if state is not None and state.revision == revision:
            del self._leases[name]

    def _write(self, name: str, holder: bytes, ttl: float) -> int:
        self._revision += 1
        self._leases[name] = _Lease(LeaseState(holder, self._revision), ttl, self.clock() + ttl)
        return self._revision


@dataclass(frozen=True, slots=True)
class _Lease:
    state: LeaseState
    ttl: float
    expires: float
