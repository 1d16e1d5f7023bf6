"""`myna top` as a picture in text: engines and their batches, the queue, the sessions that go on.

Law: pure. What is shown comes in: a scheduler's status and what engines have shown of themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from myna.actors.messages import Phase, SessionStatus, Status, WorkerStatus
from myna.actors.watch.history import EngineView

RATE = 5.0
"""Seconds over which rates, in tokens a second, are taken."""
CURVE = 30.0
"""Seconds of a batch's curve."""
MOST_SESSIONS = 20
_BARS = " ▁▂▃▄▅▆▇█"
_POINTS = 12
_WIDE = 100
_WIDTH = 20


def screen(status: Status, engines: Sequence[EngineView], width: int = 120) -> RenderableType:
    """All of it, on `width` characters: where these are few, what matters least is left out."""
    running = sum(w.running for w in status.workers)
    drawn = sum(rates(engine)[0] for engine in engines)
    head = Text.assemble(
        ("myna", "bold"),
        f"  {status.queued} ready, {running} running, {drawn:.0f} tokens/s; scheduler {status.scheduler} leads",
    )
    wide = width >= _WIDE
    return Group(head, _engines(status, engines, wide=wide), _sessions(status.sessions, wide=wide))


def rates(engine: EngineView) -> tuple[float, float]:
    """Tokens drawn, and prompt tokens computed, a second. An engine that tells no steps is judged by the calls that ended."""
    if engine.steps:
        late = [s for s in engine.steps if s.at > engine.at - RATE]
        return sum(s.drawn for s in late) / RATE, sum(s.prefilled for s in late) / RATE
    ended = [s.usage for s in engine.spans if s.ended > engine.at - RATE]
    computed = sum(u.prompt_tokens - u.cached_tokens for u in ended)
    return sum(u.output_tokens for u in ended) / RATE, computed / RATE


def curve(engine: EngineView) -> str:
    """How full the batch was over the last `CURVE` seconds, as a row of small bars."""
    points = [0] * _POINTS
    for step in engine.steps:
        for at in (step.at, step.at + step.seconds):
            place = int((at - engine.at + CURVE) / CURVE * _POINTS)
            if 0 <= place < _POINTS:
                points[place] = max(points[place], step.running)
    most = max(points)
    return "".join(_BARS[-(-p * (len(_BARS) - 1) // most)] if most else " " for p in points)


def _engines(status: Status, engines: Sequence[EngineView], *, wide: bool) -> RenderableType:
    shown = {engine.worker: engine for engine in engines}
    figures = ("batch", f"last {CURVE:.0f} s", "decode", "prefill", "KV", *(("saved",) if wide else ()))
    table = _table("worker", *(("serves",) if wide else ()), "calls", *figures, right=figures)
    for worker in status.workers:
        serves = (Text(", ".join(worker.serves)[:40]),) if wide else ()
        told = _figures(shown.get(worker.worker))[: len(figures)]
        table.add_row(_name(worker), *serves, f"{worker.running}/{worker.capacity}", *told)
    return table if status.workers else Text("no workers", style="dim")


def _name(worker: WorkerStatus) -> Text:
    return Text.assemble(worker.worker[:16], (" draining" if worker.draining else "", "yellow"))


def _figures(engine: EngineView | None) -> tuple[str, ...]:
    if engine is None:
        return ("", "", "", "", "", "")
    batch = sum(call.phase in (Phase.PREFILL, Phase.DECODE) for call in engine.calls)
    drawn, prefilled = rates(engine)
    load = engine.load
    pages = load.get("pages", 0.0)
    used = (pages - load.get("free_pages", 0.0) - load.get("evictable_pages", 0.0)) / pages if pages else None
    saved = f"{load['hit_tokens']:,.0f}" if "hit_tokens" in load else ""
    memory = "" if used is None else f"{used:.0%}"
    return str(batch), curve(engine), f"{drawn:,.0f}", f"{prefilled:,.0f}", memory, saved


def _sessions(sessions: Sequence[SessionStatus], *, wide: bool) -> RenderableType:
    if not sessions:
        return Text("no open sessions", style="dim")
    counted = ("waiting", "ready", "running", "done")
    table = _table("session", *(("tenant",) if wide else ()), "progress", *counted, right=counted)
    going = sorted(sessions, key=lambda s: s.done - s.calls)
    for s in going[:MOST_SESSIONS]:
        counts = (s.waiting, s.ready, s.running, s.done)
        tenant = (s.tenant,) if wide else ()
        table.add_row(Text((s.name or s.session)[:24]), *tenant, _progress(s), *map(str, counts))
    more = len(sessions) - MOST_SESSIONS
    return Group(table, Text(f"and {more} more", style="dim")) if more > 0 else table


def _progress(session: SessionStatus) -> Text:
    calls = max(session.calls, 1)
    ended = _WIDTH * session.done // calls
    failed = min(-(-_WIDTH * session.failed // calls), ended)
    running = min(-(-_WIDTH * session.running // calls), _WIDTH - ended)
    parts = (("█", ended - failed, "green"), ("█", failed, "red"), ("▓", running, "blue"))
    rest = ("░" * (_WIDTH - ended - running), "dim")
    return Text.assemble(*((mark * count, style) for mark, count, style in parts), rest)


def _table(*columns: str, right: Sequence[str]) -> Table:
    table: Any = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    made: Table = table
    return made
