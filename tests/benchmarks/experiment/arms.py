"""Arms: who sends an experiment's calls, at what distance, to which scheduler. And a run of one of them.

Law: arms have the same engine, limits, texts and arrivals; each run has a prefix cache of its own, which is cold. A waiting
client sends each call the moment its inputs have come back, siblings at once, over a connection that it keeps.

    (a)    a waiting client, no prefix cache; the scheduler serves in the order of arrival
    (b)    the same with prefix cache
    Myna   the whole graph is submitted; all policies, or all but one
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import myna
from myna.sdk import ids
from myna.sdk.examples._callers import Application, Caller, MynaCaller, Run, WaitingCaller
from myna.sdk.serving import hosting
from tests.benchmarks.experiment.applications import best, tool
from tests.benchmarks.experiment.cluster import Cluster
from tests.benchmarks.experiment.scheduling import ALL, without

ROUND_TRIP = 0.244
"""Seconds: the mean round trip between client and server in the paper's experiments."""
WAITING = "prefixes"
"""The policies that a waiting client's scheduler has: first come, first served, where the prefix is."""
UNSHARED = "prefixes read by each"
"""An engine that stores a shared prefix once, and reads it once for each request: what a prefix cache commonly is."""


class Client(StrEnum):
    """Who sends the calls."""

    UNCACHED = "(a)"
    CACHED = "(b)"
    MYNA = "Myna"


@dataclass(frozen=True)
class Arm:
    """A client at a distance of `round_trip` seconds; `switches` are the scheduler's policies."""

    client: Client
    round_trip: float = 0.0
    switches: str = ALL
    engine: str = ""
    """What is different about the engine, if anything is."""

    def __str__(self) -> str:
        off = without(self.switches) if self.client is Client.MYNA else []
        less = f" without {', '.join(off)}" if off else ""
        engine = f", {self.engine}" if self.engine else ""
        return f"{self.client}{less}{engine}, {1000 * self.round_trip:.0f} ms"


def waiting(client: Client, round_trip: float = 0.0, engine: str = "") -> Arm:
    """The arm of a waiting client."""
    return Arm(client, round_trip, WAITING, engine)


@dataclass(frozen=True)
class Load:
    """An application that begins `at` seconds after the run. A `background` one is given up when all others have ended."""

    kind: str
    application: Application
    at: float = 0.0
    objective: str | None = None
    background: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a load."""

    kind: str
    run: Run


async def perform(cluster: Cluster, arm: Arm, loads: Sequence[Load], timeout: float = 600.0) -> list[Outcome]:
    """Run all loads as the arm does; those of the foreground come back, in their order. Raises the first failure."""
    await cluster.policies(arm.switches)
    cache = ids.new("run")
    async with (
        asyncio.timeout(timeout),
        cluster.client() as client,
        hosting(client.bus, tool, best, tenant=client.tenant),
    ):
        sessions = [
            client.session(load.kind.replace(" ", "-"), cache=cache, objective=load.objective if _knows(arm) else None)
            for load in loads
        ]
        for session in sessions:
            await session.open()
        try:
            return await _together(arm, loads, sessions)
        finally:
            await asyncio.gather(*(session.close() for session in sessions))


def _knows(arm: Arm) -> bool:
    """Whether the scheduler is told what results are needed for: a server of single requests is not."""
    return arm.client is Client.MYNA


async def _together(arm: Arm, loads: Sequence[Load], sessions: Sequence[myna.Session]) -> list[Outcome]:
    began = time.perf_counter()

    async def one(load: Load, session: myna.Session) -> Outcome:
        await asyncio.sleep(max(load.at - (time.perf_counter() - began), 0.0))
        return Outcome(load.kind, await _caller(arm, session).run(load.application))

    tasks = [asyncio.create_task(one(*pair)) for pair in zip(loads, sessions, strict=True)]
    try:
        return await asyncio.gather(*(t for t, load in zip(tasks, loads, strict=True) if not load.background))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _caller(arm: Arm, session: myna.Session) -> Caller:
    match arm.client:
        case Client.MYNA:
            return MynaCaller(session, arm.round_trip, on_end=_nothing)
        case Client.CACHED:
            return WaitingCaller(session, arm.round_trip, on_end=_nothing)
        case Client.UNCACHED:
            return WaitingCaller(session, arm.round_trip, cache_prefix=False, on_end=_nothing)


def _nothing() -> None: ...
