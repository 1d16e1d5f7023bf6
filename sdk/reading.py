"""The shell around `readers`: subscriptions, direct gets and one timer, for all readers of one session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

import structlog

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError, Delivery, Subscription
from myna.actors.messages import Chunk, Close, ErrorCode, Failure, LogEntry, Outcome, SessionId, Tenant, Value, VarId
from myna.sdk.errors import StreamBroken
from myna.sdk.readers import Lost, Tick, chunks, values
from myna.sdk.readers.chunks import ChunkEvent

_log = structlog.get_logger(__name__)

MOST_GETS = 32
"""Direct gets in flight at once."""
MOST_UNREAD = 64
"""Chunks that wait for one reader. One that is slower is given the rest of them later: they are stored."""


class Audience(Protocol):
    """Who is told what was read."""

    def expects(self, variable: VarId) -> bool:
        """Whether anybody here has a use for this variable's outcome."""

    def deliver(self, variable: VarId, outcome: Outcome) -> None:
        """A variable has its outcome."""

    def give_up(self, variable: VarId) -> None:
        """The session has ended without an outcome of this variable."""


ABSENT = 30.0
"""Seconds for which a session's log must be absent to be taken as purged: a replica that is cut off from the others lacks what
they have stored since."""


class Reading:
    """Reads one session's values for `audience`. All tasks belong to `tasks`."""

    def __init__(
        self, bus: Bus, tenant: Tenant, session: SessionId, audience: Audience, tasks: asyncio.TaskGroup
    ) -> None:
        self._bus = bus
        self._tenant = tenant
        self._session = session
        self._audience = audience
        self._tasks = tasks
        self._core = values.ValueReader(listens=False)
        self._subscriptions: dict[VarId | None, Subscription] = {}
        self._desired: set[VarId | None] = set()
        self._syncing: set[VarId | None] = set()
        self._gets: list[VarId] = []
        self._getters = 0
        self._timer: asyncio.TimerHandle | None = None
        self._streams: set[Callable[[], None]] = set()
        self._absent_since: float | None = None
        self.closed = False
        self._loop = asyncio.get_running_loop()

    async def listen_to_all(self) -> None:
        """Subscribe to all values of the session; what is made after this returns is fresh. Raises `BusError`."""
        self._desired.add(None)
        await self._listen(None)
        self._feed(values.Listening(None, self._loop.time()))

    def want(self, variable: VarId, *, fresh: bool) -> None:
        """Somebody waits for `variable`."""
        self._feed(values.Wanted(variable, self._loop.time(), fresh))

    def unwant(self, variable: VarId) -> None:
        """Nobody waits for `variable` any more."""
        self._feed(values.Unwanted(variable))

    def lost(self) -> None:
        """Messages may have been lost."""
        self._feed(Lost(self._loop.time()))
        for notify in self._streams:
            notify()

    async def close(self) -> None:
        """End all subscriptions. Nothing is read any more."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for subscription in list(self._subscriptions.values()):
            await subscription.close()
        self._subscriptions.clear()

    # --- values ---

    def _feed(self, event: values.ValueEvent) -> None:
        if self.closed:
            return
        for command in self._core.handle(event):
            match command:
                case values.Listen(variable):
                    self._desired.add(variable)
                    self._start(self._sync(variable))
                case values.Unlisten(variable):
                    self._desired.discard(variable)
                    self._start(self._sync(variable))
                case values.Get(variable):
                    self._gets.append(variable)
                    self._start_getter()
                case values.Probe():
                    self._start(self._probe())
                case values.GiveUp(variable):
                    self._audience.give_up(variable)
        self._arm()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._tasks.create_task(work)
        except RuntimeError:  # the session's tasks are ending: nobody waits any more
            work.close()

    def _arm(self) -> None:
        due = self._core.due
        if self._timer is not None and (due is None or self._timer.when() != due):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._feed(Tick(self._loop.time()))

    async def _sync(self, variable: VarId | None) -> None:
        """Make the subscription be there, or not, as was last asked for."""
        if variable in self._syncing:
            return
        self._syncing.add(variable)
        try:
            while (variable in self._desired) != (variable in self._subscriptions):
                if variable in self._desired:
                    await self._listen(variable)
                else:
                    await self._subscriptions.pop(variable).close()
        except BusError as error:  # no live message will come: the gets, with their back-off, find the value
            _log.warning("subscription_failed", session=self._session, variable=variable, error=str(error))
        finally:
            self._syncing.discard(variable)
        if variable in self._desired:
            self._feed(values.Listening(variable, self._loop.time()))

    async def _listen(self, variable: VarId | None) -> None:
        name = (
            subjects.read_all(self._tenant, self._session)
            if variable is None
            else subjects.read(self._tenant, self._session, variable)
        )
        self._subscriptions[variable] = await self._bus.subscribe(name, self._on_value, on_error=self._overflowed)

    def _overflowed(self, error: BusError) -> None:
        _log.warning("values_lost", session=self._session, error=str(error))
        self.lost()

    async def _on_value(self, delivery: Delivery) -> None:
        variable = subjects.parse(delivery.subject).variable
        if variable is not None and self._audience.expects(variable):
            self._found(variable, delivery.data)

    def _found(self, variable: VarId, data: bytes) -> None:
        try:
            outcome: Outcome = codec.decode(data, Outcome)
        except codec.WireError as error:
            _log.warning("value_unreadable", session=self._session, variable=variable, error=str(error))
            outcome = Failure(
                code=ErrorCode.ENGINE_ERROR, message=f"its value can't be read: {error}", variable=variable
            )
        self._audience.deliver(variable, outcome)
        self._feed(values.Found(variable))

    def _start_getter(self) -> None:
        if self._getters < MOST_GETS:
            self._getters += 1
            self._start(self._get_all())

    async def _get_all(self) -> None:
        try:
            while self._gets:
                await self._get(self._gets.pop())
        finally:
            self._getters -= 1

    async def _get(self, variable: VarId) -> None:
        try:
            stored = await self._bus.get(subjects.VALUES, subjects.write(self._tenant, self._session, variable))
        except BusError:
            self._feed(values.Missing(variable, self._loop.time(), answered=False))
            return
        if stored is None:
            self._feed(values.Missing(variable, self._loop.time()))
        else:
            self._found(variable, stored.data)

    async def _probe(self) -> None:
        try:
            last = await self._bus.get(subjects.LOG, subjects.log(self._tenant, self._session))
            ended = self._is_absent() if last is None else isinstance(codec.decode(last.data, LogEntry), Close)
        except (BusError, codec.WireError):
            return
        if last is not None:
            self._absent_since = None
        if ended:
            self._feed(values.Gone(self._loop.time()))

    def _is_absent(self) -> bool:
        """Whether the log has been absent for so long that it is purged, not just unknown to a replica that is behind."""
        now = self._loop.time()
        if self._absent_since is None:
            self._absent_since = now
        return now - self._absent_since >= ABSENT

    # --- streams ---

    async def chunks(
        self, variable: VarId, ended: Callable[[Callable[[Outcome | None], None]], None]
    ) -> AsyncGenerator[str, None]:
        """The text of `variable`, piece by piece. `ended` is given a callback for the variable's end. Ends without an
        error also where the variable has failed: its reader looks at the outcome. Raises `StreamBroken`."""
        core, arrivals = chunks.ChunkReader(), _Arrivals()
        self._streams.add(arrivals.lost)
        subscription = await self._subscribe_chunks(variable, arrivals)
        ended(lambda outcome: arrivals.put(chunks.Ended(outcome)))
        arrivals.put(chunks.Subscribed())
        try:
            while not core.finished:
                for command in core.handle(await arrivals.get(core.due)):
                    match command:
                        case chunks.Deliver(text):
                            yield text
                        case chunks.GetChunk(n):
                            arrivals.put(await self._get_chunk(variable, n))
                        case chunks.Finish(complete=False, outcome=Value()) | chunks.Finish(torn=True):
                            raise StreamBroken(
                                f"the stream of {variable!r} does not lead to its value: await the value"
                            )
                        case chunks.Finish():
                            return
        finally:
            self._streams.discard(arrivals.lost)
            if subscription is not None:
                await subscription.close()

    async def _subscribe_chunks(self, variable: VarId, arrivals: _Arrivals) -> Subscription | None:
        async def arrived(delivery: Delivery) -> None:
            n = subjects.parse(delivery.subject).chunk
            chunk = _chunk(delivery.data)
            if n is not None and chunk is not None:
                arrivals.put_live(chunks.Came(n, chunk))

        name = subjects.read_chunks(self._tenant, self._session, variable)
        try:
            return await self._bus.subscribe(name, arrived, on_error=lambda _: arrivals.lost())
        except BusError as error:  # the gets, with their back-off, still find the chunks
            _log.warning("subscription_failed", session=self._session, variable=variable, error=str(error))
            return None

    async def _get_chunk(self, variable: VarId, n: int) -> ChunkEvent:
        name = subjects.write_chunk(self._tenant, self._session, variable, n)
        try:
            stored = await self._bus.get(subjects.CHUNKS, name)
        except BusError:
            return chunks.NoChunk(n, self._loop.time(), answered=False)
        chunk = _chunk(stored.data) if stored is not None else None
        return chunks.NoChunk(n, self._loop.time()) if chunk is None else chunks.Came(n, chunk, asked=True)


class _Arrivals:
    """What the reader of one stream has yet to look at. Beyond `MOST_UNREAD`, live chunks are dropped; when he has read the
    others he is told so, and gets directly what he has missed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[ChunkEvent] = asyncio.Queue()
        self._dropped = False

    def put(self, event: ChunkEvent) -> None:
        """Something that must not be dropped."""
        self._queue.put_nowait(event)

    def put_live(self, came: chunks.Came) -> None:
        """A chunk as it is published."""
        if self._queue.qsize() >= MOST_UNREAD:
            self._dropped = True
        else:
            self._queue.put_nowait(came)

    def lost(self) -> None:
        """Messages may have been lost."""
        self._dropped = True
        if self._queue.empty():  # he may be waiting
            self.put(self._lost())

    def _lost(self) -> Lost:
        self._dropped = False
        return Lost(self._loop.time())

    async def get(self, due: float | None) -> ChunkEvent:
        """The next event: a tick if none comes before `due`."""
        if self._dropped and self._queue.empty():
            return self._lost()
        try:
            async with asyncio.timeout_at(due):
                return await self._queue.get()
        except TimeoutError:
            return Tick(self._loop.time())


def _chunk(data: bytes) -> Chunk | None:
    try:
        chunk: Chunk = codec.decode(data, Chunk)
    except codec.WireError as error:
        _log.warning("chunk_unreadable", error=str(error))
        return None
    return chunk
