"""Applications as they are met: each a generator of jobs with seeded sizes and Poisson arrivals.

A job is one application run: stages of calls, each submitted when the results of the one before have come back and a person has
thought for a while. Most have one stage, the whole graph. Sizes are in tokens; where a size is random, its distribution has the
long tail that such applications have.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from myna.actors.messages import (
    Input,
    Message,
    ModelCall,
    Objective,
    ObjectiveKind,
    Output,
    Sampling,
    Segment,
    Text,
    VarId,
)
from myna.actors.program import outputs_of
from tests.benchmarks.simulation.engine import EngineModel

LATENCY = Objective(kind=ObjectiveKind.LATENCY)
THROUGHPUT = Objective(kind=ObjectiveKind.THROUGHPUT)
_SAMPLING = Sampling(max_tokens=2048)


@dataclass
class Stage:
    """Calls submitted together, the variables then waited for, and the seconds of thought before."""

    calls: list[ModelCall]
    wants: tuple[str, ...]
    think: float = 0.0


@dataclass
class Job:
    """One run of an application. `given`: variables set by hand. `outputs`: the true lengths. Both in tokens."""

    kind: str
    tenant: str
    arrival: float
    stages: list[Stage] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    objective: Objective | None = None
    whole: bool = False
    """Its stages are steps of a program, and count as one: what is waited for is the last result."""

    def call(self, name: str, function: str, *parts: str | tuple[str, ...], output: int) -> ModelCall:
        """A call of constants (`=text`) and variables."""
        segments: list[Segment] = []
        for part in parts:
            if isinstance(part, str) and part.startswith("="):
                segments.append(Text(text=part[1:]))
            else:
                segments.append(Input(variables=part if isinstance(part, tuple) else (part,), joiner=""))
        segments.append(Output(variables=(name,), sampling=_SAMPLING))
        self.outputs[name] = output
        return ModelCall(id=f"c-{name}", function=function, messages=(Message(segments=tuple(segments)),))

    def turn(self, name: str, function: str, system: str, *said: str, output: int) -> ModelCall:
        """A turn of a conversation: a system prompt (`=text`), then user and assistant by turns, to be answered by the latter."""
        messages = [Message(segments=(Text(text=system[1:]),), role="system")]
        for n, part in enumerate(said):
            messages.append(Message(segments=(Input(variables=(part,)),), role="assistant" if n % 2 else "user"))
        messages.append(Message(segments=(Output(variables=(name,), sampling=_SAMPLING),), role="assistant"))
        self.outputs[name] = output
        return ModelCall(id=f"c-{name}", function=function, messages=tuple(messages))

    def give(self, name: str, tokens: int) -> str:
        """A variable that the application sets."""
        self.given[name] = tokens
        return name

    def calls(self) -> Iterator[ModelCall]:
        """All of them."""
        for stage in self.stages:
            yield from stage.calls


def constant(name: str, tokens: int) -> str:
    """A constant prompt of so many tokens, the same for the same name."""
    return "=" + filler(name, 4 * tokens)


def filler(name: str, characters: int) -> str:
    """Text of so many characters, the same for the same name."""
    text = f"{name} "
    return (text * math.ceil(characters / len(text)))[:characters]


Make = Callable[[random.Random, float, str], Job]


def _single(job: Job, calls: list[ModelCall], *wants: str, objective: Objective | None) -> Job:
    job.stages = [Stage(calls, wants)]
    job.objective = objective
    return job


def chain(rng: random.Random, arrival: float, tenant: str) -> Job:
    """A long document summarised piece by piece, each summary going into the next."""
    job = Job("chain", tenant, arrival)
    prompt, calls = constant("refine this summary", 80), []
    pieces = max(2, round(rng.lognormvariate(2.2, 0.6)))
    for i in range(pieces):
        before = [f"s{i - 1}"] if i else []
        piece = job.give(f"d{i}", 1024)
        calls.append(job.call(f"s{i}", "refine", prompt, *before, piece, output=rng.randint(30, 100)))
    return _single(job, calls, f"s{pieces - 1}", objective=LATENCY)


def map_reduce(rng: random.Random, arrival: float, tenant: str, objective: Objective | None = LATENCY) -> Job:
    """A long document summarised in parallel, then in one."""
    job = Job("map-reduce", tenant, arrival)
    prompt = constant("summarize this piece", 60)
    pieces = max(2, round(rng.lognormvariate(2.7, 0.7)))
    maps = [
        job.call(f"m{i}", "map", prompt, job.give(f"d{i}", 1024), output=rng.randint(30, 100)) for i in range(pieces)
    ]
    names = tuple(f"m{i}" for i in range(pieces))
    reduce = job.call("r", "reduce", constant("join these summaries", 60), names, output=rng.randint(80, 200))
    return _single(job, [*maps, reduce], "r", objective=objective)


def copilot(rng: random.Random, arrival: float, tenant: str) -> Job:
    """One question under a very long system prompt that everybody shares."""
    job = Job("copilot", tenant, arrival)
    question = job.give("q", rng.randint(20, 200))
    call = job.call("a", "copilot", constant("you are a copilot", 5107), question, output=rng.randint(183, 800))
    return _single(job, [call], "a", objective=LATENCY)


_GPTS = ((7437, 7, 704), (1116, 8, 89), (1694, 4, 631), (2031, 4, 416))


def gpts(rng: random.Random, arrival: float, tenant: str) -> Job:
    """A question to one of forty assistants, each with a long prompt of its own."""
    which = rng.randrange(40)
    prompt, query, output = _GPTS[which % 4]
    job = Job("gpts", tenant, arrival)
    question = job.give("q", query)
    length = max(8, round(output * rng.uniform(0.5, 1.5)))
    call = job.call("a", f"gpt{which}", constant(f"assistant {which}", prompt), question, output=length)
    return _single(job, [call], "a", objective=LATENCY)


def team(rng: random.Random, arrival: float, tenant: str) -> Job:
    """A software team: an architect, a coder for each file, rounds of review and revision that see all the code."""
    job = Job("team", tenant, arrival)
    files = rng.choice((2, 4, 4, 8, 12))
    task = job.give("task", 150)
    calls = [job.call("plan", "architect", constant("you are the architect", 400), task, output=rng.randint(200, 400))]
    code = []
    for f in range(files):
        calls.append(
            job.call(f"f{f}", "code", constant("you write code", 300), task, "plan", output=rng.randint(200, 600))
        )
        code.append(f"f{f}")
    for r in range(2):
        seen, revised = tuple(code), []
        for f in range(files):
            review, revision = f"v{r}-{f}", f"f{r}-{f}"
            shared = (constant("you review code", 300), task, "plan", seen)
            calls.append(job.call(review, "review", *shared, code[f], output=rng.randint(50, 200)))
            shared = (constant("you revise code", 300), task, "plan", seen)
            calls.append(job.call(revision, "revise", *shared, review, code[f], output=rng.randint(200, 600)))
            revised.append(revision)
        code = revised
    return _single(job, calls, *code, objective=None)


def chat(rng: random.Random, arrival: float, tenant: str) -> Job:
    """A conversation: each turn sees all that was said."""
    job = Job("chat", tenant, arrival, objective=LATENCY)
    said: list[str] = []
    for turn in range(max(1, round(rng.lognormvariate(1.1, 0.6)))):
        said.append(job.give(f"u{turn}", max(8, round(rng.lognormvariate(4.0, 0.8)))))
        answer = f"a{turn}"
        call = job.turn(answer, "chat", constant("you are helpful", 200), *said, output=rng.randint(30, 300))
        job.stages.append(Stage([call], (answer,), think=rng.expovariate(1 / 6) if turn else 0.0))
        said.append(answer)
    return job


def agent(rng: random.Random, arrival: float, tenant: str) -> Job:
    """An agent with tools: it sees all that it has done, says what to do next, waits for the tool, and reads what it gave."""
    job = Job("agent", tenant, arrival, objective=LATENCY, whole=True)
    done = [job.give("task", max(16, round(rng.lognormvariate(4.5, 0.8))))]
    prompt = constant(f"you are agent {rng.randrange(8)} and have these tools", 3000)
    steps = min(40, max(1, round(rng.lognormvariate(1.8, 0.8))))
    for step in range(steps):
        name = f"a{step}"
        call = job.turn(name, "act", prompt, *done, output=rng.randint(40, 250))
        pause = min(60.0, rng.lognormvariate(0.4, 1.0)) if step else 0.0
        job.stages.append(Stage([call], (name,), think=pause))
        done += [name, job.give(f"t{step}", min(6000, round(rng.lognormvariate(5.7, 1.0))))]
    return job


def flood(rng: random.Random, arrival: float, tenant: str) -> Job:
    """A batch job: very many independent pieces, then one."""
    job = Job("flood", tenant, arrival)
    prompt = constant("extract the facts", 100)
    pieces = rng.randint(100, 300)
    maps = [
        job.call(f"m{i}", "extract", prompt, job.give(f"d{i}", 1500), output=rng.randint(50, 150))
        for i in range(pieces)
    ]
    names = tuple(f"m{i}" for i in range(pieces))
    total = job.call("r", "collect", constant("collect the facts", 60), names, output=100)
    return _single(job, [*maps, total], "r", objective=THROUGHPUT)


def urgent(rng: random.Random, arrival: float, tenant: str) -> Job:
    """A map-reduce job or a team that must be ready in time."""
    return map_reduce(rng, arrival, tenant) if rng.random() < 0.7 else chain(rng, arrival, tenant)


@dataclass(frozen=True)
class Part:
    """A share of a workload: who asks for what."""

    make: Make
    share: float
    tenant: str


@dataclass(frozen=True)
class Workload:
    """What arrives. `load`: work offered, as a share of what the engines do in full batches. `patience`: if set, each job has a
    deadline of so many times its time alone, and the scheduler is told."""

    name: str
    parts: tuple[Part, ...]
    load: float
    jobs: int
    patience: float | None = None
    recorded: tuple[Job, ...] = ()
    """If set, the jobs themselves; nothing is made."""

    @property
    def tenants(self) -> set[str]:
        """Who asks."""
        return {p.tenant for p in self.parts} | {j.tenant for j in self.recorded}


WORKLOADS = (
    Workload("chains", (Part(chain, 1, "a"),), 1.0, 600),
    Workload("map-reduce", (Part(map_reduce, 1, "a"),), 0.95, 800),
    Workload("copilot", (Part(copilot, 1, "a"),), 1.0, 2000),
    Workload("gpts", (Part(gpts, 1, "a"),), 1.0, 2000),
    Workload("agent teams", (Part(team, 1, "a"),), 1.0, 120),
    Workload("chats", (Part(chat, 1, "a"),), 0.7, 1500),
    Workload("deadlines", (Part(urgent, 1, "a"),), 1.05, 800, patience=6.0),
    Workload("chat under floods", (Part(chat, 0.03, "chats"), Part(flood, 0.97, "floods")), 0.9, 300),
    Workload(
        "mixed multi-tenant",
        (
            Part(agent, 0.3, "a"),
            Part(team, 0.2, "b"),
            Part(map_reduce, 0.15, "c"),
            Part(chain, 0.1, "d"),
            Part(gpts, 0.1, "e"),
            Part(chat, 0.05, "f"),
            Part(flood, 0.1, "g"),
        ),
        1.3,
        2500,
    ),
)


def work(job: Job, model: EngineModel) -> float:
    """Engine seconds that a job takes in full batches, if what its calls share is computed once."""
    return sum(model.cost(new, context, sum(job.outputs[v] for v in made)) for made, new, context, _ in sizes(job))


def alone(job: Job, model: EngineModel, engines: int = 4) -> float:
    """Seconds of a job on an idle cluster: its longest path or its work, whichever is more. Pauses count where the job is
    whole."""
    ends: dict[str, float] = {}
    clock = 0.0
    measured = iter(sizes(job))
    for stage in job.stages:
        clock += stage.think if job.whole else 0.0
        for _ in stage.calls:
            made, new, _, inputs = next(measured)
            start = max((ends[v] for v in inputs if v in ends), default=clock)
            tokens = sum(job.outputs[v] for v in made)
            ends |= dict.fromkeys(made, max(start, clock) + new * model.prefill + tokens * model.alone)
        clock = max(ends[v] for v in stage.wants)
    return max(clock, work(job, model) / engines)


def sizes(job: Job) -> Iterator[tuple[tuple[VarId, ...], float, float, list[str]]]:
    """Of each call its outputs, the prompt tokens that no call of the job before it has computed (constants left out: they are
    shared by all jobs), those of its whole prompt, and its inputs."""
    known: set[tuple[str, ...]] = set()
    for call in job.calls():
        new, context, inputs = 0.0, 0.0, []
        before: tuple[str, ...] = ()
        for segment in (s for m in call.messages for s in m.segments):
            if isinstance(segment, Output):
                known.add((*before, segment.variables[0]))  # what is generated is in the cache too
                continue
            names = (segment.text,) if isinstance(segment, Text) else segment.variables
            for name in names:
                length = len(name) / 4 if isinstance(segment, Text) else job.given.get(name) or job.outputs[name]
                before = (*before, name)
                context += length
                if isinstance(segment, Input):
                    inputs.append(name)
                if isinstance(segment, Input) and before not in known:
                    new += length
                known.add(before)
        yield outputs_of(call), new, context, inputs


def jobs(workload: Workload, model: EngineModel, engines: int, seed: int, scale: float = 1.0) -> list[Job]:
    """The jobs of a workload in order of arrival: shares are of the work, not of the number."""
    if workload.recorded:
        return list(workload.recorded)
    rng = random.Random(f"{workload.name} {seed}")
    mean = [sum(work(p.make(rng, 0.0, ""), model) for _ in range(40)) / 40 for p in workload.parts]
    rates = [workload.load * engines * p.share / m for p, m in zip(workload.parts, mean, strict=True)]
    seconds = workload.jobs * scale / sum(rates)
    made: list[Job] = []
    for part, rate in zip(workload.parts, rates, strict=True):
        now = rng.expovariate(rate)
        while now < seconds:
            made.append(part.make(rng, now, part.tenant))
            now += rng.expovariate(rate)
    for job in made:
        if workload.patience is not None:
            job.objective = Objective(kind=ObjectiveKind.DEADLINE, seconds=workload.patience * alone(job, model))
    return sorted(made, key=lambda j: j.arrival)
