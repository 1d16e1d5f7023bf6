"""A small cast on one bus, in one process: a scheduler and workers, for tests that need real actors and a real application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from myna.actors import codec, outcomes, subjects
from myna.actors.bus import Bus, Delivery, LeaseLost
from myna.actors.messages import (
    PROTOCOL,
    Call,
    Cancellation,
    Chunk,
    Failure,
    FinishReason,
    Input,
    LogEntry,
    Message,
    ModelCall,
    Open,
    Outcome,
    Output,
    Sampling,
    Segment,
    SessionId,
    Status,
    StatusRequest,
    Submit,
    Tenant,
    Text,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.scheduler.shell import Scheduler
from myna.actors.worker.backend import Backend, Job, OutputEnded, Produced
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker

BusMaker = Callable[[], Awaitable[Bus]]
TENANT = Tenant("default")


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, timeout: float = 20.0) -> None:
    """Await something that nobody announces: the inner state of an actor, or what a stream holds."""
    async with asyncio.timeout(timeout):
        while True:
            there = condition()
            if there if isinstance(there, bool) else await there:
                return
            await asyncio.sleep(0.01)
    raise AssertionError(what)


class GatedBackend(NoopBackend):
    """A no-op engine that remembers its jobs and stops before token n of a variable until `gates[variable, n]` is set."""

    def __init__(self, *gates: tuple[str, int], step: float = 0.0, text: str = "") -> None:
        super().__init__(NoopModel(step=step))
        self.gates = {gate: asyncio.Event() for gate in gates}
        self.reached = {gate: asyncio.Event() for gate in gates}
        self.jobs: list[Job] = []
        self._step = step
        self._text = text

    def run(self, job: Job) -> None:
        self.jobs.append(job)
        super().run(job)

    def runs(self, name: str) -> int:
        """How often a call was begun."""
        return sum(job.call.id == f"call-{name}" for job in self.jobs)

    async def _generate(self, job: Job, variable: VarId, output: Output) -> None:
        resumed = job.resumed.get(variable)
        for n in range(len(resumed.tokens) if resumed else 0, output.sampling.max_tokens):
            if (variable, n) in self.gates:
                self.reached[variable, n].set()
                await self.gates[variable, n].wait()
            if self._step:
                await asyncio.sleep(self._step)
            word = self._text or f"{'' if n == 0 else ' '}{output.name}{n}"
            self._report(Produced(job.key, variable, word, (n,)))
        self._report(OutputEnded(job.key, variable, FinishReason.LENGTH, model="gated"))


class Audience:
    """A plain subscriber of everything that readers of a session may see."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[tuple[int, Chunk]]] = {}
        self.outcomes: dict[str, list[Outcome]] = {}
        self.raw: list[Delivery] = []

    @classmethod
    async def of(cls, bus: Bus, session: str, tenant: str = "default") -> Audience:
        audience = cls()
        for leaf in ("var.*", "tok.*.*"):
            await bus.subscribe(f"myna.{tenant}.{session}.{leaf}", audience._take)
        return audience

    async def _take(self, delivery: Delivery) -> None:
        self.raw.append(delivery)
        address = subjects.parse(delivery.subject)
        assert address.variable is not None
        if address.chunk is None:
            outcome: Outcome = codec.decode(delivery.data, Value | Failure | Cancellation)
            self.outcomes.setdefault(address.variable, []).append(outcome)
        else:
            chunk: Chunk = codec.decode(delivery.data, Chunk)
            self.chunks.setdefault(address.variable, []).append((address.chunk, chunk))

    def check(self, variable: str) -> str:
        """What was streamed of a variable: once each, in order, without a gap, and the value is all of it."""
        (value,) = self.outcomes[variable]
        assert isinstance(value, Value), value
        chunks = self.chunks[variable]
        assert [n for n, _ in chunks] == list(range(len(chunks))), [n for n, _ in chunks]
        assert [c.last for _, c in chunks] == [False] * (len(chunks) - 1) + [True]
        assert "".join(c.text for _, c in chunks) == value.text
        return value.text


class Stage:
    """Actors as tasks. Each has a connection of its own, as processes have."""

    def __init__(self, make_bus: BusMaker) -> None:
        self._make_bus = make_bus
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._buses: dict[str, Bus] = {}
        self.workers: dict[str, Worker] = {}
        self.schedulers: dict[str, Scheduler] = {}

    async def bus(self, name: str) -> Bus:
        """A further connection, closed with the stage."""
        if name not in self._buses:
            self._buses[name] = await self._make_bus()
        return self._buses[name]

    async def scheduler(self, name: str = "scheduler", *, supervised: bool = False) -> Scheduler:
        """Start a scheduler and wait until it leads. One that is `supervised` is started anew where it lost its lease."""
        actor = self.schedulers[name] = Scheduler(await self.bus(name), name)
        await self._start(name, self._supervise(name, actor) if supervised else actor.run(), actor.leading)
        return actor

    async def _supervise(self, name: str, actor: Scheduler) -> None:
        while True:
            try:
                return await actor.run()
            except LeaseLost:
                await self._buses.pop(name).close()
                actor = self.schedulers[name] = Scheduler(await self.bus(name), name)

    async def status(self) -> Status:
        """What the leading scheduler sees."""
        bus = await self.bus("status")
        answer: Status = codec.decode((await bus.request(subjects.STATUS, codec.encode(StatusRequest()))).data, Status)
        return answer

    async def worker(self, name: str = "worker", backend: Backend | None = None) -> Worker:
        """Start a worker (no-op unless told) and wait until it has announced itself."""
        actor = self.workers[name] = Worker(await self.bus(name), WorkerId(name), backend or NoopBackend())
        await self._start(name, actor.run(), actor.ready)
        return actor

    async def _start(self, name: str, work: Awaitable[None], ready: asyncio.Event) -> None:
        task = asyncio.ensure_future(work)
        self._tasks[name] = task  # type: ignore[assignment]
        waiter = asyncio.ensure_future(ready.wait())
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED, timeout=90)
        waiter.cancel()
        if task.done():
            del self._tasks[name]
            task.result()
        assert ready.is_set(), f"{name} did not get ready"

    async def crash(self, name: str) -> None:
        """End an actor without its goodbye, as kill -9 does: its connection goes first."""
        await self._buses.pop(name).close()
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def ended(self, name: str) -> None:
        """Wait until an actor has ended of itself; raises what it raised."""
        await asyncio.wait_for(self._tasks.pop(name), 20)

    async def close(self) -> None:
        """End everything. Raises what an actor raised that ended of itself, unnoticed."""
        fallen = [task for task in self._tasks.values() if task.done()]
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for bus in self._buses.values():
            await bus.close()
        for task in fallen:
            task.result()


@asynccontextmanager
async def stage(make_bus: BusMaker) -> AsyncIterator[Stage]:
    """A stage, emptied at the end."""
    it = Stage(make_bus)
    try:
        yield it
    finally:
        await it.close()


class Application:
    """What an application does, by hand and without the SDK: writes its log, reads outcomes."""

    def __init__(self, bus: Bus, session: str, tenant: Tenant = TENANT) -> None:
        self.bus = bus
        self.tenant = tenant
        self.session = SessionId(session)

    async def log(self, *entries: LogEntry) -> None:
        for entry in entries:
            await self.bus.append(subjects.log(self.tenant, self.session), codec.encode(entry))

    async def open(self, *, lazy: bool = False, ttl: float = 3600.0) -> None:
        await self.log(Open(protocol=PROTOCOL, lazy=lazy, ttl=ttl))

    async def submit(self, *calls: Call) -> None:
        await self.log(Submit(calls=calls))

    async def set(self, variable: str, outcome: Outcome) -> None:
        data, headers = outcomes.pack(outcome)
        await self.bus.append(subjects.write(self.tenant, self.session, VarId(variable)), data, headers=headers)

    async def outcome(self, variable: str, timeout: float = 20.0) -> Outcome:
        """Subscribe, then get, as Law 8 says."""
        arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def take(delivery: object) -> None:
            if not arrived.done():
                arrived.set_result(delivery.data)  # type: ignore[attr-defined]

        subscription = await self.bus.subscribe(subjects.read(self.tenant, self.session, VarId(variable)), take)
        try:
            subject = subjects.write(self.tenant, self.session, VarId(variable))
            stored = await self.bus.get(subjects.VALUES, subject)
            data = stored.data if stored else await asyncio.wait_for(arrived, timeout)
        finally:
            await subscription.close()
        decoded: Outcome = codec.decode(data, Value | Failure | Cancellation)
        return decoded

    async def text(self, variable: str, timeout: float = 20.0) -> str:
        outcome = await self.outcome(variable, timeout)
        assert isinstance(outcome, Value), outcome
        return outcome.text


def call(name: str, *inputs: str, outputs: int = 1, tokens: int = 2, **options: object) -> ModelCall:
    """A call `name` whose outputs are variables `name`, or `name-0`, `name-1`, ... where there are several."""
    segments: list[Segment] = [Text(text=f"{name}: ")]
    segments += [Input(variables=(v,), name=v) for v in inputs]
    names = [name] if outputs == 1 else [f"{name}-{i}" for i in range(outputs)]
    for variable in names:
        segments.append(Output(variables=(variable,), name=variable, sampling=Sampling(max_tokens=tokens)))
    return ModelCall(id=f"call-{name}", function=name, messages=(Message(segments=tuple(segments)),), **options)  # type: ignore[arg-type]


def words(name: str, tokens: int = 2) -> str:
    """What the no-op engine writes into output `name`."""
    return " ".join(f"{name}{n}" for n in range(tokens))
