"""The scheduler's thin shell: bus messages in as events, the core's commands out. It decides nothing.

One mailbox, one task that reads it. What must be stored goes through `outboxes`, so that the mailbox goes on meanwhile; what is
said once through `post`; `questions` never come into the mailbox, since their answers change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, assert_never

import structlog
from msgspec import structs

from myna.actors import codec, logs, outcomes, subjects
from myna.actors.bus import Bus, BusError, Delivery, Stored, Unavailable
from myna.actors.codec import WireError
from myna.actors.messages import (
    ErrorCode,
    Event,
    EventKind,
    Failure,
    LogEntry,
    Run,
    Status,
    StreamStatus,
    Tenant,
    TenantPolicy,
    Usage,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler import border
from myna.actors.scheduler.commands import (
    AppendEntry,
    Command,
    Dispatch,
    EndVariable,
    Foresee,
    Halt,
    Inquire,
    Keep,
    LetGo,
    PurgeSession,
    SayHello,
    WakeAt,
)
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import (
    Ended,
    Garbled,
    Heard,
    Led,
    Logged,
    PolicySet,
    Recorded,
    SchedulerEvent,
    Tick,
    Touched,
    Unlogged,
    Wake,
)
from myna.actors.scheduler.lease import Leadership
from myna.actors.scheduler.outboxes import Outboxes
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.post import Post
from myna.actors.scheduler.questions import Questions
from myna.actors.scheduler.records import UsageRecords
from myna.actors.subjects import InvalidName, ToWorker

if TYPE_CHECKING:
    from myna.actors.telemetry.traces import SchedulerTraces
    from myna.actors.telemetry.watch import SchedulerWatch

log = structlog.get_logger(__name__)

TICK = 0.5
"""Seconds between two ticks."""
MAILBOX = 20_000
"""Events that may wait. Beyond, subscriptions fill up, and then the actor fails: nothing is dropped silently."""
RETRY = 0.5
"""Seconds between two looks for what must be there: a stream, the reason of a failure."""
ENSURE = 3.0
"""Seconds between two looks whether the streams are there: one in memory is gone after a restart of its only server."""


class SchedulerFailed(Exception):
    """The scheduler can't go on and must be started again; its state is in the streams."""


class Scheduler:
    """One scheduler process's actor."""

    def __init__(
        self,
        bus: Bus,
        name: str,
        policies: Policies | None = None,
        watches: Sequence[SchedulerWatch] = (),
        traces: SchedulerTraces | None = None,
    ) -> None:
        self._bus = bus
        self._traces = traces
        self._watches = watches if traces is None else (*watches, traces)
        self._name = name
        self._core = SchedulerCore(policies)
        self._mailbox: asyncio.Queue[SchedulerEvent] = asyncio.Queue(MAILBOX)
        self._outboxes = Outboxes(bus, self._spawn)
        self._post = Post(bus)
        self._questions = Questions(bus, self._core, self._post, self._spawn, self._status)
        self._records = UsageRecords(bus, self._used)
        self._streams: tuple[StreamStatus, ...] = ()
        self._log_read = 0
        """Sequence of the last entry of the log that is in the mailbox."""
        self._tasks: asyncio.TaskGroup
        self._failed: asyncio.Future[None]
        self.rejected = 0
        self.leading = asyncio.Event()

    async def run(self) -> None:
        """Wait for the lease, rebuild, lead; until cancelled. Raises `LeaseLost` or `SchedulerFailed` where it can't go on."""
        self._failed = asyncio.get_running_loop().create_future()
        await self._ensure_streams()
        leadership = await Leadership.acquire(self._bus, self._name)
        log.info("leading", scheduler=self._name, lease=leadership.term)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(leadership.keep())
                self._tasks.create_task(self._watch())
                self._tasks.create_task(self._serve())
                await self._rebuild()
                await self._listen()
                await self._mailbox.put(Led(self._name, leadership.term, self._now()))
                await self._records.follow(self._on_error)
                self._tasks.create_task(self._tick())
                self._tasks.create_task(self._keep_streams())
        except* (BusError, SchedulerFailed) as errors:  # one clause: of two, each that applied would add to a group
            raise errors.exceptions[0] from None
        finally:
            await leadership.release()

    # --- start ---

    async def _ensure_streams(self) -> None:
        while True:
            try:
                return await self._bus.ensure(subjects.STREAMS)
            except Unavailable as error:
                log.warning("the streams are not there yet", reason=str(error))
                await asyncio.sleep(RETRY)

    async def _keep_streams(self) -> None:
        while True:
            await asyncio.sleep(ENSURE)
            try:
                await self._ensure_streams()
            except BusError as error:  # such as no room for it now: what is there goes on
                log.error("a stream can't be made", reason=str(error))
                continue
            self._streams = await self._measure()
            await self._records.trim(self._streams)

    async def _measure(self) -> tuple[StreamStatus, ...]:
        """How much the streams hold, as far as it is to be had."""
        found = []
        for stream in subjects.STREAMS:
            with contextlib.suppress(BusError):
                held = await self._bus.measure(stream)
                found.append(StreamStatus(name=stream.name, messages=held.messages, bytes=held.size))
        return tuple(found)

    async def _rebuild(self) -> None:
        """Fold what tenants may have, the log, and the values' headers into the core. All are followed for ever after."""
        for stream, handler, headers_only in (
            (subjects.TENANTS, self._on_policy, False),
            (subjects.LOG, self._on_log, False),
            (subjects.VALUES, self._on_value, True),
        ):
            done = asyncio.Event()

            async def caught_up(done: asyncio.Event = done) -> None:
                done.set()

            await self._bus.follow(
                stream, handler, headers_only=headers_only, caught_up=caught_up, on_error=self._on_error
            )
            await done.wait()

    async def _listen(self) -> None:
        for pattern, handler in (
            (subjects.FROM_WORKERS, self._on_worker),
            (subjects.FROM_AGENTS, self._on_worker),
            (subjects.ALIVE_ALL, self._on_alive),
            (subjects.QUESTIONS, self._on_question),
            (subjects.ASK, self._on_question),
        ):
            await self._bus.subscribe(pattern, handler, on_error=self._on_error)

    # --- events ---

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    def _on_error(self, error: BusError) -> None:
        if not self._failed.done():
            self._failed.set_exception(SchedulerFailed(f"a mailbox of scheduler {self._name!r} failed: {error}"))

    async def _watch(self) -> None:
        await self._failed

    def _reject(self, subject: str, error: Exception) -> None:
        self.rejected += 1
        with logs.about(*_named(subject)):
            log.warning("a message was not understood", subject=subject, reason=str(error), rejected=self.rejected)

    async def _on_policy(self, stored: Stored) -> None:
        try:
            policy: TenantPolicy = codec.decode(stored.data, TenantPolicy)
        except WireError as error:
            self._reject(stored.subject, error)
            return
        await self._mailbox.put(PolicySet(policy, self._now()))

    async def _used(self, tenant: Tenant, usage: Usage, calls: int) -> None:
        await self._mailbox.put(Recorded(tenant, usage, calls, self._now()))

    async def _on_log(self, stored: Stored) -> None:
        event: SchedulerEvent
        try:
            address = subjects.parse(stored.subject)
            entry: LogEntry = codec.decode(stored.data, LogEntry)
            event = Logged(address.tenant, address.session, entry, self._now(), stored.size)
        except InvalidName as error:
            self._reject(stored.subject, error)
            return
        except WireError as error:
            self._reject(stored.subject, error)
            event = Garbled(address.tenant, address.session, self._now())
        else:
            leads = self._core.lease is not None
            for watch in self._watches:
                watch.logged(address.tenant, address.session, entry, stored.timestamp, stored.headers, leads=leads)
        await self._mailbox.put(event)
        self._log_read = stored.sequence

    async def _on_value(self, stored: Stored) -> None:
        try:
            address = subjects.parse(stored.subject)
        except InvalidName as error:
            self._reject(stored.subject, error)
            return
        if address.variable is None:
            return
        status, attempt = outcomes.read_headers(stored.headers)
        for watch in self._watches:
            watch.ended(address.tenant, address.session, address.variable, status, stored.timestamp)
        failure = None
        if status is OutcomeStatus.FAILURE:
            with logs.about(*_named(stored.subject)):
                failure = await self._failure(stored.subject)
        content = outcomes.read_content(stored.headers)
        event = Ended(
            address.tenant,
            address.session,
            address.variable,
            status,
            attempt,
            self._now(),
            failure,
            content.usage,
            content.characters,
            content.digest,
            stored.size + outcomes.read_streamed(stored.headers),
        )
        await self._mailbox.put(event)

    async def _failure(self, subject: str) -> Failure:
        """The whole of a failure: rare, and its text goes down the graph."""
        unread = Failure(code=ErrorCode.ENGINE_ERROR, message="it failed, and the reason could not be read")
        while True:
            try:
                stored = await self._bus.get(subjects.VALUES, subject, fresh=True)
                return unread if stored is None else codec.decode(stored.data, Failure)
            except Unavailable as error:  # what follows from it must not depend on when the servers were gone
                log.warning("a failure can't be read yet", subject=subject, reason=str(error))
                await asyncio.sleep(RETRY)
            except (WireError, BusError) as error:
                self._reject(subject, error)
                return unread

    async def _inquire(self, command: Inquire) -> None:
        key = (command.tenant, command.session)
        try:
            stored = await self._bus.get(subjects.LOG, subjects.log(*key), fresh=True)
        except BusError as error:  # the core asks again
            log.warning("the log can't be read", tenant=command.tenant, session=command.session, reason=str(error))
            return
        if stored is None or stored.sequence <= self._log_read:
            await self._mailbox.put(Unlogged(*key, self._now()))

    async def _on_worker(self, delivery: Delivery) -> None:
        try:
            message = border.from_worker(delivery)
        except WireError as error:
            self._reject(delivery.subject, error)
            return
        await self._mailbox.put(Heard(message, self._now()))

    async def _on_alive(self, delivery: Delivery) -> None:
        try:
            address = subjects.parse(delivery.subject)
        except InvalidName as error:
            self._reject(delivery.subject, error)
            return
        await self._mailbox.put(Touched(address.tenant, address.session, self._now()))

    async def _on_question(self, delivery: Delivery) -> None:
        try:
            await self._questions.answer(delivery)
        except WireError as error:
            self._reject(delivery.subject, error)

    def _status(self, tenant: Tenant | None) -> Status:
        status = self._core.status(self._now(), self.rejected, tenant)
        return structs.replace(status, streams=self._streams) if tenant is None else status

    async def _tick(self) -> None:
        while True:
            await self._mailbox.put(Tick(self._now(), healthy=self._bus.connected))
            for watch in self._watches:
                watch.ticked(self._core, self.rejected, self._streams)
            await asyncio.sleep(TICK)

    # --- commands ---

    async def _serve(self) -> None:
        while True:
            event = await self._mailbox.get()
            try:
                commands = self._core.handle(event)
            except Exception:
                log.exception("the core failed on an event, which was skipped", **_ids(event))
                continue
            todo = deque(commands)
            while todo:
                todo += await self._execute(todo.popleft())
            if isinstance(event, Led):
                self.leading.set()

    async def _execute(self, command: Command) -> Sequence[Command]:
        """Carry out one command; returns what the core wants done if that proves impossible."""
        for watch in self._watches:
            watch.commanded(command)
        match command:
            case SayHello(hello=hello):
                await self._post.send(subjects.HELLO, codec.encode(hello))
            case Dispatch(worker=worker, run=run, waited=waited):
                try:
                    data = codec.encode(run)
                except WireError as error:
                    return self._core.handle(Heard(_undeliverable(worker, run, error), self._now()))
                headers = None if self._traces is None else self._traces.headers(run, waited)
                about = (run.tenant, run.session, run.call.id, run.attempt)
                await self._post.tell(worker, ToWorker.RUN, data, headers, about)
            case Halt(worker=worker, stop=stop):
                await self._post.tell(worker, ToWorker.STOP, codec.encode(stop))
            case Keep(worker=worker, retain=retain):
                await self._post.tell(worker, ToWorker.RETAIN, codec.encode(retain))
            case Foresee(worker=worker, anticipate=anticipate):
                await self._post.tell(worker, ToWorker.ANTICIPATE, codec.encode(anticipate))
            case LetGo(worker=worker, release=release):
                await self._post.tell(worker, ToWorker.RELEASE, codec.encode(release))
            case EndVariable() | AppendEntry() | PurgeSession():
                self._outboxes.put(command)
            case Inquire():
                self._tasks.create_task(self._inquire(command))
            case WakeAt(at=at):
                asyncio.get_running_loop().call_at(at, self._wake)
            case _:
                assert_never(command)
        return ()

    def _wake(self) -> None:
        """Never lost: a mailbox that is full has events after which the core looks anyway."""
        with contextlib.suppress(asyncio.QueueFull):
            self._mailbox.put_nowait(Wake(self._now()))


def _named(subject: str) -> tuple[object, ...]:
    """Whose a message is, as far as its subject says it."""
    try:
        address = subjects.parse(subject)
    except InvalidName:
        return ()
    return (address.tenant, address.session, None, None, address.variable)


def _ids(event: SchedulerEvent) -> dict[str, object]:
    """An event in a log: whose it is, and not what it holds."""
    names = ("tenant", "session", "variable", "attempt", "worker", "call")
    holder = event.message if isinstance(event, Heard) else event
    return {"what": type(holder).__name__} | {n: getattr(holder, n) for n in names if hasattr(holder, n)}


def _undeliverable(worker: WorkerId, run: Run, error: WireError) -> Event:
    """What the worker would say if it could be told: the call, with what a dispatch adds to it, is over the limit."""
    failure = Failure(code=ErrorCode.INVALID_CALL, message=f"call {run.call.id!r} can't be dispatched: {error}")
    return Event(
        worker=worker,
        kind=EventKind.FAILED,
        tenant=run.tenant,
        session=run.session,
        call=run.call.id,
        attempt=run.attempt,
        failure=failure,
    )
