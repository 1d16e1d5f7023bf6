"""The experiments: what runs when, what is measured, and what is wanted of it. Sizes for one GPU, for two CPU cores, and tiny."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.benchmarks.experiment.applications import (
    BestOf,
    Chain,
    Chat,
    CodingAgent,
    Copilot,
    MapReduce,
    Team,
    Thoughts,
)
from tests.benchmarks.experiment.arms import Load, Outcome
from tests.benchmarks.experiment.words import Words
from tests.benchmarks.simulation.metrics import percentile

LATENCY, THROUGHPUT = "latency", "throughput"


class Scale(StrEnum):
    """How large it is all done."""

    GPU = "gpu"
    CPU = "cpu"
    TINY = "tiny"


Loads = Callable[[Words], list[Load]]
Measure = Callable[[Sequence[Outcome]], float]


@dataclass(frozen=True)
class Experiment:
    """One experiment. `measure` is in seconds, lower is better; what it is of says `metric`. Targets are ratios of the baseline's
    to ours: to (a) at the paper's round trip, to (b) at none. `also`: other figures of the same runs, with their targets to (b).
    `memory`: tokens of KV, where less than all makes the point."""

    name: str
    sizes: str
    loads: Loads
    measure: Measure
    metric: str
    to_a: float | None = None
    to_b: float | None = None
    also: tuple[tuple[str, Measure, float | None], ...] = ()
    memory: int | None = None


def mean(kind: str) -> Measure:
    """Mean seconds of the applications of a kind."""

    def measure(outcomes: Sequence[Outcome]) -> float:
        return statistics.mean(o.run.seconds for o in outcomes if o.kind == kind)

    return measure


def p99(kind: str) -> Measure:
    """The 99th percentile of their seconds."""

    def measure(outcomes: Sequence[Outcome]) -> float:
        return percentile([o.run.seconds for o in outcomes if o.kind == kind], 0.99)

    return measure


def poisson(rate: float, seed: str, end: float) -> list[float]:
    """Seconds of arrival, so many a second on average, until `end`."""
    draw, found, now = random.Random(seed), [], 0.0
    while (now := now + draw.expovariate(rate)) < end:
        found.append(now)
    return found


# --- The experiments, of any size -------------------------------------------------------------------------------------


def chain(size: Chain, name: str = "chain summary", to_a: float = 1.38) -> Experiment:
    """A chain by itself."""
    return Experiment(
        name,
        str(size),
        lambda words: [Load("chain", size.application(words))],
        mean("chain"),
        "completion",
        to_a,
        1.05,
    )


def loaded_chain(size: Chain, rate: float, prompt: int = 512, output: int = 50, end: float = 20.0) -> Experiment:
    """A chain among requests of others."""

    def loads(words: Words) -> list[Load]:
        others = [
            Load("other", Chat(prompt, output).application(words.seeded(f"{words.seed} {n}")), at, background=True)
            for n, at in enumerate(poisson(rate, "others", end))
        ]
        return [Load("chain", size.application(words), at=0.5), *others]

    sizes = f"{size}; beside it {prompt} -> {output}, {rate:g} a second"
    return Experiment("chain under load", sizes, loads, mean("chain"), "completion", 2.4)


def many_chains(size: Chain, chains: int, name: str = "many chains", to_a: float = 1.7) -> Experiment:
    """Chains that begin together."""

    def loads(words: Words) -> list[Load]:
        return [Load("chain", size.application(words.seeded(f"{words.seed} {n}"))) for n in range(chains)]

    return Experiment(
        name, f"{chains} chains, {size}", loads, mean("chain"), "mean completion", to_a, 1.3,
        also=(("last completion", lambda outcomes: max(o.run.seconds for o in outcomes), None),),
    )  # fmt: skip


def map_reduce(size: MapReduce, name: str = "map-reduce", to_a: float = 2.4) -> Experiment:
    """One document."""
    return Experiment(
        name,
        str(size),
        lambda words: [Load("map-reduce", size.application(words))],
        mean("map-reduce"),
        "completion",
        to_a,
        1.2,
    )


def many_map_reduces(size: MapReduce, documents: int, apart: float) -> Experiment:
    """Documents that arrive one after another, faster than they are done."""

    def loads(words: Words) -> list[Load]:
        return [
            Load("map-reduce", size.application(words.seeded(f"{words.seed} {n}")), n * apart) for n in range(documents)
        ]

    return Experiment(
        "map-reduce, several documents", f"{documents} documents {apart:g} s apart, {size}", loads,
        mean("map-reduce"), "mean completion",
    )  # fmt: skip


def copilot(size: Copilot, name: str = "copilot", to_a: float = 2.4) -> Experiment:
    """All users at once."""
    return Experiment(
        name,
        str(size),
        lambda words: [Load("copilot", size.application(words))],
        mean("copilot"),
        "completion of all",
        to_a,
        1.6,
    )


def team(size: Team, targets: tuple[float | None, float | None] = (None, None)) -> Experiment:
    """One team."""
    return Experiment(
        f"multi-agent, {size.files} files",
        str(size),
        lambda words: [Load("team", size.application(words))],
        mean("team"),
        "completion",
        *targets,
    )


def mixed(
    chats: int, rate: float, documents: int, size: MapReduce, lengths: tuple[tuple[int, int], tuple[int, int]]
) -> Experiment:
    """Chats, whose tokens somebody waits for, beside documents that are wanted some time."""

    def loads(words: Words) -> list[Load]:
        draw, made = random.Random("chats"), []
        for n, at in enumerate(poisson(rate, "arrivals", 10 * chats / rate)[:chats]):
            prompt, output = (draw.randint(*length) for length in lengths)
            made.append(Load("chat", Chat(prompt, output).application(words.seeded(f"{words.seed} c{n}")), at, LATENCY))
        apart = chats / rate / documents
        for n in range(documents):
            application = size.application(words.seeded(f"{words.seed} d{n}"))
            made.append(Load("map-reduce", application, n * apart, THROUGHPUT))
        return made

    return Experiment(
        "mixed, chat",
        f"{chats} chats of {lengths[0]} -> {lengths[1]} at {rate:g} a second, {documents} map-reduce jobs of {size}",
        loads,
        p99("chat"),
        "p99 of a chat",
        5.5,
        1.5,
        also=(("map-reduce, mean completion", mean("map-reduce"), 0.98), ("chat, mean", mean("chat"), None)),
    )


def coding_agents(size: CodingAgent, agents: int, memory: int, name: str = "coding agent") -> Experiment:
    """Agents whose contexts don't fit the memory all at once."""

    def loads(words: Words) -> list[Load]:
        return [
            Load("agent", size.application(words.seeded(f"{words.seed} {n}")), 0.3 * n, LATENCY) for n in range(agents)
        ]

    return Experiment(
        name,
        f"{agents} agents, {size}, {memory} tokens of KV",
        loads,
        mean("agent"),
        "mean completion",
        None,
        1.5,
        memory=memory,
    )


def thoughts(size: Thoughts) -> Experiment:
    """One search."""
    return Experiment(
        "tree of thought",
        str(size),
        lambda words: [Load("search", size.application(words))],
        mean("search"),
        "completion",
    )


def best_of(size: BestOf) -> Experiment:
    """One question."""
    return Experiment(
        "best of n", str(size), lambda words: [Load("best", size.application(words))], mean("best"), "completion"
    )


# --- Their sizes ------------------------------------------------------------------------------------------------------

_CHATS = ((100, 800), (50, 300))

EXPERIMENTS: dict[Scale, tuple[Experiment, ...]] = {
    Scale.GPU: (  # The first, then the paper's other sizes, each with its ratio there.
        chain(Chain(10)),
        map_reduce(MapReduce(32)),
        many_chains(Chain(4, 2048), 25),
        best_of(BestOf(16)),
        thoughts(Thoughts(3, 5, 2)),
        loaded_chain(Chain(8), 3.5),
        copilot(Copilot(64)),
        mixed(24, 2.0, 9, MapReduce(16), _CHATS),
        team(Team(16, code=250, review=60), (5.0, 1.5)),
        # Eight turns, whose contexts grow as in forty of 240 tokens.
        coding_agents(CodingAgent(8, 12_000, result=1000, pause=1.5), 12, 150_000),
        many_map_reduces(MapReduce(16), 8, 0.2),
        team(Team(4, code=250, review=60)),
        team(Team(8, code=250, review=60)),
        team(Team(12, code=250, review=60)),
        *(
            many_chains(Chain(4, 2048), n, f"many chains, {n}", to_a)
            for n, to_a in ((10, 1.38), (15, 1.52), (20, 1.63))
        ),
        *(
            chain(Chain(10, output=n), f"chain summary, output {n}", to_a)
            for n, to_a in ((25, 1.38), (75, 1.14), (100, 1.11))
        ),
        *(
            map_reduce(MapReduce(32, output=n), f"map-reduce, output {n}", to_a)
            for n, to_a in ((25, 1.7), (75, 2.22), (100, 2.37))
        ),
        *(copilot(Copilot(n), f"copilot, {n} requests", to_a) for n, to_a in ((8, 1.76), (16, 2.37), (32, 2.4))),
        coding_agents(CodingAgent(40, 12_000), 12, 150_000, "coding agent, 40 turns"),
    ),
    Scale.CPU: (
        chain(Chain(5, 192, 16)),
        map_reduce(MapReduce(8, 192, 16)),
        copilot(Copilot(12, 640, 16, (12, 40))),
        many_chains(Chain(3, 192, 12), 6),
        team(Team(4, 2, 40, 48, 32, 40, 16), (None, None)),
        loaded_chain(Chain(4, 192, 16), 2.0, 128, 12),
        mixed(8, 0.8, 3, MapReduce(6, 192, 12), ((24, 96), (8, 24))),
        best_of(BestOf(6, 640, 24, 8)),
        thoughts(Thoughts(2, 3, 2, 192, 16, 2)),
        coding_agents(CodingAgent(5, 700, 12, 32, 0.8), 4, 2_200),
    ),
    Scale.TINY: (
        chain(Chain(3, 96, 6)),
        map_reduce(MapReduce(4, 96, 6)),
        copilot(Copilot(6, 256, 8, (4, 12))),
        many_chains(Chain(2, 96, 4), 4),
        team(Team(2, 1, 16, 24, 8, 12, 6)),
        loaded_chain(Chain(2, 96, 6), 4.0, 48, 4, 10.0),
        mixed(4, 4.0, 2, MapReduce(3, 96, 6), ((16, 48), (4, 8))),
        best_of(BestOf(3, 256, 8, 4)),
        thoughts(Thoughts(2, 2, 2, 96, 6, 2)),
        coding_agents(CodingAgent(3, 256, 6, 16, 0.1), 3, 1_000),
    ),
}


def named(scale: Scale, names: Sequence[str]) -> list[Experiment]:
    """The experiments whose names begin with one of `names`, in their order; all, if there are none; a name that ends in `.` is
    meant exactly. Raises ValueError for a name of none."""
    every = EXPERIMENTS[scale]

    def meant(name: str, experiment: Experiment) -> bool:
        return experiment.name == name[:-1] if name.endswith(".") else experiment.name.startswith(name)

    for name in names:
        if not any(meant(name, e) for e in every):
            known = ", ".join(e.name for e in every)
            raise ValueError(f"no experiment is called {name!r}; there are {known}")
    return list(dict.fromkeys(e for name in names for e in every if meant(name, e))) if names else list(every)
