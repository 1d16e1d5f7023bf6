"""A network that loses, delays, doubles and reorders, between simulated processes; and servers that fail.

What a stream has taken it keeps, and its followers see it in order: JetStream promises that. Everything else may go wrong: plain
messages, requests, their answers, the connection, all servers at once, replicas that are behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from myna.actors import subjects
from myna.actors.bus import (
    Bus,
    BusError,
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
from myna.actors.bus.checks import check_size
from myna.actors.bus.mailbox import UNLIMITED, CaughtUp, Limits, Mailbox
from myna.actors.subjects import MESSAGE_ID, Stream
from tests.faults.simulation import Process, Simulation

T = TypeVar("T")

NOTICED = 3.0
"""Seconds after which a connection that is frozen is given up by its client (pings, Law 10)."""


@dataclass
class Weather:
    """How bad the network is: chances of one message, and seconds."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    lateness: float = 0.5
    behind: float = 0.0
    """Seconds by which a replica that answers direct gets may be behind."""
    lag: float = 0.0
    """Seconds by which the followers of a stream may be late."""


@dataclass
class Network:
    """What all connections share."""

    simulation: Simulation
    random: random.Random
    weather: Weather = field(default_factory=Weather)
    witness: Callable[[Stored], None] | None = None
    """Sees all that the streams accept."""

    def __post_init__(self) -> None:
        self.broker = MemoryBroker(clock=lambda: self.simulation.now)
        self.connections: list[FaultyBus] = []
        self.down = False
        self.amnesia: float | None = None
        """When chunks were lost, last."""
        self.lagging: dict[str, float] = {}
        self.purged: set[str] = set()
        """Sessions, as `subjects.of_session` names them, of which something was purged."""

    def delay(self) -> float:
        """Seconds that one message takes."""
        chance, weather = self.random, self.weather
        if weather.late and chance.random() < weather.late:
            return chance.random() * weather.lateness
        return 0.0002 + 0.002 * chance.random()

    def lost(self) -> bool:
        """Whether one message is lost."""
        return self.weather.lost > 0 and self.random.random() < self.weather.lost

    def connect(self, process: Process, *, on_reconnect: Callable[[], None] | None = None) -> FaultyBus:
        """A connection of `process`, dead with it."""
        bus = FaultyBus(self, process)
        bus.on_reconnect = on_reconnect
        self.connections.append(bus)
        process.on_kill.append(bus.die)
        return bus

    # --- servers ---

    def ensure(self, stream: Stream) -> None:
        """Create a stream, and have notes taken of it."""
        new = stream.name not in self.broker._streams
        self.broker.ensure(stream)
        if new and self.witness is not None:
            pen: Any = _Pen(self.witness)
            self.broker.stream(stream).followers.append(Follower(pen, None, False))

    def crash(self, seconds: float, *, amnesia: bool) -> None:
        """All servers are gone for a time; `amnesia`: and with them the chunks, as if the machine had lost its power."""
        self.down = True
        if amnesia:
            self.amnesia = self.simulation.now
            self.broker._streams.pop(subjects.CHUNKS.name, None)
        for connection in tuple(self.connections):
            connection.cut(seconds, noticed=True)
        self.simulation.after(seconds, self._up)

    def _up(self) -> None:
        self.down = False


class _Pen:
    """A follower that loses nothing and is never late."""

    def __init__(self, witness: Callable[[Stored], None]) -> None:
        self._witness = witness

    def put(self, stored: Stored, size: int) -> None:
        self._witness(stored)


class _Line(Generic[T]):
    """From a stream or subject to one mailbox: what the network does with messages on their way."""

    def __init__(self, bus: FaultyBus, mailbox: Mailbox[T]) -> None:
        self._bus = bus
        self._mailbox = mailbox

    def put(self, item: T, size: int) -> None:
        bus, network = self._bus, self._bus.network
        if bus.dead or bus.is_cut or network.lost():
            return
        again = network.weather.doubled > 0 and network.random.random() < network.weather.doubled
        for _ in range(2 if again else 1):
            network.simulation.after(network.delay(), lambda: self._arrive(item, size))

    def _arrive(self, item: T, size: int) -> None:
        if not self._bus.dead and not self._bus.is_cut:
            self._mailbox.put(item, size)


class _Followed:
    """From a stream to one follower: in order, nothing lost, but late."""

    def __init__(self, bus: FaultyBus, mailbox: Mailbox[Stored | CaughtUp], stream: str) -> None:
        self._bus = bus
        self._mailbox = mailbox
        self._stream = stream
        self._waiting: list[tuple[Stored | CaughtUp, int]] = []
        self._due = 0.0

    def put(self, item: Stored | CaughtUp, size: int) -> None:
        self._waiting.append((item, size))
        if len(self._waiting) == 1:
            self._schedule()

    def _schedule(self) -> None:
        network = self._bus.network
        lag = network.lagging.get(self._stream, 0.0)
        network.simulation.after(max(network.delay(), lag - network.simulation.now), self._arrive)

    def _arrive(self) -> None:
        if self._bus.dead:
            return
        if self._bus.is_cut:
            self._bus.network.simulation.after(0.2, self._arrive)
            return
        waiting, self._waiting = self._waiting, []
        for item, size in waiting:
            self._mailbox.put(item, size)


class FaultyBus(Bus):
    """One process's connection. See the module."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.dead = False
        self.is_cut = False
        self.on_reconnect: Callable[[], None] | None = None
        self._noticed = False
        self._cuts = 0
        self._closed = False
        self._asking: dict[asyncio.Future[Any], None] = {}
        self._renewals: set[int] = set()
        self._subscriptions: dict[Subscription, None] = {}

    # --- faults ---

    def die(self) -> None:
        """Its process was killed."""
        self.dead = True
        self._drop()
        if self in self.network.connections:
            self.network.connections.remove(self)

    def cut(self, seconds: float, *, noticed: bool) -> None:
        """Nothing passes for a time; the client notices at once, or after a while if it lasts."""
        self._cuts += 1
        cut, self.is_cut = self._cuts, True
        after = self.network.simulation.after
        after(0.0 if noticed else NOTICED, lambda: self._notice(cut))
        after(seconds, lambda: self._mend(cut))

    def _notice(self, cut: int) -> None:
        if self.is_cut and cut == self._cuts and not self.dead:
            self._noticed = True
            self._drop()

    def _mend(self, cut: int) -> None:
        if cut != self._cuts or self.dead:
            return
        self.is_cut = False
        if self._noticed:
            self._noticed = False
            if self.on_reconnect is not None:
                self.process.loop.call_soon(self.on_reconnect)

    def _drop(self) -> None:
        asking, self._asking = self._asking, {}
        for future in asking:
            if not future.done():
                future.set_exception(Unavailable("the connection was lost"))

    # --- plain messages ---

    async def publish(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str | None = None
    ) -> None:
        self._check_open()
        check_size(subject, data)
        network = self.network
        if self.is_cut or network.lost():
            return
        again = network.weather.doubled > 0 and network.random.random() < network.weather.doubled
        delivery = Delivery(subject, data, dict(headers or {}), reply)
        for _ in range(2 if again else 1):
            network.simulation.after(network.delay(), lambda: self._publish(delivery))

    def _publish(self, delivery: Delivery) -> None:
        if not self.network.down:
            self.network.broker.publish(delivery)

    async def subscribe(self, subject: str, handler: Handler, *, on_error: ErrorHandler | None = None) -> Subscription:
        self._check_open()
        line: _Line[Delivery]

        def detach(mailbox: Mailbox[Delivery]) -> None:
            self._subscriptions.pop(mailbox, None)
            self.network.broker.unsubscribe(subject, line)  # type: ignore[arg-type]

        mailbox = Mailbox[Delivery](subject, handler, on_error, Limits(), detach)
        line = _Line(self, mailbox)
        self._subscriptions[mailbox] = None
        self.network.broker.subscribe(subject, line)  # type: ignore[arg-type]
        return mailbox

    async def request(self, subject: str, data: bytes, *, timeout: float = 5.0) -> Delivery:
        raise NotImplementedError("no actor asks another")

    # --- streams ---

    async def ensure(self, streams: Sequence[Stream]) -> None:
        for stream in streams:
            await self._ask(lambda s=stream: self.network.ensure(s), 20.0)  # type: ignore[misc]

    async def append(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Receipt:
        check_size(subject, data)
        all_headers = dict(headers or {})
        if message_id is not None:
            all_headers[MESSAGE_ID] = message_id
        delivery = Delivery(subject, data, all_headers)
        return await self._ask(lambda: self.network.broker.append(delivery), timeout, once=message_id is None)

    async def get(self, stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        def look() -> Stored | None:
            network = self.network
            state = network.broker.stream(stream)
            behind = 0.0 if fresh else network.weather.behind * network.random.random()
            if not behind:
                return state.latest(subject)
            known = [m for m in state.messages.values() if m.subject == subject]
            return next((m for m in reversed(known) if m.timestamp <= network.simulation.now - behind), None)

        return await self._ask(look, timeout)

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
        state = await self._ask(lambda: self.network.broker.stream(stream), 10.0)

        async def handle(item: Stored | CaughtUp) -> None:
            match item:
                case Stored():
                    await handler(item)
                case CaughtUp():
                    if caught_up is not None:
                        await caught_up()

        def detach(mailbox: Mailbox[Stored | CaughtUp]) -> None:
            self._subscriptions.pop(mailbox, None)
            if follower in state.followers:
                state.followers.remove(follower)

        mailbox = Mailbox[Stored | CaughtUp](f"stream {stream.name}", handle, on_error, UNLIMITED, detach)
        line = _Followed(self, mailbox, stream.name)
        follower = Follower(line, None if subject is None else subject.split("."), headers_only)  # type: ignore[arg-type]
        for stored in state.messages.values():
            if stored.sequence > after:
                follower.put(stored)
        line.put(CaughtUp(), 0)
        state.followers.append(follower)
        self._subscriptions[mailbox] = None
        return mailbox

    async def purge(self, stream: Stream, subject: str, *, keep: int = 0) -> int:
        def purge() -> int:
            self.network.purged.add(subject)
            return self.network.broker.stream(stream).purge(subject, keep)

        return await self._ask(purge, 20.0)

    async def measure(self, stream: Stream) -> StreamSize:
        def measure() -> StreamSize:
            messages = self.network.broker.stream(stream).messages
            return StreamSize(len(messages), sum(stored.size for stored in messages.values()))

        return await self._ask(measure, 5.0)

    # --- leases ---

    async def acquire(self, name: str, holder: bytes, *, ttl: float) -> int:
        return await self._ask(lambda: self.network.broker.acquire(name, holder, ttl), 5.0, once=True)

    async def renew(self, name: str, holder: bytes, revision: int) -> int:
        def renew() -> int:
            try:
                return self.network.broker.renew(name, holder, revision)
            except BusError:
                state = self.network.broker.lease(name)  # perhaps ours was stored, and its acknowledgement lost
                if state is not None and state.revision in self._renewals:
                    return state.revision
                raise

        def note() -> int:
            revision = renew()
            self._renewals.add(revision)
            return revision

        return await self._ask(note, 5.0)

    async def lease(self, name: str) -> LeaseState | None:
        return await self._ask(lambda: self.network.broker.lease(name), 5.0)

    async def release(self, name: str, revision: int) -> None:
        await self._ask(lambda: self.network.broker.release(name, revision), 5.0)

    # --- life ---

    @property
    def connected(self) -> bool:
        return not self._closed and not self.dead and not self._noticed

    async def close(self) -> None:
        for subscription in tuple(self._subscriptions):
            await subscription.close()
        self._closed = True
        self._drop()

    def _check_open(self) -> None:
        if self._closed or self.dead:
            raise Unavailable("the bus is closed")

    # --- requests ---

    async def _ask(self, operation: Callable[[], T], timeout: float, *, once: bool = False) -> T:
        """Have `operation` done by the server. As with the real bus, tried again until the time-out, unless `once`."""
        loop = self.process.loop
        deadline = loop.time() + timeout
        patience, pause = 2.0, 0.05
        while True:
            self._check_open()
            answer: asyncio.Future[T] = loop.create_future()
            self._asking[answer] = None
            if self._noticed:
                answer.set_exception(Unavailable("not connected"))
            else:
                self._send(operation, answer)
            try:
                async with asyncio.timeout(max(0.0, min(patience, deadline - loop.time()))):
                    return await answer
            except (TimeoutError, Unavailable) as error:
                if once or self.dead or loop.time() + pause >= deadline:
                    raise Unavailable(f"no answer: {error}") from None
            finally:
                self._asking.pop(answer, None)
            await asyncio.sleep(pause)
            patience, pause = min(2 * patience, 10.0), min(2 * pause, 1.0)

    def _send(self, operation: Callable[[], T], answer: asyncio.Future[T]) -> None:
        network = self.network
        if self.is_cut or network.lost():
            return
        network.simulation.after(network.delay(), lambda: self._do(operation, answer))

    def _do(self, operation: Callable[[], T], answer: asyncio.Future[T]) -> None:
        network = self.network
        if network.down:
            return
        error: Exception | None = None
        result: Any = None
        try:
            result = operation()
        except Exception as raised:
            error = raised
        if not self.is_cut and not network.lost():
            network.simulation.after(network.delay(), lambda: self._answer(answer, result, error))

    def _answer(self, answer: asyncio.Future[T], result: Any, error: Exception | None) -> None:
        if answer.done() or self.is_cut or self.dead:
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)
