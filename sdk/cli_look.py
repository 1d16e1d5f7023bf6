"""`myna top`, `graph` and `trace`: what goes on, in a terminal and in files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from myna.actors import config
from myna.sdk.cli_parts import Told, ask, exported, located, request, terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from myna.actors.bus import Bus
    from myna.actors.messages import Status
    from myna.actors.watch.watcher import Watcher
    from myna.sdk.graphs.model import Graph
    from myna.sdk.recording import Recording

_FIRST = 2.5
"""Seconds that `--once` waits for the engines, which show themselves once a second."""


# --- top --------------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--once", is_flag=True, help="Show it once, and end: for scripts.")
@click.option("--every", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait.")
def top(once: bool, every: float, timeout: float) -> None:
    """Watch the engines, their batches, the queue and the sessions. Ctrl-C ends it."""
    from myna.actors import logs

    logs.calm()
    asyncio.run(_top(located(operator=True), once, every, timeout))


async def _top(settings: config.Settings, once: bool, every: float, seconds: float) -> None:
    from rich.live import Live

    from myna.actors.watch.watcher import Watcher

    bus = await config.connect_bus(settings, "myna-top", patience=seconds)
    try:
        watcher = Watcher(bus)
        await watcher.start()
        if once:
            await _heard(watcher)
            terminal().print(await _seen(bus, settings, watcher, seconds))
            return
        with Live(console=terminal(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(await _seen(bus, settings, watcher, seconds), refresh=True)
                await asyncio.sleep(every)
    finally:
        await bus.close()


async def _heard(watcher: Watcher) -> None:
    """Until every engine has had time to show itself."""
    try:
        async with asyncio.timeout(_FIRST):
            await watcher.heard.wait()
            await asyncio.sleep(1.2)
    except TimeoutError:
        pass


async def _seen(bus: Bus, settings: config.Settings, watcher: Watcher, seconds: float) -> RenderableType:
    from myna.actors import codec
    from myna.actors.messages import Status, StatusRequest
    from myna.actors.subjects import Question
    from myna.sdk.top import screen

    answer = await ask(bus, settings, Question.STATUS, codec.encode(StatusRequest()), seconds)
    status: Status = codec.decode(answer, Status)
    return screen(status, watcher.history.engines(), terminal().width)


# --- graph, trace -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("session")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: SESSION.svg]")
@click.option("--tenant", help="Whose session it is. [default: MYNA_TENANT, else default]")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait.")
def graph(session: str, output: Path | None, tenant: str | None, timeout: float) -> None:
    """Draw the graph of SESSION, or of a recording (a file that `myna export` wrote), as .svg, .dot or .json."""
    from myna.sdk.graphs.formats import FORMATS
    from myna.sdk.graphs.model import Kind, of_recording

    target = output or Path(f"{Path(session).stem}.svg")
    written = FORMATS.get(target.suffix.removeprefix("."))
    if written is None:
        raise Told(f"{target} ends in none of {', '.join(f'.{ending}' for ending in FORMATS)}")
    recorded = _recorded(session)
    found = asyncio.run(_graph(session, tenant, timeout)) if recorded is None else of_recording(recorded)
    _write(target, written(found))
    click.echo(f"{target}: {sum(node.kind is Kind.CALL for node in found.nodes)} calls")


async def _graph(session: str, tenant: str | None, seconds: float) -> Graph:
    """The graph as it stands; of a session that has ended, what is still stored of it."""
    from myna.actors import codec, subjects
    from myna.actors.messages import GraphRequest, GraphView
    from myna.actors.subjects import InvalidName, Question
    from myna.sdk.graphs.model import of_recording, of_view

    settings = located(operator=True)
    try:
        question = GraphRequest(session=subjects.token(session, "session"), tenant=tenant)
    except InvalidName as error:
        raise Told(f"there is no file {session!r}, and as a session's id it can't be: {error}") from None
    view: GraphView = codec.decode(await request(settings, Question.GRAPH, codec.encode(question), seconds), GraphView)
    return of_view(view) if view.found else of_recording(await exported(settings, session, tenant))


@click.command()
@click.argument("session")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: SESSION.trace.json]")
@click.option("--tenant", help="Whose session it is. [default: MYNA_TENANT, else default]")
def trace(session: str, output: Path | None, tenant: str | None) -> None:
    """Write a trace of SESSION, or of a recording (a file that `myna export` wrote), for ui.perfetto.dev or chrome://tracing."""
    from myna.sdk.trace import trace as traced

    recording = _recorded(session) or asyncio.run(exported(located(operator=True), session, tenant))
    target = output or Path(f"{Path(session).stem}.trace.json")
    made = traced(recording)
    _write(target, json.dumps(made))
    left_out = made["otherData"]["calls_without_times"]
    more = f" ({left_out} calls have no times yet, and are left out)" if left_out else ""
    click.echo(f"{target}: open it in https://ui.perfetto.dev{more}")


def _recorded(session: str) -> Recording | None:
    """The recording in a file of that name, if there is one. Raises `RecordingError`."""
    from myna.sdk.recording import Recording

    path = Path(session)
    return Recording.load(path) if path.is_file() else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Told(f"{path} can't be written: {error.strerror}") from None
