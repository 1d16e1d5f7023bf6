"""What the showcase says about its measurements: a table, and sentences that hold for these numbers, the unwelcome ones first.

Law: pure, and nothing is said that the numbers don't show.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.box import SIMPLE
from rich.table import Table

from myna.sdk.examples._callers import Run

NOISE = 0.05
"""Ratios nearer to 1 than this are called equal, and nearer than the same run differs from itself."""
UNKNOWN_NOISE = 0.25
"""The same where each ran only once, so that nobody knows how much a run differs from itself."""


class Arm(StrEnum):
    """Who runs the application."""

    MYNA = "Myna"
    CACHED = "waiting client"
    UNCACHED = "waiting, no prefix cache"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run; `round_trip` in seconds."""

    application: str
    round_trip: float
    arm: Arm
    run: Run


@dataclass(frozen=True, slots=True)
class Line:
    """All runs of one application in one arm: time and tokens are those of the quickest."""

    application: str
    round_trip: float
    arm: Arm
    seconds: float
    runs: int
    ratio: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def lines(measured: Sequence[Measurement]) -> list[Line]:
    """A line for each application, round trip and arm. `ratio` is its time divided by Myna's."""
    groups: dict[tuple[str, float, Arm], list[Run]] = {}
    for m in measured:
        groups.setdefault((m.application, m.round_trip, m.arm), []).append(m.run)
    best = {key: min(runs, key=lambda run: run.seconds) for key, runs in groups.items()}
    order = list(Arm)
    return [
        Line(
            *key,
            best[key].seconds,
            len(groups[key]),
            best[key].seconds / best[key[0], key[1], Arm.MYNA].seconds,
            best[key].usage.prompt_tokens,
            best[key].usage.cached_tokens,
            best[key].usage.output_tokens,
        )
        for key in sorted(groups, key=lambda k: (k[0], k[1], order.index(k[2])))
    ]


def table(measured: Sequence[Measurement]) -> Table:
    """Times and tokens of every arm."""
    every = lines(measured)
    runs = max((line.runs for line in every), default=1)
    shown = Table(
        box=SIMPLE,
        pad_edge=False,
        title="From the first call to the last result"
        + (f", the quickest of {runs} runs" if runs > 1 else "")
        + "; prompt, cached, output in tokens",
        title_justify="left",
    )
    shown.add_column("run by", no_wrap=True)
    for column in ("seconds", "x Myna", "prompt", "cached", "output"):
        shown.add_column(column, justify="right", no_wrap=True)
    before: tuple[str, float] | None = None
    for line in every:
        if (line.application, line.round_trip) != before:
            before = (line.application, line.round_trip)
            shown.add_section()
            shown.add_row(f"[bold]{line.application}, {_trip(line)}[/]")
        shown.add_row(
            f"  {line.arm}",
            f"{line.seconds:.2f}",
            f"{line.ratio:.2f}",
            f"{line.prompt_tokens:,}",
            f"{line.cached_tokens:,}",
            f"{line.output_tokens:,}",
        )
    return shown


def _trip(line: Line) -> str:
    return f"{1000 * line.round_trip:.0f} ms simulated" if line.round_trip else "no delay added"


def remarks(measured: Sequence[Measurement]) -> list[str]:
    """What the table means, first where Myna gains least."""
    every = lines(measured)
    repeated = all(line.runs > 1 for line in every)
    noise = max(NOISE, spread(measured)) if repeated else UNKNOWN_NOISE
    mine = {(line.application, line.round_trip): line for line in every if line.arm is Arm.MYNA}
    others = sorted((line for line in every if line.arm is not Arm.MYNA), key=lambda line: line.ratio)
    verdicts = [_verdict(line, mine[line.application, line.round_trip], noise) for line in others]
    return [*verdicts, _noise(repeated, noise), _texts(measured)]


def spread(measured: Sequence[Measurement]) -> float:
    """By how much runs of the same thing differed: the median, over what ran more than once, of longest / shortest - 1."""
    groups: dict[tuple[str, float, Arm], list[float]] = {}
    for m in measured:
        groups.setdefault((m.application, m.round_trip, m.arm), []).append(m.run.seconds)
    return statistics.median([max(s) / min(s) - 1 for s in groups.values() if len(s) > 1] or [0.0])


def _noise(repeated: bool, noise: float) -> str:
    if repeated:
        return f"Runs of the same thing differed by {noise:.0%} or less as often as by more: nothing below that is called faster."
    return f"Each ran once, as a pass takes long here: nothing below {noise:.0%} is called faster, and more may still be chance."


def _verdict(line: Line, mine: Line, noise: float) -> str:
    if line.ratio < 1 - noise:
        verdict = f"Myna is slower, {1 / line.ratio:.2f} times"
    elif line.ratio <= 1 + noise:
        verdict = f"Myna is no faster ({line.ratio:.2f} times, which is within the noise)"
    else:
        verdict = f"Myna is {line.ratio:.2f} times as fast"
    more = line.output_tokens / max(mine.output_tokens, 1) - 1
    unequal = f" (it wrote {abs(more):.0%} {'more' if more > 0 else 'fewer'} tokens)" if abs(more) > NOISE else ""
    return f"{line.application}, {_trip(line)}, {_against(line.arm)}{unequal}: {verdict}."


def _against(arm: Arm) -> str:
    return "against a waiting client " + ("without prefix cache" if arm is Arm.UNCACHED else "with prefix cache")


def _texts(measured: Sequence[Measurement]) -> str:
    """Whether all runs wrote the same."""
    first: dict[str, tuple[str, ...]] = {}
    same = sum(first.setdefault(m.application, m.run.texts) == m.run.texts for m in measured)
    if same == len(measured):
        return f"All {same} runs wrote the same texts."
    return (
        f"{same} of {len(measured)} runs wrote the same texts as the first; the others differ, because sums of rounded numbers "
        "depend on what is computed together, and a near tie between two words can then go the other way."
    )
