"""The worker's thin shell: bus messages and backend reports in as events, the core's commands out. It decides nothing.

The heartbeat has a task of its own and waits for nothing; the backend's work runs elsewhere (another process, threads).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import structlog
from msgspec import structs

from myna.actors import codec, logs, subjects
from myna.actors.bus import Bus, BusError, Delivery
from myna.actors.codec import WireError
from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Anticipate,
    Beat,
    Cordon,
    Drain,
    ErrorCode,
    Event,
    Failure,
    Hello,
    Leave,
    Release,
    Retain,
    Run,
    Sight,
    Stop,
    Tenant,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.subjects import FromWorker, ToWorker
from myna.actors.worker import showing
from myna.actors.worker.backend import Backend, BackendDied, Offer, Offered, Report
from myna.actors.worker.core import WorkerCore
from myna.actors.worker.events import (
    Abandon,
    Asked,
    Begin,
    Depart,
    Draining,
    Due,
    Fetch,
    Fetched,
    Forgo,
    Hoard,
    NotStored,
    Present,
    PutChunk,
    PutValue,
    Read,
    ReadInputs,
    Refused,
    Reported,
    Slept,
    Stored,
    Tell,
    Wake,
    WorkerCommand,
    WorkerEvent,
)
from myna.actors.worker.showing import Showing
from myna.actors.worker.storage import Storage

if TYPE_CHECKING:
    from myna.actors.telemetry.watch import WorkerWatch

log = structlog.get_logger(__name__)
T = TypeVar("T")

BEAT = 1.0
"""Seconds between two heartbeats."""
ASLEEP = 30.0
"""Seconds without a beat, since this process slept or the connection was gone, after which nothing that was begun may be
written any more. What it could change is kept for longer (`scheduler.state.HAUNTED`)."""
SHOW = 1.0
"""Seconds between two looks at what the worker does."""


class WorkerFailed(Exception):
    """The worker can't go on; its calls are given to others."""


class Worker:
    """One worker process's actor."""

    def __init__(self, bus: Bus, worker: WorkerId, backend: Backend, watches: Sequence[WorkerWatch] = ()) -> None:
        self._bus = bus
        self._watches = watches
        self._worker = worker
        self._backend = backend
        self._incarnation = uuid.uuid4().hex
        self._storage = Storage(bus, worker, self._incarnation)
        self._showing = Showing()
        self._core: WorkerCore
        self._offer: Offer
        self._tenant: Tenant | None = None
        self._tasks: asyncio.TaskGroup
        self._in_touch = 0.0
        self._departed = asyncio.Event()
        self._failed: asyncio.Future[None]
        self.ready = asyncio.Event()
        self.rejected = 0

    async def run(self) -> None:
        """Serve until drained or cancelled. Raises `WorkerFailed`, `BackendDied` or `BusError`."""
        self._failed = asyncio.get_running_loop().create_future()
        reason = ""
        try:
            self._offer = await self._backend.start(self._on_report)
            self._tenant = self._offer.tenant
            self._core = WorkerCore(self._worker, resumable=self._offer.resumable, tokenizer=self._offer.tokenizer)
            self._in_touch = self._now()
            async with asyncio.TaskGroup() as self._tasks:
                await self._listen()
                watching = (self._beat(), self._watch(), self._backend_lives(), self._show())
                watchers = [self._tasks.create_task(c) for c in watching]
                await self._present()
                self.ready.set()
                await self._departed.wait()
                await self._leave()
                for task in watchers:
                    task.cancel()
        except* (WorkerFailed, BackendDied, BusError) as errors:
            reason = str(errors.exceptions[0])
            raise errors.exceptions[0] from None
        finally:
            if not self._departed.is_set():  # whatever the cause, its calls need not wait until its silence is noticed
                await self._leave(reason)
            await self._backend.close()

    def drain(self) -> None:
        """Take no new calls; `run` returns when the last one has ended."""
        self._feed(Draining(self._now()))

    # --- events ---

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _listen(self) -> None:
        tenant, worker = self._tenant, self._worker
        orders = subjects.to_worker_all(worker) if tenant is None else subjects.to_agent_all(tenant, worker)
        await self._bus.subscribe(orders, self._on_order, on_error=self._on_error)
        await self._bus.subscribe(subjects.HELLO, self._on_hello, on_error=self._on_error)

    def _on_error(self, error: BusError) -> None:
        if not self._failed.done():
            self._failed.set_exception(WorkerFailed(f"a mailbox of worker {self._worker!r} failed: {error}"))

    async def _watch(self) -> None:
        await self._failed

    async def _backend_lives(self) -> None:
        await self._backend.wait()
        raise BackendDied(f"the backend of worker {self._worker!r} has ended")

    def _reject(self, subject: str, error: Exception) -> None:
        self.rejected += 1
        log.warning("a message was not understood", subject=subject, reason=str(error), rejected=self.rejected)

    async def _on_order(self, delivery: Delivery) -> None:
        leaf = delivery.subject.rsplit(".", 1)[-1]
        try:
            match leaf:
                case ToWorker.RUN:
                    run: Run = codec.decode(delivery.data, Run)
                    for watch in self._watches:
                        watch.asked(run, delivery.headers)
                    self._feed(Asked(run, self._now()))
                case ToWorker.STOP:
                    stop: Stop = codec.decode(delivery.data, Stop)
                    self._feed(Asked(stop, self._now()))
                case ToWorker.RETAIN:
                    retain: Retain = codec.decode(delivery.data, Retain)
                    self._feed(Asked(retain, self._now()))
                case ToWorker.ANTICIPATE:
                    anticipate: Anticipate = codec.decode(delivery.data, Anticipate)
                    self._feed(Asked(anticipate, self._now()))
                case ToWorker.RELEASE:
                    release: Release = codec.decode(delivery.data, Release)
                    self._feed(Asked(release, self._now()))
                case ToWorker.DRAIN:
                    drain: Drain = codec.decode(delivery.data, Drain)
                    self._feed(Asked(drain, self._now()))
                case ToWorker.CORDON:
                    cordon: Cordon = codec.decode(delivery.data, Cordon)
                    self._feed(Asked(cordon, self._now()))
                case _:
                    raise WireError(f"no order is called {leaf!r}")
        except WireError as error:
            self._reject(delivery.subject, error)

    async def _on_hello(self, delivery: Delivery) -> None:
        try:
            hello: Hello = codec.decode(delivery.data, Hello)
        except WireError as error:
            self._reject(delivery.subject, error)
            return
        if hello.protocol != PROTOCOL and not hello.pulse:
            log.error(
                "the scheduler speaks another protocol and will give this worker nothing: bring both to one version",
                scheduler=hello.scheduler,
                its_protocol=hello.protocol,
                ours=PROTOCOL,
            )
        self._feed(Asked(hello, self._now()))

    def _on_report(self, report: Report | Offered) -> None:
        if not isinstance(report, Offered):
            self._feed(Reported(report, self._now()))
            return
        self._offer = report.offer
        self._spawn(self._present())

    def _feed(self, event: WorkerEvent) -> None:
        """Handle one event. Synchronous, so events never interleave; what needs waiting becomes a task."""
        if self._now() - self._in_touch > ASLEEP:  # it may be the first to be handled, before the next beat
            self._woke()
        try:
            commands = self._core.handle(event)
        except Exception:
            log.exception("the core failed on an event, which was skipped", **_ids(event))
            commands = self._give_up(event)
        for command in commands:
            self._execute(command)

    def _woke(self) -> None:
        now = self._now()
        log.warning(
            "calls are dropped: for too long nobody could hear this worker", seconds=round(now - self._in_touch)
        )
        self._in_touch = now
        self._feed(Slept(now))

    def _give_up(self, event: WorkerEvent) -> list[WorkerCommand]:
        """End the attempt that the core can't go on with: else it would be held, and waited for, for ever."""
        match event:
            case Reported(report=report):
                key = report.key
            case Read() | Stored() | Refused() | NotStored() | Due():
                key = event.key
            case Asked() | Fetched() | Slept() | Draining():
                return []
            case _:
                assert_never(event)
        failure = Failure(code=ErrorCode.ENGINE_ERROR, message=f"worker {self._worker!r} failed on call {key[2]!r}")
        return self._core.handle(NotStored(key, VarId(""), failure, self._now()))

    # --- commands ---

    def _execute(self, command: WorkerCommand) -> None:
        match command:
            case ReadInputs():
                self._spawn(self._await(self._storage.read, command), command.key)
            case Fetch(order=order):
                self._spawn(self._await(self._storage.fetch, order))
            case Hoard(hold=hold):
                self._backend.retain(hold)
            case Forgo(hold=name):
                self._backend.release(name)
            case Begin(job=job):
                with logs.about(*job.key):
                    self._backend.run(job)
            case Abandon(key=key):
                self._backend.cancel(key)
            case PutChunk():
                self._spawn(self._await(self._storage.put_chunk, command), (*command.key, command.variable))
            case PutValue():
                self._put(command)
            case Tell(event=event):
                self._tell(event)
            case Present():
                self._spawn(self._present())
            case Wake(key=key, variable=variable, at=at):
                loop = asyncio.get_running_loop()
                loop.call_at(at, lambda: self._feed(Due(key, variable, self._now())))
            case Depart():
                self._departed.set()
            case _:
                assert_never(command)

    def _tell(self, event: Event) -> None:
        about = (event.tenant, event.session, event.call, event.attempt)
        if event.failure is not None:
            with logs.about(*about):  # its code alone: a failure's text may quote a value
                log.info(f"an attempt {event.kind}", worker=self._worker, code=event.failure.code, final=event.final)
        for watch in self._watches:
            watch.told(event)
        self._spawn(self._send(self._to_scheduler(FromWorker.EVENT), codec.encode(event)), about)

    def _put(self, command: PutValue) -> None:
        value = _by_wall_clock(command.value, time.time() - self._now())
        function = self._core.function_of(command.key)
        self._showing.ended(command.key, function, value)
        for watch in self._watches:
            watch.made(command.key, function, value)
        work = self._await(self._storage.put_value, replace(command, value=value))
        self._spawn(work, (*command.key, command.variable))

    async def _await(self, work: Callable[[T], Awaitable[WorkerEvent]], what: T) -> None:
        self._feed(await work(what))

    def _spawn(self, work: Coroutine[Any, Any, None], about: tuple[object, ...] = ()) -> None:
        token = logs.ABOUT.set(about)
        try:
            self._tasks.create_task(work)
        except RuntimeError:  # the worker is ending: a timer or a report came too late
            work.close()
        finally:
            logs.ABOUT.reset(token)

    def _to_scheduler(self, leaf: FromWorker) -> str:
        tenant, worker = self._tenant, self._worker
        return subjects.from_worker(worker, leaf) if tenant is None else subjects.from_agent(tenant, worker, leaf)

    async def _send(self, subject: str, data: bytes) -> None:
        """Send at most once: what is lost shows in the next beats."""
        try:
            await self._bus.publish(subject, data)
        except (BusError, WireError) as error:
            log.warning("not sent", subject=subject, reason=str(error))

    async def _present(self) -> None:
        offer = self._offer
        announce = Announce(
            protocol=PROTOCOL,
            worker=self._worker,
            kind=offer.kind,
            incarnation=self._incarnation,
            serves=offer.serves,
            capacity=offer.capacity,
            tokens=offer.tokens,
            context_length=offer.context_length,
            resumable=offer.resumable,
            draining=self._core.draining,
            tenant=offer.tenant,
            running=self._core.running,
            paused="it is cordoned" if self._core.cordoned else offer.paused,
            named_only=offer.named_only,
        )
        await self._send(self._to_scheduler(FromWorker.ANNOUNCE), codec.encode(announce))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._note_touch()
            beat = Beat(
                worker=self._worker,
                incarnation=self._incarnation,
                running=self._core.running,
                load=self._backend.load(),
            )
            await self._send(self._to_scheduler(FromWorker.BEAT), codec.encode(beat))

    def _note_touch(self) -> None:
        if self._now() - self._in_touch > ASLEEP:
            self._woke()
        elif self._bus.connected:
            self._in_touch = self._now()

    async def _show(self) -> None:
        """Show what goes on here, whether anybody looks or not. A tenant's agent has only its own instruments to show it to."""
        while self._tenant is None or self._watches:
            await asyncio.sleep(SHOW)
            insight = self._backend.look()
            for watch in self._watches:
                watch.looked(self._worker, self._offer, len(self._core.running), self._backend.load(), insight)
            if self._tenant is not None:
                continue
            sight = Sight(
                worker=self._worker,
                incarnation=self._incarnation,
                at=time.time(),
                kind=self._offer.kind,
                serves=self._offer.serves,
                capacity=self._offer.capacity,
                load=self._backend.load(),
                calls=showing.calls(self._core.shown(), insight, time.time() - self._now()),
                ended=self._showing.take(),
                steps=insight.steps,
                prefixes=insight.prefixes,
                left_out=max(len(self._core.running) - showing.MOST_CALLS, 0),
            )
            try:
                data = codec.encode(sight)
            except WireError as error:  # a show is not worth a worker
                self._reject("sight", error)
                continue
            await self._send(subjects.sight(self._worker), data)

    async def _leave(self, reason: str = "") -> None:
        leave = Leave(worker=self._worker, incarnation=self._incarnation, reason=reason[:1000])
        await self._send(self._to_scheduler(FromWorker.LEAVE), codec.encode(leave))


def _ids(event: WorkerEvent) -> dict[str, object]:
    """An event in a log: whose it is, and not what it holds."""
    match event:
        case Reported(report=report):
            ids: Sequence[object] = report.key
        case Read() | Stored() | Refused() | NotStored() | Due():
            ids = event.key
        case Asked(message=Run() as run):
            ids = (run.tenant, run.session, run.call.id, run.attempt)
        case _:
            ids = ()
    return {"what": type(event).__name__, **dict(zip(("tenant", "session", "call", "attempt"), ids, strict=False))}


def _by_wall_clock(value: Value, offset: float) -> Value:
    """The value with its timing moved from the core's clock to seconds since the epoch."""
    timing = value.timing
    if timing is None:
        return value
    moved = {f: getattr(timing, f) + offset for f in ("received", "began", "first", "ended")}
    return structs.replace(value, timing=structs.replace(timing, **moved))
