"""Who plays in a schedule: real schedulers, workers and SDK clients in simulated processes; who notes what streams took."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any

from myna import Input, Output, function
from myna.actors import codec, subjects
from myna.actors.bus import Stored
from myna.actors.messages import (
    Chunk,
    ErrorCode,
    Failure,
    FinishReason,
    ModelCall,
    Outcome,
    VarId,
    WorkerId,
    WorkerKind,
)
from myna.actors.messages import Output as Place
from myna.actors.scheduler.shell import Scheduler
from myna.actors.subjects import Leaf
from myna.actors.worker.backend import BackendDied, Job, JobEnded, JobFailed, Offer, OutputEnded, Produced, Reporter
from myna.actors.worker.shell import Worker
from myna.actors.worker.tasks import TaskBackend
from tests.faults.network import FaultyBus, Network
from tests.faults.simulation import Process, Simulation

MODEL = "m"
MEMORY = 1_000_000
"""Tokens of KV, of which there are always enough."""


TASK = "Go on with this. " * 32
"""Long enough for it to be computed, and the call to be begun, before its inputs are known to the scheduler."""


@function(prompt=TASK + "{{parts}}{{word}}", retries=100)
def step(parts: Input, word: Annotated[str, Output()]) -> None: ...


# --- engines ----------------------------------------------------------------------------------------------------------


def digest(texts: list[str]) -> str:
    """What a value tells of the inputs that it was made from."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=3).hexdigest()


def word(n: int, attempt: int, inputs: str) -> str:
    """What an attempt generates as token n: no two attempts generate the same."""
    return f"{n}:{attempt:x}:{inputs} "


class Engine(TaskBackend):
    """A modelled engine that never says the same twice, at an uneven pace; now and then it fails, or dies."""

    def __init__(self, chance: random.Random, capacity: int, *, resumable: bool = True, breaks: float = 0.0) -> None:
        super().__init__()
        self._chance = chance
        self._capacity = capacity
        self._resumable = resumable
        self._breaks = breaks
        self.healthy = False
        self._died: asyncio.Future[None]

    async def start(self, report: Reporter) -> Offer:
        self._report = report
        self._died = asyncio.get_running_loop().create_future()
        return Offer(WorkerKind.ENGINE, (MODEL,), self._capacity, tokens=MEMORY, resumable=self._resumable)

    async def wait(self) -> None:
        await self._died

    async def _run(self, job: Job) -> None:
        assert isinstance(job.call, ModelCall)
        inputs = digest([value.text for value in job.inputs.values()])
        places = [s for m in job.call.messages for s in m.segments if isinstance(s, Place)]
        for place in places:
            for variable in place.variables:
                if not await self._generate(job, VarId(variable), place, inputs):
                    return
        self._report(JobEnded(job.key))

    async def _generate(self, job: Job, variable: VarId, place: Place, inputs: str) -> bool:
        resumed = job.resumed.get(variable)
        if not (resumed and resumed.ended):
            for n in range(len(resumed.tokens) if resumed else 0, place.sampling.max_tokens):
                await asyncio.sleep(0.002 + 0.1 * self._chance.random() ** 3)
                if not self.healthy and self._chance.random() < self._breaks:
                    return self._break(job)
                self._report(Produced(job.key, variable, word(n, job.key[3], inputs), (n,)))
        self._report(OutputEnded(job.key, variable, FinishReason.LENGTH, model=MODEL))
        return True

    def _break(self, job: Job) -> bool:
        if self._chance.random() < 0.7:
            failure = Failure(code=ErrorCode.ENGINE_ERROR, message="broken", retryable=True)
            self._report(JobFailed(job.key, failure))
        elif not self._died.done():
            self._died.set_exception(BackendDied("the engine died"))
        return False


# --- notes ------------------------------------------------------------------------------------------------------------


@dataclass
class Notes:
    """What the streams accepted, purged since or not; but not what came for a session that was purged already."""

    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    chunks: dict[tuple[str, str], dict[int, list[Chunk]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Subjects of what came for a session that was purged already."""

    def take(self, network: Network, stored: Stored) -> None:
        address = subjects.parse(stored.subject)
        self.lines.append(f"{network.simulation.now:.6f} {address.leaf} {address.chunk} {stored.size}")
        key = (address.session, address.variable or "")
        if subjects.of_session(address.tenant, address.session) in network.purged:
            self.late.append(stored.subject)
            return
        match address.leaf:
            case Leaf.SET:
                self.outcomes.setdefault(key, []).append(codec.decode(stored.data, Outcome))
            case Leaf.PUT:
                assert address.chunk is not None
                chunk: Chunk = codec.decode(stored.data, Chunk)
                self.chunks.setdefault(key, {}).setdefault(address.chunk, []).append(chunk)
            case _:
                pass


# --- processes --------------------------------------------------------------------------------------------------------

Main = Callable[["Role", Process], Coroutine[Any, Any, None]]


class Role:
    """Something that runs in a process, and is started again when that has ended, as supervisors do."""

    def __init__(self, stage: Stage, name: str, main: Main, *, again: bool = True) -> None:
        self.stage = stage
        self.name = name
        self.again = again
        self.lives = 0
        self.process: Process
        self.bus: FaultyBus
        self.actor: Any = None
        self._main = main
        self.begin()

    def begin(self) -> None:
        """Start it, or start it again."""
        self.lives += 1
        self.process = self.stage.simulation.process(f"{self.name}/{self.lives}")
        self.bus = self.stage.network.connect(self.process)
        self.process.start(self._main(self, self.process))
        assert self.process.main is not None
        self.process.main.add_done_callback(lambda _: self.stage.simulation.after(0.0, self._ended))

    def _ended(self) -> None:
        task = self.process.main
        if not self.process.alive or task is None or task.cancelled():
            return
        error = task.exception()
        expected = ("LeaseLost", "SchedulerFailed", "WorkerFailed", "BackendDied", "Unavailable", "BusError")
        if error is not None and type(error).__name__ not in expected:
            self.stage.simulation.faults.append(f"{self.name} ended in {error!r}")
        if self.again:
            self.kill(0.3)

    def kill(self, restart: float | None) -> None:
        """End the process at once; start it again so much later."""
        if self.process.alive:
            self.process.kill()
            if restart is not None:
                self.stage.simulation.after(restart, self.begin)

    def pause(self, seconds: float) -> None:
        """SIGSTOP, then SIGCONT: to the process the clock leaps, and its connection may have been given up."""
        process, bus = self.process, self.bus
        if process.alive and not process.paused:
            process.paused = True
            if seconds > 3.0:
                bus.cut(seconds, noticed=False)
            self.stage.simulation.after(seconds, lambda: setattr(process, "paused", False))

    def leap(self, seconds: float) -> None:
        """Its clock jumps forward."""
        if self.process.alive:
            self.process.loop.skew += seconds


class Stage:
    """One network, and the roles on it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.simulation = Simulation()
        self.network = Network(self.simulation, random.Random(f"network {seed}"))
        self.notes = Notes()
        self.schedulers: list[Role] = []
        self.workers: list[Role] = []
        self.healthy = False
        self.network.witness = lambda stored: self.notes.take(self.network, stored)
        for stream in subjects.STREAMS:
            self.network.ensure(stream)

    def scheduler(self, name: str) -> None:
        """Another scheduler: the first leads, the others stand by."""

        async def main(role: Role, process: Process) -> None:
            role.actor = Scheduler(role.bus, name)
            await role.actor.run()

        self.schedulers.append(Role(self, name, main))

    def worker(self, name: str, capacity: int, breaks: float, *, resumable: bool = True) -> None:
        """Another engine."""

        async def main(role: Role, process: Process) -> None:
            chance = random.Random(f"{self.seed} {name} {role.lives}")
            backend = Engine(chance, capacity, resumable=resumable, breaks=breaks)
            backend.healthy = self.healthy
            role.backend = backend  # type: ignore[attr-defined]
            role.actor = Worker(role.bus, WorkerId(name), backend)
            await role.actor.run()

        self.workers.append(Role(self, name, main))

    def heal(self) -> None:
        """From now on nothing fails."""
        self.healthy = True
        weather = self.network.weather
        weather.lost = weather.doubled = weather.late = weather.behind = 0.0
        self.network.lagging.clear()
        for role in self.workers:
            role.backend.healthy = True  # type: ignore[attr-defined]
