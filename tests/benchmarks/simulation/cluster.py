"""The cluster: one real scheduler core, modelled engines, and the clients of jobs, on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Beat,
    Close,
    Declare,
    Event,
    EventKind,
    LogEntry,
    ModelCall,
    Open,
    Running,
    SessionId,
    Submit,
    Tenant,
    Usage,
    VarId,
    Want,
    WorkerId,
    WorkerKind,
)
from myna.actors.outcomes import OutcomeStatus
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
    WakeAt,
)
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Heard, Led, Logged, SchedulerEvent, Tick, Wake
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.prefixes import Describe, chain_of
from tests.benchmarks.simulation.engine import Engine, EngineModel, Request
from tests.benchmarks.simulation.workloads import Job

TICK = 0.5
BEAT = 1.0


@dataclass
class Turn:
    """One stage of a job as it went: seconds from asking to the last result, and to the first token of it."""

    job: Job
    asked: float
    first: float | None = None
    ended: float | None = None


@dataclass
class Client:
    """A job under way."""

    job: Job
    session: SessionId
    stage: int = 0
    open: set[str] = field(default_factory=set)
    turn: Turn | None = None
    values: dict[str, int] = field(default_factory=dict)


class Cluster:
    """See the module. `run` returns every turn of every job."""

    def __init__(self, model: EngineModel, engines: int, policies: Policies, *, check: bool = False) -> None:
        self.model = model
        self.core = SchedulerCore(policies)
        self.now = 0.0
        self.turns: list[Turn] = []
        self.dispatches = 0
        self.engines: dict[WorkerId, Engine] = {}
        self.failures: list[str] = []
        self._check = check
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._clients: dict[SessionId, Client] = {}
        self._held: dict[WorkerId, dict[tuple[str, str, str], int]] = {}
        self._outputs: dict[tuple[str, str, str], tuple[VarId, ...]] = {}
        self._left = 0
        for n in range(engines):
            worker = WorkerId(f"e{n}")
            self._held[worker] = {}
            self.engines[worker] = Engine(
                model,
                self._at,
                lambda request, now, w=worker: self._finished(w, request, now),  # type: ignore[misc]
            )

    def run(self, jobs: list[Job]) -> list[Turn]:
        """Everything, to the end."""
        self._feed(Led("scheduler", 1, 0.0))
        for worker in self.engines:
            offer = Announce(
                protocol=PROTOCOL,
                worker=worker,
                kind=WorkerKind.ENGINE,
                incarnation=worker,
                serves=("m",),
                capacity=self.model.sequences,
                tokens=self.model.tokens,
            )
            self._feed(Heard(offer, 0.0))
        self._left = len(jobs)
        for n, job in enumerate(jobs):
            client = Client(job, SessionId(f"s{n}"))
            self._clients[client.session] = client
            self._at(job.arrival, lambda now, c=client: self._open(c, now))  # type: ignore[misc]
        self._at(TICK, self._tick)
        self._at(BEAT, self._beat)
        while self._events and self._left:
            self.now, _, action = heapq.heappop(self._events)
            action(self.now)
        for n in range(8):  # sessions are closed and purged
            self._feed(Tick(self.now + n * TICK))
        return self.turns

    def _at(self, time: float, action: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, action))

    # --- scheduler ---

    def _feed(self, event: SchedulerEvent) -> None:
        commands = self.core.handle(event)
        if self._check:
            self.core.check()
        for command in commands:
            self._execute(command, event.now)

    def _execute(self, command: Command, now: float) -> None:
        match command:
            case Dispatch(worker=worker, run=run):
                self.dispatches += 1
                client = self._clients[SessionId(run.session)]
                call = run.call
                assert isinstance(call, ModelCall)
                chain = chain_of(call, run.cache or run.tenant, _describe(client))
                key = (run.tenant, run.session, call.id)
                self._held[worker][key] = run.attempt
                self._outputs[key] = outputs_of(call)
                output = sum(client.job.outputs[v] for v in self._outputs[key])
                self.engines[worker].submit(Request(key, chain.boundaries, chain.prompt, output, order=run.order), now)
            case Halt(worker=worker, stop=stop):
                key = (stop.tenant, stop.session, stop.call)
                self._held[worker].pop(key, None)
                self.engines[worker].cancel(key)
            case EndVariable(tenant=tenant, session=session, variable=variable, outcome=outcome):
                if session in self._clients:
                    self.failures.append(f"{variable}: {outcome}")
                self._at(now, lambda t: self._feed(Ended(tenant, session, variable, OutcomeStatus.FAILURE, 0, t)))
            case WakeAt(at=at):
                self._at(at, lambda t: self._feed(Wake(t)))
            case Keep(worker=worker, retain=retain):
                asking = self._clients.get(SessionId(retain.session))
                if asking is not None:
                    prefix = chain_of(retain.call, retain.cache or retain.tenant, _describe(asking))
                    # What is filled in while it is generated is not modelled: it comes with the consumer.
                    tokens = prefix.tokens - asking.job.outputs.get(retain.stream, 0)
                    known = tuple(b for b in prefix.boundaries[: prefix.prompt] if b.tokens <= tokens)
                    self.engines[worker].keep(retain.id, known, now, retain.distance)
            case LetGo(worker=worker, release=release):
                for name in release.ids:
                    self.engines[worker].let_go(name)
            case SayHello() | AppendEntry() | PurgeSession() | Inquire() | Foresee():
                pass  # what is foreseen saves a journey, and nothing travels here

    def _tick(self, now: float) -> None:
        self._feed(Tick(now))
        self._at(now + TICK, self._tick)

    def _beat(self, now: float) -> None:
        for worker, engine in self.engines.items():
            running = tuple(
                Running(tenant=t, session=s, call=c, attempt=a) for (t, s, c), a in self._held[worker].items()
            )
            beat = Beat(worker=worker, incarnation=worker, running=running, load=engine.figures())
            self._feed(Heard(beat, now))
        self._at(now + BEAT, self._beat)

    # --- clients ---

    def _open(self, client: Client, now: float) -> None:
        self._log(client, Open(protocol=PROTOCOL), now)
        self._ask(client, now)

    def _log(self, client: Client, entry: LogEntry, now: float) -> None:
        self._feed(Logged(Tenant(client.job.tenant), client.session, entry, now))

    def _ask(self, client: Client, now: float) -> None:
        job, stage = client.job, client.job.stages[client.stage]
        client.open = set(stage.wants)
        if client.turn is None or not job.whole:
            client.turn = Turn(job, now)
            self.turns.append(client.turn)
        used = {v for c in stage.calls for v in inputs_of(c)}
        given = [v for v in job.given if v in used and v not in client.values]
        if given:
            self._log(client, Declare(variables=tuple(given)), now)
            for name in given:
                self._value(client, name, job.given[name], Usage(), now)
        # What is asked for is said first: calls run as soon as they are submitted, and their need should be known then.
        self._log(client, Want(variables=stage.wants, objective=job.objective), now)
        self._send(client, stage.calls, now)

    def _send(self, client: Client, calls: Sequence[ModelCall], now: float) -> None:
        for start in range(0, len(calls), 500):
            self._log(client, Submit(calls=tuple(calls[start : start + 500])), now)

    def _value(self, client: Client, name: str, tokens: int, usage: Usage, now: float) -> None:
        client.values[name] = tokens
        self._feed(
            Ended(
                Tenant(client.job.tenant),
                client.session,
                VarId(name),
                OutcomeStatus.VALUE,
                0,
                now,
                usage=usage,
                characters=4 * tokens,
            )
        )

    def _finished(self, worker: WorkerId, request: Request, now: float) -> None:
        tenant, session, call_id = request.key
        attempt = self._held[worker].pop(request.key, None)
        client = self._clients.get(SessionId(session))
        if attempt is None or client is None:
            return
        names = self._outputs.pop(request.key)
        usage = Usage(
            prompt_tokens=round(request.prompt_tokens),
            cached_tokens=round(request.cached),
            output_tokens=request.output,
        )
        for name in names:
            self._value(client, name, client.job.outputs[name], usage, now)
        event = Event(
            worker=worker,
            kind=EventKind.FINISHED,
            tenant=tenant,
            session=session,
            call=call_id,
            attempt=attempt,
            usage=usage,
        )
        self._feed(Heard(event, now))
        if not client.open.isdisjoint(names):
            self._result(client, names, request, now)

    def _result(self, client: Client, names: tuple[VarId, ...], request: Request, now: float) -> None:
        client.open.difference_update(names)
        turn = client.turn
        assert turn is not None
        if not client.open:
            turn.first, turn.ended = request.first, now
            client.stage += 1
            if client.stage == len(client.job.stages):
                self._log(client, Close(), now)
                del self._clients[client.session]
                self._left -= 1
            else:
                think = client.job.stages[client.stage].think
                self._at(now + think, lambda t: self._ask(client, t))


def _describe(client: Client) -> Describe:
    """Names and true lengths of a job's variables."""
    job = client.job

    def describe(variable: VarId) -> tuple[object, float]:
        return (client.session, variable), float(job.given.get(variable) or job.outputs[variable])

    return describe
