from __future__ import annotations

from pathlib import Path

import pytest

from myna.actors.messages import (
    PROTOCOL,
    Input,
    Message,
    ModelCall,
    Open,
    Output,
    SessionId,
    Submit,
    Tenant,
    Text,
    Usage,
    Value,
    Want,
)
from myna.actors.scheduler.policies import Policies
from myna.sdk.recording import Ended, Recording, Said
from tests.benchmarks.simulation.cluster import Cluster
from tests.benchmarks.simulation.engine import load
from tests.benchmarks.simulation.recorded import read, record, save, workload
from tests.benchmarks.simulation.workloads import alone, jobs

SECRET = "what nobody else may read, of some length"


def call(name: str, *inputs: str, outputs: int = 1) -> ModelCall:
    made = tuple(f"{name}{n}" if n else name for n in range(outputs))
    reads = tuple(Input(variables=(v,)) for v in inputs)
    return ModelCall(
        id=f"call-{name}",
        function="f",
        messages=(Message(segments=(Text(text=SECRET), *reads, Output(variables=made))),),
    )


def recording() -> Recording:
    """Two turns, six seconds apart; the second reads the first's result."""
    entries = [
        (100.0, Open(protocol=PROTOCOL)),
        (101.0, Submit(calls=(call("a", "given"), call("b", "a", outputs=2)))),
        (101.0, Want(variables=("b",))),
        (111.0, Submit(calls=(call("c", "b"), call("never", "a")))),
    ]
    ends = {"given": 101.0, "a": 103.0, "b": 104.0, "b1": 105.0, "c": 113.0}
    values = {name: Ended(at, Value(text="x" * 400, usage=Usage(output_tokens=70))) for name, at in ends.items()}
    log = tuple(Said(at, entry) for at, entry in entries)
    return Recording(Tenant("t"), SessionId("s"), 120.0, log, dict(values))


def test_a_recorded_session_becomes_a_job_of_its_turns_with_true_sizes_and_pauses() -> None:
    job = record(recording(), since=100.0)
    assert job is not None
    assert job.arrival == 1.0
    assert [len(stage.calls) for stage in job.stages] == [2, 1]
    assert [stage.think for stage in job.stages] == [0.0, 6.0]
    assert job.stages[0].wants == ("b", "b1")
    assert job.given == {"given": 70}
    assert job.outputs == {"a": 70, "b": 70, "b1": 70, "c": 70}


def test_a_workload_file_keeps_no_text_and_runs_as_it_was_saved(tmp_path: Path) -> None:
    job = record(recording(), since=100.0)
    assert job is not None
    file = tmp_path / "workload.json"
    save(file, [job])
    assert SECRET not in file.read_text()
    assert read(file) == [job]
    model = load()
    turns = Cluster(model, 1, Policies(), check=True).run(jobs(workload(file), model, 1, seed=0))
    assert len(turns) == 2
    assert all(t.ended is not None and t.ended - t.asked < 10 * alone(job, model) for t in turns)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "workload.json"
    file.write_text('{"version": 9, "jobs": []}')
    with pytest.raises(ValueError, match="version 9"):
        read(file)
