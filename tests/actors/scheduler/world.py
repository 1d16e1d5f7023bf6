"""A small model of all that surrounds a scheduler core: two streams, an unreliable network, and workers of flesh and blood.

Nothing here is asynchronous; what happens next is chosen by whoever drives it. Streams are ordered and single-assignment;
messages to and from workers may be lost, doubled, delayed and reordered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Beat,
    Call,
    CallId,
    Cancellation,
    Declare,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    Leave,
    LogEntry,
    Open,
    Run,
    Running,
    SessionId,
    Stop,
    Submit,
    Tenant,
    VarId,
    WorkerId,
    WorkerKind,
)
from myna.actors.outcomes import OutcomeStatus, status_of
from myna.actors.program import inputs_of, outputs_of
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
)
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Heard, Led, Logged, SchedulerEvent, Tick, Unlogged
from myna.actors.scheduler.state import SessionKey

TENANT = Tenant("t")
HeldKey = tuple[Tenant, SessionId, CallId]


@dataclass
class Stored:
    """One entry of the values' stream."""

    key: SessionKey
    variable: VarId
    status: OutcomeStatus
    attempt: int
    failure: Failure | None


@dataclass
class ModelWorker:
    """A worker: fences by lease and attempt as the real one does, and holds what it was given until it is told to act."""

    id: WorkerId
    capacity: int = 2
    tokens: int | None = None
    life: int = 0
    up: bool = True
    heard: bool = True
    lease: int = 0
    held: dict[HeldKey, Run] = field(default_factory=dict)
    inbox: list[Run | Stop | int] = field(default_factory=list)
    begun: list[tuple[HeldKey, int]] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    refuses: bool = False

    @property
    def incarnation(self) -> str:
        return f"{self.id}-{self.life}"

    def running(self) -> tuple[Running, ...]:
        return tuple(Running(tenant=k[0], session=k[1], call=k[2], attempt=r.attempt) for k, r in self.held.items())

    def announce(self) -> Announce:
        return Announce(
            protocol=PROTOCOL,
            worker=self.id,
            kind=WorkerKind.ENGINE,
            incarnation=self.incarnation,
            serves=("m",),
            capacity=self.capacity,
            tokens=self.tokens,
            resumable=True,
            running=self.running(),
        )

    def beat(self) -> Beat:
        return Beat(worker=self.id, incarnation=self.incarnation, running=self.running())

    def event(self, kind: EventKind, run: Run, failure: Failure | None = None) -> Event:
        return Event(
            worker=self.id,
            kind=kind,
            tenant=run.tenant,
            session=run.session,
            call=run.call.id,
            attempt=run.attempt,
            failure=failure,
        )


class World:
    """The streams, the workers, and one scheduler core at a time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lease = 10
        self.log: list[tuple[SessionKey, LogEntry]] = []
        self.values: list[Stored] = []
        self.ended: dict[tuple[SessionKey, VarId], OutcomeStatus] = {}
        self.workers: dict[WorkerId, ModelWorker] = {}
        self.mail: list[Announce | Beat | Event | Leave] = []
        self.commands: list[Command] = []
        self.dispatched: list[Run] = []
        self.calls: dict[HeldKey, Call] = {}
        self.purged: set[SessionKey] = set()
        self.core = SchedulerCore()
        self._read = [0, 0]
        self.lead()

    # --- the scheduler ---

    def feed(self, event: SchedulerEvent) -> list[Command]:
        commands = self.core.handle(event)
        self.core.check()
        for command in commands:
            self._note(command)
        self.commands += commands
        return commands

    def _note(self, command: Command) -> None:
        if isinstance(command, Dispatch):
            run = command.run
            assert all(run.attempt > earlier.attempt for earlier in self.dispatched[-1:]), "attempts grow"
            key: SessionKey = (Tenant(run.tenant), SessionId(run.session))
            for variable in inputs_of(run.call):
                assert self.ended[key, variable] is OutcomeStatus.VALUE, f"{run.call.id} dispatched without {variable}"
            self.dispatched.append(run)
        elif isinstance(command, Foresee):
            early = command.anticipate
            key = (Tenant(early.tenant), SessionId(early.session))
            lacking = {v for v in inputs_of(early.call) if self.ended.get((key, v)) is not OutcomeStatus.VALUE}
            assert lacking <= {early.awaits}, f"{early.call.id} is foreseen, and lacks {lacking}"

    def lead(self) -> None:
        """A scheduler starts, folds the streams, and leads."""
        self.lease += 5
        self.core = SchedulerCore()
        self._read = [0, 0]
        self.commands = []
        self.read_streams()
        assert self.commands == [], "nothing is commanded before it leads"
        self.feed(Led("scheduler", self.lease, self.now))

    def lead_again(self) -> None:
        """The core was replaced by another, which has read nothing yet and leads."""
        self.commands = []
        self.feed(Led("scheduler", self.lease, self.now))

    def open_with(self, *calls: Call) -> None:
        """Session `SESSION` with these calls, read."""
        self.append(SESSION, Open(protocol=PROTOCOL))
        self.add(*calls)

    def add(self, *calls: Call) -> None:
        """More calls of session `SESSION`, read."""
        self.append(SESSION, Submit(calls=calls))
        self.read_streams()

    def dispatches(self) -> list[Dispatch]:
        """What was dispatched and not carried out yet."""
        return [c for c in self.commands if isinstance(c, Dispatch)]

    def read_streams(self, most: int = 10**9) -> None:
        """The scheduler reads on in both streams, the log first."""
        for which, stream in enumerate((self.log, self.values)):
            for item in list(stream[self._read[which] : self._read[which] + most]):
                self._read[which] += 1
                if isinstance(item, Stored):
                    key, failure = item.key, item.failure
                    ended = Ended(*key, item.variable, item.status, item.attempt, self.now, failure, content="same")
                    self.feed(ended)
                else:
                    self.feed(Logged(*item[0], item[1], self.now))

    def carry_out(self, command: Command, *, lost: bool = False) -> None:
        """What the shell does with a command; what goes to workers may be lost."""
        match command:
            case SayHello(hello=hello):
                for worker in self.workers.values():
                    worker.inbox.append(hello.lease)
            case Dispatch(worker=to, run=run):
                if not lost and to in self.workers:
                    self.workers[to].inbox.append(run)
            case Halt(worker=to, stop=stop):
                if not lost and to in self.workers:
                    self.workers[to].inbox.append(stop)
            case Keep(worker=to, retain=retain):
                if not lost and to in self.workers:
                    self.workers[to].kept.add(retain.id)
            case LetGo(worker=to, release=release):
                if not lost and to in self.workers:
                    self.workers[to].kept.difference_update(release.ids)
            case EndVariable(tenant, session, variable, outcome):
                self.store((tenant, session), variable, outcome)
            case AppendEntry(tenant, session, entry):
                self.append((tenant, session), entry)
            case PurgeSession(tenant, session):
                self.purge((tenant, session))
            case Inquire(tenant, session):
                coming = any(key == (tenant, session) for key, _ in self.log[self._read[0] :])
                if not coming:
                    self.feed(Unlogged(tenant, session, self.now))

    def carry_out_all(self) -> None:
        while self.commands:
            self.carry_out(self.commands.pop(0))

    # --- the streams ---

    def append(self, key: SessionKey, entry: LogEntry) -> None:
        self.log.append((key, entry))
        if isinstance(entry, Submit):
            for call in entry.calls:
                self.calls.setdefault((*key, CallId(call.id)), call)

    def store(self, key: SessionKey, variable: VarId, outcome: Failure | Cancellation | None, attempt: int = 0) -> bool:
        """Single assignment: a second outcome is refused."""
        if (key, variable) in self.ended:
            return False
        status = OutcomeStatus.VALUE if outcome is None else status_of(outcome)
        self.ended[key, variable] = status
        failure = outcome if isinstance(outcome, Failure) else None
        self.values.append(Stored(key, variable, status, attempt, failure))
        return True

    def purge(self, key: SessionKey) -> None:
        self.purged.add(key)
        for which, stream in enumerate((self.log, self.values)):
            keep = [i for i, item in enumerate(stream) if (item.key if isinstance(item, Stored) else item[0]) != key]
            self._read[which] = sum(i < self._read[which] for i in keep)
            stream[:] = [stream[i] for i in keep]  # type: ignore[index]

    # --- workers ---

    def join(self, name: str, capacity: int = 2, tokens: int | None = None) -> ModelWorker:
        worker = self.workers[WorkerId(name)] = ModelWorker(WorkerId(name), capacity, tokens)
        self.mail.append(worker.announce())
        return worker

    def take_orders(self, worker: ModelWorker) -> None:
        while worker.up and worker.inbox:
            match worker.inbox.pop(0):
                case int(lease):
                    worker.lease = max(worker.lease, lease)
                    self.say(worker, worker.announce())
                case Run() as run:
                    self._run(worker, run)
                case Stop() as stop:
                    key = (Tenant(stop.tenant), SessionId(stop.session), CallId(stop.call))
                    held = worker.held.get(key)
                    if stop.lease >= worker.lease and held is not None and held.attempt <= stop.attempt:
                        del worker.held[key]

    def _run(self, worker: ModelWorker, run: Run) -> None:
        key = (Tenant(run.tenant), SessionId(run.session), CallId(run.call.id))
        held = worker.held.get(key)
        if run.lease < worker.lease or worker.refuses:
            self.say(worker, worker.event(EventKind.REFUSED, run))
        elif held is None or held.attempt < run.attempt:
            worker.lease = run.lease
            worker.held[key] = run
            worker.begun.append((key, run.attempt))

    def say(self, worker: ModelWorker, message: Announce | Beat | Event) -> None:
        if worker.heard:
            self.mail.append(message)

    def finish(self, worker: ModelWorker, key: HeldKey, *, outputs: int | None = None) -> None:
        """The worker publishes values; with all of them out it is done."""
        run = worker.held[key]
        variables = outputs_of(run.call)
        for variable in variables[:outputs]:
            self.store((key[0], key[1]), variable, None, run.attempt)
        if outputs is None or outputs >= len(variables):
            del worker.held[key]
            self.say(worker, worker.event(EventKind.FINISHED, run))

    def fail(self, worker: ModelWorker, key: HeldKey, *, retryable: bool) -> None:
        run = worker.held.pop(key)
        failure = Failure(code=ErrorCode.ENGINE_ERROR, message="broken", retryable=retryable)
        self.say(worker, worker.event(EventKind.FAILED, run, failure))

    def restart(self, worker: ModelWorker) -> None:
        worker.life += 1
        worker.up, worker.held, worker.inbox, worker.lease = True, {}, [], 0
        self.say(worker, worker.announce())

    def read_mail(self) -> None:
        while self.mail:
            self.feed(Heard(self.mail.pop(0), self.now))

    # --- time ---

    def tick(self, seconds: float = 0.5, *, healthy: bool = True) -> list[Command]:
        self.now += seconds
        return self.feed(Tick(self.now, healthy))

    def step(self) -> None:
        """Half a second in which everything works."""
        self.carry_out_all()
        for worker in self.workers.values():
            self.take_orders(worker)
            for key in list(worker.held):
                if worker.up:
                    self.finish(worker, key)
            if worker.up:
                self.say(worker, worker.beat())
        self.read_mail()
        self.read_streams()
        self.tick()
        self.carry_out_all()

    def heal(self) -> None:
        for worker in self.workers.values():
            worker.heard, worker.refuses = True, False
            if not worker.up:
                self.restart(worker)


# --- shorthand ---

SESSION: SessionKey = (TENANT, SessionId("s"))


def opened(
    *calls: Call, declare: tuple[str, ...] = (), lazy: bool = False, workers: int = 1, capacity: int = 2
) -> World:
    """A world with workers w0, w1, ... and one session with these calls, everything read."""
    world = World()
    for n in range(workers):
        world.join(f"w{n}", capacity)
    world.read_mail()
    world.append(SESSION, Open(protocol=PROTOCOL, lazy=lazy))
    if declare:
        world.append(SESSION, Declare(variables=declare))
    if calls:
        world.append(SESSION, Submit(calls=calls))
    world.read_streams()
    return world
