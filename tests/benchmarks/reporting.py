"""How a benchmark reports: rows of one form, a table for people, JSON for the record."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """One figure: the median and the 10th and 90th percentile of its runs. `target` is the issue's. `note`: what a reader should
    know of it, such as why it is worse than another's."""

    case: str
    metric: str
    unit: str
    better: str
    value: float
    spread: tuple[float, float] | None = None
    runs: int = 1
    baselines: dict[str, float] = field(default_factory=dict)
    same_run: bool = True
    floor: float | None = None
    target: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


def row(case: str, metric: str, unit: str, better: str, values: list[float], target: float | None = None) -> Row:
    """A row from its runs: their median, and the spread from the tenth to the ninetieth percentile."""
    ordered = sorted(values)
    last = len(ordered) - 1
    spread = (ordered[round(0.1 * last)], ordered[round(0.9 * last)])
    return Row(case, metric, unit, better, statistics.median(ordered), spread, len(values), target=target)


def show(rows: list[Row]) -> None:
    """The table."""
    for r in rows:
        target = "" if r.target is None else f"{'<=' if r.better == 'lower' else '>='} {r.target:g}"
        mark = {True: "met", False: "MISSED", None: ""}[r.met]
        others = "  ".join(f"{name} {value:.4g}" for name, value in r.baselines.items())
        print(f"{r.case[:44]:44} {r.metric[:30]:30} {r.value:12.4g} {r.unit:8} {target:>10} {mark:7} {others}")
        if r.note:
            print(f"    {r.note}")


def write(path: Path, name: str, rows: list[Row], packages: tuple[str, ...] = (), device: str | None = None) -> None:
    """The record. `device`: what computed, if not the CPU. A copy without its repository gets MYNA_COMMIT and MYNA_DIRTY."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    record = {
        "benchmark": name,
        "device": device or f"cpu{os.cpu_count()}",
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_source(),
        "versions": {"python": platform.python_version()} | {p: v for p in packages if (v := _version(p))},
        "rows": [{name: value for name, value in asdict(r).items() if name != "note" or value} for r in rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def _source() -> dict[str, str | bool]:
    if commit := os.environ.get("MYNA_COMMIT"):
        return {"commit": commit, "dirty": os.environ.get("MYNA_DIRTY", "0") != "0"}
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
