"""A recording as a trace for Perfetto (ui.perfetto.dev) and Chrome: a track for each engine, a slice for each call and its
phases, and arrows from who wrote a variable to who read it.

Law: pure, and true to what workers measured (`messages.Timing`): a call without a timing is counted, not drawn. Times are
microseconds from the first event on; slices of one track are nested or apart, never crossed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from myna.actors.messages import Call, Submit, Usage
from myna.actors.program import inputs_of, outputs_of
from myna.sdk.recording import Recording
from myna.sdk.timeline import Row, assign_lanes, collect

_SESSION = 1
"""The process whose track shows what the application did; engines come after it."""


@dataclass(frozen=True, slots=True)
class _Track:
    process: int
    thread: int


def trace(recording: Recording) -> dict[str, Any]:
    """The trace as an object for JSON, in the Trace Event Format."""
    rows = {row.call.label: row for row in _rows(recording)}
    workers = {w: n for n, w in enumerate(sorted({r.worker for r in rows.values()}), start=_SESSION + 1)}
    tracks = {id_: _Track(workers[row.worker], row.lane + 1) for id_, row in rows.items()}
    start = min(
        [said.at for said in recording.log] + [r.call.received for r in rows.values()], default=recording.exported
    )
    events = [
        *_names(workers, tracks.values()),
        *_said(recording, start),
        *(e for id_, row in rows.items() for e in _call(recording, id_, row, tracks[id_], start)),
        *_arrows(recording, rows, tracks, start),
    ]
    left_out = len(recording.calls) - len(rows)
    told = {"session": recording.session, "tenant": recording.tenant, "started": start, "calls_without_times": left_out}
    return {"displayTimeUnit": "ms", "otherData": told, "traceEvents": events}


def _rows(recording: Recording) -> tuple[Row, ...]:
    return assign_lanes(collect((v.call, v) for v in recording.values.values() if v.call in recording.calls))


def _names(workers: Mapping[str, int], tracks: Iterable[_Track]) -> Iterator[dict[str, Any]]:
    yield _meta("process_name", _SESSION, 0, name="application")
    for worker, process in workers.items():
        yield _meta("process_name", process, 0, name=worker)
        yield _meta("process_sort_index", process, 0, sort_index=process)
    for track in sorted(set(tracks), key=lambda t: (t.process, t.thread)):
        yield _meta("thread_name", track.process, track.thread, name=f"lane {track.thread}")


def _meta(what: str, process: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": arguments}


def _said(recording: Recording, start: float) -> Iterator[dict[str, Any]]:
    """The log's entries, as moments."""
    for said in recording.log:
        entry = said.entry
        name, arguments = type(entry).__name__.lower(), {}
        if isinstance(entry, Submit):
            arguments = {"calls": [call.id for call in entry.calls][:20]}
            name = f"submit {', '.join(call.function or call.id for call in entry.calls[:3])}"
        at = {"ts": _micro(said.at - start), "pid": _SESSION, "tid": 1}
        yield {"ph": "i", "s": "t", "cat": "log", "name": name, **at, "args": arguments}


def _call(recording: Recording, id_: str, row: Row, track: _Track, start: float) -> Iterator[dict[str, Any]]:
    call, times = recording.calls[id_], row.call
    used = _used(recording, call)
    arguments = {
        "call": id_,
        "inputs": list(dict.fromkeys(inputs_of(call)))[:20],
        "outputs": list(outputs_of(call))[:20],
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "output_tokens": used.output_tokens,
    }
    yield _slice(call.function or id_, "call", times.received, times.ended, track, start, arguments)
    phases = [("reads its inputs", times.received, times.began)]
    if times.native:
        phases.append(("runs", times.began, times.ended))
    else:
        phases += [("queue and prefill", times.began, times.first), ("decode", times.first, times.ended)]
    for name, begin, end in phases:
        if end > begin:
            yield _slice(name, "phase", begin, end, track, start, {})


def _used(recording: Recording, call: Call) -> Usage:
    values = recording.values
    return sum((values[o].usage for o in outputs_of(call) if o in values), Usage())


def _slice(
    name: str, kind: str, begin: float, end: float, track: _Track, start: float, arguments: dict[str, Any]
) -> dict[str, Any]:
    ts = _micro(begin - start)
    where = {"ts": ts, "dur": max(_micro(end - start) - ts, 0), "pid": track.process, "tid": track.thread}
    return {"ph": "X", "cat": kind, "name": name, **where, "args": arguments}


def _arrows(
    recording: Recording, rows: Mapping[str, Row], tracks: Mapping[str, _Track], start: float
) -> Iterator[dict[str, Any]]:
    number = 0
    for id_, row in rows.items():
        for variable in dict.fromkeys(inputs_of(recording.calls[id_])):
            maker = recording.producers.get(variable)
            if maker is None or maker not in rows or maker == id_:
                continue
            number += 1
            same = {"cat": "variable", "name": variable, "id": number}
            made, read = rows[maker].call.ended, row.call.received
            yield {"ph": "s", **same, **_at(tracks[maker], min(made, read) - start)}
            yield {"ph": "f", "bp": "e", **same, **_at(tracks[id_], read - start)}


def _at(track: _Track, seconds: float) -> dict[str, int]:
    return {"ts": _micro(seconds), "pid": track.process, "tid": track.thread}


def _micro(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)
