"""Timelines: when and where each call of an application ran, read off its values and drawn as a picture.

Law: a timeline shows what the workers measured (`messages.Timing`), nothing else; a value without a timing is counted, not drawn.
Lanes are chosen here: they show how many calls a worker had at once, not places inside it.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myna.actors.messages import Value
from myna.sdk.errors import NotReady

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class CallTimes:
    """One call on its worker, in seconds since the epoch by the worker's clock: received, begun (its inputs were read), first and
    last piece of a result. `native`: a function ran, not a model."""

    label: str
    worker: str
    received: float
    began: float
    first: float
    ended: float
    native: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A call's place in a picture: lanes are numbered from 0 for each worker."""

    worker: str
    lane: int
    call: CallTimes


@dataclass(frozen=True, slots=True)
class Panel:
    """One run of an application. `start` and `end` are when its client began to submit and had the last result that it reads,
    in seconds since the epoch."""

    title: str
    calls: tuple[CallTimes, ...]
    start: float
    end: float


def collect(values: Iterable[tuple[str, Value]]) -> tuple[CallTimes, ...]:
    """The calls that made `values`, each under a label; the outputs of one call are one entry. In the order of their start."""
    calls: dict[tuple[str, int], CallTimes] = {}
    for label, value in values:
        if (times := value.timing) is None:
            continue
        call = CallTimes(
            label, times.worker, times.received, times.began, times.first, times.ended, native=not value.model
        )
        key = (value.call, value.attempt)
        calls[key] = _join(calls[key], call) if key in calls else call
    return tuple(sorted(calls.values(), key=lambda c: (c.received, c.ended)))


def _join(a: CallTimes, b: CallTimes) -> CallTimes:
    """Two outputs of one call."""
    return CallTimes(
        a.label,
        a.worker,
        min(a.received, b.received),
        min(a.began, b.began),
        min(a.first, b.first),
        max(a.ended, b.ended),
        a.native,
    )


def assign_lanes(calls: Iterable[CallTimes]) -> tuple[Row, ...]:
    """The lowest free lane of its worker for each call, from its receipt to its end: as few lanes as the most calls at once."""
    rows: list[Row] = []
    ends: dict[str, list[tuple[float, int]]] = {}
    free: dict[str, list[int]] = {}
    used: dict[str, int] = {}
    for call in sorted(calls, key=lambda c: (c.received, c.ended)):
        busy, idle = ends.setdefault(call.worker, []), free.setdefault(call.worker, [])
        while busy and busy[0][0] <= call.received:
            heapq.heappush(idle, heapq.heappop(busy)[1])
        if idle:
            lane = heapq.heappop(idle)
        else:
            lane = used.get(call.worker, 0)
            used[call.worker] = lane + 1
        heapq.heappush(busy, (call.ended, lane))
        rows.append(Row(call.worker, lane, call))
    return tuple(rows)


# --- The picture ------------------------------------------------------------------------------------------------------

# The Okabe-Ito palette: told apart with every kind of colour vision, and in grey.
_QUEUE, _PREFILL, _DECODE, _NATIVE, _END = "#BBBBBB", "#E69F00", "#56B4E9", "#009E73", "#D55E00"
_PHASES = {
    "waits at the engine's door: reads its inputs": _QUEUE,
    "waits for its turn, then prefill, up to the first token": _PREFILL,
    "decode": _DECODE,
    "a native function": _NATIVE,
}
_ROW_INCHES = 0.26
_LABEL_SHARE = 0.011
"""Share of the axis' width that a letter of a label takes; a label that doesn't fit its bar is left out."""


def draw(columns: Sequence[Sequence[Panel]], path: Path, title: str = "") -> Path:
    """Draw runs as a PNG at `path`: a column holds the runs of one application below each other, on one time axis. Every bar is a
    call, every row a lane of a worker. Raises `NotReady` if matplotlib is missing."""
    figure_of = _figure_class()
    depth = max(len(column) for column in columns)
    lanes = [max(_height(column[i]) if i < len(column) else 1 for column in columns) for i in range(depth)]
    size = (7.5 * len(columns), 1.6 + sum(lanes) * _ROW_INCHES + 0.75 * depth)
    figure = figure_of(figsize=size, layout="constrained", dpi=130)
    axes = figure.subplots(depth, len(columns), squeeze=False, sharex="col", height_ratios=lanes)
    for c, column in enumerate(columns):
        for r, panel in enumerate(column):
            _draw_panel(axes[r][c], panel, max(p.end - p.start for p in column), lanes[r])
        axes[len(column) - 1][c].set_xlabel("seconds since the application began")
    _legend(figure, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _figure_class() -> Any:
    """Figures without a display and without global state. Raises `NotReady`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotReady("pictures need matplotlib: pip install 'myna[local]'") from error
    return Figure


def _height(panel: Panel) -> int:
    return max(1, len({(row.worker, row.lane) for row in assign_lanes(panel.calls)}))


def _draw_panel(axes: Axes, panel: Panel, width: float, lanes: int) -> None:
    rows = assign_lanes(panel.calls)
    places = _places(rows)
    for row in rows:
        _draw_call(axes, row.call, places[row.worker, row.lane], panel.start, width)
    took = panel.end - panel.start
    axes.axvline(took, color=_END, linewidth=1.6)
    axes.annotate(
        f"{took:.2f} s", (took, 1), xycoords=("data", "axes fraction"), xytext=(-3, 3), textcoords="offset points",
        ha="right", fontsize=9, color=_END, fontweight="bold",
    )  # fmt: skip
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_ylim(lanes - 0.4, -0.6)
    axes.set_xlim(0, width * 1.02)
    names = [f"{_name(worker)}  lane {lane + 1}" for worker, lane in places]
    axes.set_yticks(list(places.values()), names, fontsize=7)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _places(rows: Sequence[Row]) -> Mapping[tuple[str, int], int]:
    """Height of each lane; engines come before agents, which have their names after them."""
    native = {row.worker for row in rows if row.call.native}
    lanes = sorted({(row.worker, row.lane) for row in rows}, key=lambda lane: (lane[0] in native, lane))
    return {lane: place for place, lane in enumerate(lanes)}


def _name(worker: str) -> str:
    """A worker's name without the random part that makes it unique."""
    return re.sub(r"-[0-9a-f]{16}$", "", worker)


def _draw_call(axes: Axes, call: CallTimes, place: int, start: float, width: float) -> None:
    phases = [(call.received, call.began, _QUEUE)]
    if call.native:
        phases.append((call.began, call.ended, _NATIVE))
    else:
        phases += [(call.began, call.first, _PREFILL), (call.first, call.ended, _DECODE)]
    least = width * 0.004  # what took no time at all is still seen
    for begin, end, colour in phases:
        if end > begin or colour is _NATIVE:
            axes.barh(place, max(end - begin, least), left=begin - start, height=0.78, color=colour, linewidth=0)
    if not call.native:
        axes.barh(
            place, call.ended - call.received, left=call.received - start, height=0.78, fill=False,
            edgecolor="#555555", linewidth=0.5,
        )  # fmt: skip
    if len(call.label) * _LABEL_SHARE * width < call.ended - call.received:
        middle = (call.received + call.ended) / 2 - start
        axes.text(middle, place, call.label, ha="center", va="center", fontsize=7, clip_on=True)


def _legend(figure: Figure, title: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=colour, edgecolor="#555555", linewidth=0.5, label=label) for label, colour in _PHASES.items()
    ]
    handles.append(Line2D([], [], color=_END, linewidth=1.6, label="the client has its last result"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
