"""Workloads from sessions that really ran: recordings (`myna export`) become jobs, and jobs a JSON file without anybody's text.

    python -m tests.benchmarks.simulation.recorded WORKLOAD.json RECORDING...

Law: nothing readable is kept. A text becomes filler of the same length, the same for the same text, so that what is shared stays
shared. Ids stay: they say nothing. Sizes are in tokens, times in seconds since the first session was opened.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from myna.actors.messages import ModelCall, Objective, Segment, Submit, Text, Value, Want
from myna.actors.program import inputs_of, outputs_of
from myna.actors.scheduler.policies.lengths import CHARACTERS
from myna.sdk.recording import Recording
from tests.benchmarks.simulation.workloads import Job, Stage, Workload, filler

VERSION = 1


class _Stage(msgspec.Struct, frozen=True):
    calls: tuple[ModelCall, ...]
    wants: tuple[str, ...]
    think: float


class _Job(msgspec.Struct, frozen=True):
    kind: str
    tenant: str
    arrival: float
    stages: tuple[_Stage, ...]
    given: dict[str, int]
    outputs: dict[str, int]
    objective: Objective | None = None


class _File(msgspec.Struct, frozen=True):
    version: int
    jobs: tuple[_Job, ...]


def record(session: Recording, since: float = 0.0) -> Job | None:
    """The job that a session was: one stage for each time that it submitted something after what it had waited for was there.
    `since`: the moment from which arrivals count. Calls of agents, which no engine runs, and calls whose inputs or outputs have
    no value, are left out; None if nothing is left."""
    stages: list[Stage] = []
    given: dict[str, int] = {}
    outputs: dict[str, int] = {}
    wanted: dict[str, Objective | None] = {}
    arrival: float | None = None
    tokens = {name: _tokens(value) for name, value in session.values.items()}
    for said in session.log:
        at, entry = said.at, said.entry
        if isinstance(entry, Want):
            wanted |= dict.fromkeys(entry.variables, entry.objective)
        if not isinstance(entry, Submit):
            continue
        calls = [
            _without_text(call)
            for call in entry.calls
            if isinstance(call, ModelCall) and tokens.keys() >= {*inputs_of(call), *outputs_of(call)}
        ]
        if not calls:
            continue
        arrival = at if arrival is None else arrival
        before = [session.outcomes[v].at for v in outputs]
        outputs |= {str(v): tokens[v] for c in calls for v in outputs_of(c)}
        given |= {str(v): tokens[v] for c in calls for v in inputs_of(c) if v not in outputs}
        if stages and (not before or at < max(before)):  # nobody waited for what was asked for before
            stages[-1] = Stage([*stages[-1].calls, *calls], (), stages[-1].think)
        else:
            stages.append(Stage(calls, (), at - max(before) if before else 0.0))
    if arrival is None:
        return None
    for stage in stages:
        stage.wants = _results(stage.calls)
    objective = next((o for o in wanted.values() if o is not None), None)
    return Job(f"recorded {session.session}", session.tenant, arrival - since, stages, given, outputs, objective)


def _tokens(value: Value) -> int:
    """Tokens of a value: as its engine has counted, where it did and there is one output alone."""
    return max(1, value.usage.output_tokens or round(len(value.text) / CHARACTERS))


def _results(calls: Sequence[ModelCall]) -> tuple[str, ...]:
    """The outputs that none of these calls reads."""
    read = {v for c in calls for v in inputs_of(c)}
    made = [v for c in calls for v in outputs_of(c)]
    return tuple(v for v in made if v not in read)


def _without_text(call: ModelCall) -> ModelCall:
    def blank(segment: Segment) -> Segment:
        if not isinstance(segment, Text):
            return segment
        digest = hashlib.sha256(segment.text.encode()).hexdigest()[:16]
        return Text(text=filler(digest, len(segment.text)))

    messages = tuple(structs.replace(m, segments=tuple(blank(s) for s in m.segments)) for m in call.messages)
    return structs.replace(call, messages=messages, models=(), tools=(), objective=None)


def save(path: Path, jobs: Iterable[Job]) -> None:
    """Write jobs as JSON."""
    made = tuple(
        _Job(
            job.kind,
            job.tenant,
            job.arrival,
            tuple(_Stage(tuple(s.calls), s.wants, s.think) for s in job.stages),
            job.given,
            job.outputs,
            job.objective,
        )
        for job in jobs
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(_File(VERSION, made)), indent=1))


def read(path: Path) -> list[Job]:
    """The jobs of a file, in order of arrival. Raises `msgspec.ValidationError` or `ValueError` where it is none of ours."""
    file = msgspec.json.decode(path.read_bytes(), type=_File)
    if file.version != VERSION:
        raise ValueError(f"{path} has version {file.version}, not {VERSION}")
    made = [
        Job(
            j.kind,
            j.tenant,
            j.arrival,
            [Stage(list(s.calls), s.wants, s.think) for s in j.stages],
            j.given,
            j.outputs,
            j.objective,
        )
        for j in file.jobs
    ]
    return sorted(made, key=lambda job: job.arrival)


def workload(path: Path) -> Workload:
    """A recorded file as a workload: the same jobs in every run."""
    return Workload(f"recorded: {path.stem}", (), 0.0, 0, recorded=tuple(read(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", type=Path)
    parser.add_argument("recordings", type=Path, nargs="+")
    arguments = parser.parse_args()
    sessions = [Recording.load(path) for path in arguments.recordings]
    since = min(said.at for session in sessions for said in session.log)
    save(arguments.workload, [job for session in sessions if (job := record(session, since)) is not None])


if __name__ == "__main__":
    main()
