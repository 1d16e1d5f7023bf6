"""The demonstration (`make demo`): two applications on a real model, and the same ones run by a client that waits.

First the applications run and their texts are shown. Then each is timed with Myna and with a waiting client, at the round trip
that this machine has and at a simulated one. It ends with a table, and a picture of every call.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import myna
from myna.sdk import ids
from myna.sdk.examples._applications import Named, map_reduce, overlooked, team
from myna.sdk.examples._callers import Caller, MynaCaller, Run, WaitingCaller
from myna.sdk.examples._common import CONSOLE, connected, split, title, topic
from myna.sdk.examples._report import Arm, Measurement, remarks, table
from myna.sdk.function import Function
from myna.sdk.serving import hosting
from myna.sdk.timeline import Panel, draw

SIMULATED = 0.244
"""Seconds: the mean round trip between client and server in the Parrot paper's experiments."""
PATIENCE = 60.0
"""Seconds that a pass over all runs may take for a second one to follow."""


FOLDER = Path("myna-demo")
"""Where the pictures go."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is to be done."""

    chapter: str = "objects"
    part: int = 1000
    parts: int = 6
    chapters: tuple[str, ...] = ("with", "global", "for")
    head: int = 1000
    round_trips: tuple[float, ...] = (0.0, SIMULATED)
    passes: int = 2


QUICK = Sizes(part=400, parts=2, chapters=("lambda",), head=300, round_trips=(SIMULATED,), passes=1)


async def main(
    client: myna.Client | None = None, *, sizes: Sizes = Sizes(), folder: Path = Path()
) -> list[Measurement]:
    """Run everything, print it, and write the pictures into `folder`. Returns the measurements."""
    applications = [
        map_reduce(split(topic(sizes.chapter), sizes.part)[: sizes.parts]),
        team([split(topic(name), sizes.head)[0] for name in sizes.chapters]),
    ]
    began, busy = time.perf_counter(), os.getloadavg()[0]
    async with connected(client) as connection:
        title(f"ready after {time.perf_counter() - began:.0f} s")
        await _perform(connection, applications, sizes)
        title("the same, timed")
        CONSOLE.print(FAIRNESS)
        measured = await _measure(connection, applications, sizes)
    CONSOLE.print(table(measured))
    for remark in remarks(measured):
        CONSOLE.print("-", remark)
    if busy > 1:
        CONSOLE.print(
            f"- [bold]This machine had other work when this began (load {busy:.1f}): such times don't repeat.[/]"
        )
    for path in _pictures(measured, sizes, folder):
        CONSOLE.print(f"[bold]picture[/] {path}")
    return measured


FAIRNESS = (
    "Every run has the same prompts, greedy sampling and token limits, on the same scheduler and engine, over the same "
    "connection. Each has a prefix cache of its own in the engine, which keeps such caches apart, so each begins cold on the "
    "very same text. One short call goes before each run; opening the session is not timed. The waiting client sends a call "
    "the moment its inputs have come back, all that is independent at once, and runs the native function at its own side. A "
    "simulated round trip is charged to both: to the waiting client for every call, to Myna for its submission and its last "
    "result."
)


# --- First: the applications themselves -------------------------------------------------------------------------------


class _Submitted:
    """Calls with Myna, kept to be shown."""

    def __init__(self, session: myna.Session) -> None:
        self._session = session
        self.calls: list[tuple[str, myna.Variable]] = []

    def call(self, label: str, function: Function | myna.Agent, **arguments: Any) -> myna.Variable:
        """See `Calls`."""
        variable: myna.Variable = function(session=self._session, **arguments)
        self.calls.append((label, variable))
        return variable


async def _perform(client: myna.Client, applications: Sequence[Named], sizes: Sizes) -> None:
    """Run the applications with Myna and show what comes of them, as it comes. It also warms the engine up."""
    async with hosting(client.bus, overlooked, tenant=client.tenant), client.session("showcase") as session:
        summary, explanations = _Submitted(session), _Submitted(session)
        for application, submitted in zip(applications, (summary, explanations), strict=True):
            application.application(submitted)
        title(f"map-reduce: {sizes.parts} parts of the chapter {sizes.chapter!r}, summarized side by side, then joined")
        await _show(summary.calls)
        each = len(explanations.calls) // len(sizes.chapters)
        for number, name in enumerate(sizes.chapters):
            title(f"three roles and a native check, on the chapter {name!r}")
            await _show(explanations.calls[each * number : each * (number + 1)])


async def _show(calls: Sequence[tuple[str, myna.Variable]]) -> None:
    """The texts of some calls, each as it is made."""
    for label, variable in calls:
        CONSOLE.print(f"[bold cyan]{label}[/]", end=" ")
        async for piece in variable.stream():
            CONSOLE.print(piece, end="", markup=False, soft_wrap=True)
        CONSOLE.print()


# --- Then: the comparison ---------------------------------------------------------------------------------------------


async def _measure(client: myna.Client, applications: Sequence[Named], sizes: Sizes) -> list[Measurement]:
    """Time every application in every arm, in several passes if they are quick, each in the opposite order of the one before."""
    runs = list(itertools.product(applications, sizes.round_trips, Arm))
    measured: list[Measurement] = []
    columns = (TextColumn("{task.description}"), BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        began = time.perf_counter()
        for number in range(sizes.passes):
            for application, round_trip, arm in runs[:: 1 if number % 2 == 0 else -1]:
                text = f"{application.name}, {1000 * round_trip:.0f} ms, {arm}"
                task = progress.add_task(text, total=application.calls)
                run = await _time(client, application, round_trip, arm, partial(progress.advance, task))
                measured.append(Measurement(application.name, round_trip, arm, run))
                progress.update(task, description=f"{text}: {run.seconds:.2f} s")
            if time.perf_counter() - began > PATIENCE:
                break
    return measured


async def _time(
    client: myna.Client, application: Named, round_trip: float, arm: Arm, on_end: Callable[[], None]
) -> Run:
    """One run with a prefix cache of its own, after a short call that is not timed."""
    alone = client.session(arm.name.lower(), cache=ids.new("showcase"))
    async with hosting(client.bus, overlooked, tenant=client.tenant), alone as session:
        await wake(session=session)
        return await _caller(session, round_trip, arm, on_end).run(application.application)


@myna.function
def wake(word: Annotated[str, myna.Output(max_tokens=2, temperature=0.0)]) -> None:
    """{{#user}}Are you there?{{/user}}{{#assistant}}{{word}}{{/assistant}}"""


def _caller(session: myna.Session, round_trip: float, arm: Arm, on_end: Callable[[], None]) -> Caller:
    match arm:
        case Arm.MYNA:
            return MynaCaller(session, round_trip, on_end=on_end)
        case Arm.CACHED:
            return WaitingCaller(session, round_trip, on_end=on_end)
        case Arm.UNCACHED:
            return WaitingCaller(session, round_trip, cache_prefix=False, on_end=on_end)


PANELS = {Arm.MYNA: "Myna", Arm.CACHED: "waiting client, with prefix cache"}


def _pictures(measured: Sequence[Measurement], sizes: Sizes, folder: Path) -> list[Path]:
    """A picture for each round trip: Myna above, the waiting client with prefix cache below."""
    paths: list[Path] = []
    names = list(dict.fromkeys(m.application for m in measured))
    for round_trip in sizes.round_trips:
        shown = f"{1000 * round_trip:.0f} ms"
        columns = [
            [
                Panel(f"{m.application}: {PANELS[arm]}", m.run.calls, m.run.start, m.run.end)
                for arm in PANELS
                for m in [next(m for m in measured if (m.application, m.round_trip, m.arm) == (name, round_trip, arm))]
            ]
            for name in names
        ]
        what = f"simulated round trip of {shown}" if round_trip else "no delay added between client and server"
        paths.append(
            draw(columns, folder / f"myna-timeline-{shown.replace(' ', '')}.png", f"Every call on its engine: {what}")
        )
    return paths


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="myna demo showcase", description="Two applications, with Myna and waiting.")
    parser.add_argument("--quick", action="store_true", help="little text, one pass")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    asyncio.run(main(sizes=QUICK if arguments.quick else Sizes(), folder=arguments.folder))
