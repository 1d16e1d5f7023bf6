"""Arms on modelled engines: the real scheduler core, a virtual clock, and the experiments' own applications, taken down instead
of run. Not measured: modelled.

Law: a client sends here what it would send, when it would: Myna's all calls of an application at once, its tools too, a waiting
one each call a round trip after the last of its inputs has come back. Steps of engines and tools take time, and round trips;
nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Argument,
    Beat,
    Declare,
    Input,
    ModelCall,
    NativeCall,
    Objective,
    ObjectiveKind,
    Run,
    Running,
    SessionId,
    Usage,
    VarId,
    WorkerId,
    WorkerKind,
)
from myna.actors.messages import Call as Made
from myna.actors.program import inputs_of, outputs_of
from myna.actors.scheduler.commands import Command, Dispatch, Halt
from myna.actors.scheduler.events import Heard
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.prefixes import Boundary
from myna.sdk.examples._callers import Run as Ran
from tests.benchmarks.experiment.applications import Chain
from tests.benchmarks.experiment.arms import UNSHARED, Arm, Client, Load, Outcome
from tests.benchmarks.experiment.floors import Call, Recorder, tokens_of
from tests.benchmarks.experiment.scheduling import policies_of
from tests.benchmarks.experiment.words import Words, made_words
from tests.benchmarks.experiment.workloads import Experiment
from tests.benchmarks.simulation import cluster
from tests.benchmarks.simulation.engine import Engine, EngineModel, Request
from tests.benchmarks.simulation.workloads import Job, Stage

WARM, WARMED = Load("warm", Chain(3, 128, 16).application(made_words(1000)), background=True), 10.0
"""What a scheduler that has just begun learns from how its engine fares, and the seconds after which it is measured."""
APART = 0.001
"""Seconds between applications that begin at once: one client sends them one after another."""
AGENT = WorkerId("tools")
SECONDS = "seconds"


class Uncached(Engine):
    """An engine without prefix cache."""

    def submit(self, request: Request, now: float) -> None:
        """See `Engine`."""
        own = tuple(Boundary(hash((request.key, b.name)), b.tokens) for b in request.boundaries)
        super().submit(replace(request, boundaries=own), now)


class Unshared(Engine):
    """An engine that stores a shared prefix once, and reads it once for each request."""

    @property
    def _reads(self) -> float:
        begun = [request for request in self.waiting if request.admitted] + [request for _, _, request in self.decoding]
        return self._generated + sum(request.prompt_tokens for request in begun)


@dataclass(frozen=True)
class Simulation:
    """A cluster for one arm."""

    arm: Arm
    engines: int = 1

    def run(self, jobs: Sequence[Job], model: EngineModel) -> list[cluster.Turn]:
        """All jobs, to the end."""
        policies = policies_of(self.arm.switches)
        if self.arm.client is Client.MYNA:
            made: cluster.Cluster = Applications(model, self.engines, policies)
        else:
            made = Waiting(model, self.engines, policies, self.arm.round_trip)
        for worker, engine in made.engines.items():
            made.engines[worker] = self._kind(engine.model, engine.at, engine.finished)
        turns = made.run([self._seen(job) for job in jobs])
        assert not made.failures, made.failures[:3]
        return turns

    def seconds(self, turn: cluster.Turn) -> float:
        """Of a job, with the way there and back."""
        assert turn.ended is not None
        return turn.ended - turn.asked + self.arm.round_trip

    @property
    def _kind(self) -> type[Engine]:
        if self.arm.client is Client.UNCACHED:
            return Uncached
        return Unshared if UNSHARED in self.arm.engine else Engine

    def _seen(self, job: Job) -> Job:
        """A job without pauses is one graph, which this client sends in its own way; between pauses it comes stage by stage."""
        if not any(stage.think for stage in job.stages):
            return replace(job, stages=[Stage([c for s in job.stages for c in s.calls], job.stages[-1].wants)])
        late = 0.0 if self.arm.client is Client.MYNA else self.arm.round_trip  # Myna's tools are agents beside it
        return replace(job, stages=[replace(s, think=s.think + late if n else 0.0) for n, s in enumerate(job.stages)])


class Applications(cluster.Cluster):
    """The whole graph is submitted at once. Tools are native functions, which an agent serves."""

    def run(self, jobs: list[Job]) -> list[cluster.Turn]:
        """See `Cluster`."""
        served = {c.function: None for job in jobs for c in job.calls() if isinstance(c, NativeCall)}
        if served:
            self._at(0.0, lambda now: self._present(tuple(served), now))
        return super().run(jobs)

    def _present(self, serves: tuple[str, ...], now: float) -> None:
        self._held[AGENT] = {}
        offer = Announce(
            protocol=PROTOCOL, worker=AGENT, kind=WorkerKind.AGENT, incarnation=AGENT, serves=serves, capacity=256
        )
        self._feed(Heard(offer, now))
        self._beat_agent(now)

    def _beat_agent(self, now: float) -> None:
        running = tuple(Running(tenant=t, session=s, call=c, attempt=a) for (t, s, c), a in self._held[AGENT].items())
        self._feed(Heard(Beat(worker=AGENT, incarnation=AGENT, running=running), now))
        self._at(now + cluster.BEAT, self._beat_agent)

    def _execute(self, command: Command, now: float) -> None:
        match command:
            case Dispatch(run=Run(call=NativeCall()) as run):
                key = (run.tenant, run.session, run.call.id)
                self._held[AGENT][key] = run.attempt
                self._outputs[key] = outputs_of(run.call)
                done = Request(key, (), 0, 0, first=now)
                self._at(now + seconds_of(run.call), lambda t: self._finished(AGENT, done, t))
            case Halt(worker=worker, stop=stop) if worker == AGENT:
                self._held[AGENT].pop((stop.tenant, stop.session, stop.call), None)
            case _:
                super()._execute(command, now)


class Waiting(cluster.Cluster):
    """Clients that send each call a round trip after the last of its inputs has come back, and have their tools themselves."""

    def __init__(self, model: EngineModel, engines: int, policies: Policies, round_trip: float) -> None:
        super().__init__(model, engines, policies)
        self._round_trip = round_trip
        self._unsent: dict[SessionId, list[Made]] = {}

    def _send(self, client: cluster.Client, calls: Sequence[Made], now: float) -> None:
        self._unsent[client.session] = list(calls)
        self._go_on(client, now, 0.0)

    def _go_on(self, client: cluster.Client, now: float, later: float) -> None:
        """Send what has its inputs, after `later` seconds; tools are not far away."""
        unsent = self._unsent.get(client.session, [])
        ready = [call for call in unsent if client.values.keys() >= set(inputs_of(call))]
        self._unsent[client.session] = [call for call in unsent if call not in ready]
        asked = [call for call in ready if isinstance(call, ModelCall)]
        if asked:
            self._at(now + later, lambda t: super(Waiting, self)._send(client, asked, t))
        for call in ready:
            if isinstance(call, NativeCall):
                self._at(now + seconds_of(call), lambda t, c=call: self._computed(client, c, t))  # type: ignore[misc]

    def _computed(self, client: cluster.Client, call: NativeCall, now: float) -> None:
        self._log(client, Declare(variables=(call.variable,)), now)
        self._value(client, call.variable, client.job.outputs[call.variable], Usage(), now)
        if call.variable in client.open:
            self._result(client, (call.variable,), Request(None, (), 0, 0, first=now), now)

    def _value(self, client: cluster.Client, name: str, tokens: int, usage: Usage, now: float) -> None:
        super()._value(client, name, tokens, usage, now)
        self._go_on(client, now, self._round_trip)


def seconds_of(call: NativeCall) -> float:
    """What a tool takes."""
    return float(next(argument.constant for argument in call.arguments if argument.name == SECONDS))


@dataclass
class _Writer:
    """Writes an application's calls down for a job."""

    job: Job
    names: dict[str | Call, VarId] = field(default_factory=dict)

    def call(self, call: Call) -> Made:
        """One of them; each comes after those that it reads."""
        name = VarId(f"{call.function}{len(self.names)}")
        made = self._asked(name, call) if call.drawn else self._native(name, call)
        self.names[call] = name
        return made

    def _asked(self, name: VarId, call: Call) -> ModelCall:
        head, *body = call.pieces
        return self.job.call(name, call.function, f"={head}", *map(self._part, body), output=call.drawn)

    def _native(self, name: VarId, call: Call) -> NativeCall:
        self.job.outputs[name] = call.tokens
        reads = Input(variables=tuple(self.names[one] for one in call.inputs), joiner="")
        arguments = (Argument(name="inputs", input=reads), Argument(name=SECONDS, constant=call.seconds))
        return NativeCall(id=f"c-{name}", function=call.function, variable=name, arguments=arguments)

    def _part(self, piece: str | Call) -> str:
        if piece not in self.names:
            self.names[piece] = VarId(self.job.give(f"text{len(self.names)}", tokens_of(piece)))
        return self.names[piece]


def job_of(load: Load) -> Job:
    """An experiment's application as a job, its texts as tokens."""
    objective = None if load.objective is None else Objective(kind=ObjectiveKind(load.objective))
    writer, recorder = _Writer(Job(load.kind, "a", load.at, objective=objective)), Recorder()
    wanted = load.application(recorder)
    calls = [writer.call(call) for call in recorder.calls]
    writer.job.stages = [Stage(calls, tuple(writer.names[call] for call in wanted))]  # type: ignore[arg-type]
    return writer.job


def perform(experiment: Experiment, arm: Arm, words: Words, model: EngineModel) -> list[Outcome]:
    """An experiment on one modelled engine, as an arm does it, after the same warming up as a real one."""
    loads = [WARM, *(replace(load, at=WARMED + load.at + n * APART) for n, load in enumerate(experiment.loads(words)))]
    if arm.client is not Client.MYNA:
        loads = [replace(load, objective=None) for load in loads]
    if experiment.memory is not None:
        model = replace(model, tokens=experiment.memory)
    simulation = Simulation(arm)
    unmeasured = {load.kind for load in loads if load.background}
    return [
        Outcome(turn.job.kind, Ran(seconds, turn.asked, turn.asked + seconds, (), (), Usage()))
        for turn in simulation.run([job_of(load) for load in loads], model)
        if turn.job.kind not in unmeasured
        for seconds in [simulation.seconds(turn)]
    ]
