"""What can happen to a worker, and what its core asks for. `now` is monotonic seconds of the worker's own clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from myna.actors.messages import (
    Anticipate,
    Chunk,
    Event,
    Failure,
    Outcome,
    Retain,
    SchedulerMessage,
    Source,
    Value,
    VarId,
)
from myna.actors.worker.backend import Hold, Job, Report, RunKey

# --- events ---


@dataclass(frozen=True, slots=True)
class Asked:
    """A scheduler asks to run a call, to stop an attempt, to keep a prompt or not, to take no more, or says who leads."""

    message: SchedulerMessage
    now: float


@dataclass(frozen=True, slots=True)
class Read:
    """The values of an attempt's inputs, and for a resumed attempt what its outputs already have, or why they can't be had."""

    key: RunKey
    inputs: Mapping[VarId, Value]
    chunks: Mapping[VarId, tuple[Chunk, ...]]
    outcomes: Mapping[VarId, Outcome]
    failure: Failure | None
    now: float
    taken: tuple[Value, ...] = ()
    """What the source of the attempt has, in the order of its variables."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The inputs of a prompt that is to be kept, or those that a call has which is to be begun ahead, are there; None if they
    can't be had."""

    order: Retain | Anticipate
    inputs: Mapping[VarId, Value] | None


@dataclass(frozen=True, slots=True)
class Reported:
    """The backend has made something."""

    report: Report
    now: float


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk (of number n) or, with n None, the value of an output is stored."""

    key: RunKey
    variable: VarId
    n: int | None
    now: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The stream has another attempt's chunk n or, with n None, another outcome."""

    key: RunKey
    variable: VarId
    n: int | None
    now: float


@dataclass(frozen=True, slots=True)
class NotStored:
    """A chunk or value could not be stored: too large, or the stream was gone for too long."""

    key: RunKey
    variable: VarId
    failure: Failure
    now: float


@dataclass(frozen=True, slots=True)
class Due:
    """The pause between two chunks of an output is over."""

    key: RunKey
    variable: VarId
    now: float


@dataclass(frozen=True, slots=True)
class Slept:
    """This worker slept, or was cut off, for so long that its calls are others' by now."""

    now: float


@dataclass(frozen=True, slots=True)
class Draining:
    """Take no new calls."""

    now: float


WorkerEvent = Asked | Read | Fetched | Reported | Stored | Refused | NotStored | Due | Slept | Draining

# --- commands ---


@dataclass(frozen=True, slots=True)
class ReadInputs:
    """Read the values of `inputs`; with `outputs`, also what those have already; with `source`, what is to be copied."""

    key: RunKey
    inputs: tuple[VarId, ...]
    outputs: tuple[VarId, ...]
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read the inputs of a prompt that is to be kept, or those that a call has which is to be begun ahead."""

    order: Retain | Anticipate


@dataclass(frozen=True, slots=True)
class Hoard:
    """Have the backend keep a prompt."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class Forgo:
    """Have the backend keep a prompt no longer."""

    hold: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Give a job to the backend."""

    job: Job


@dataclass(frozen=True, slots=True)
class Abandon:
    """Take an attempt from the backend."""

    key: RunKey


@dataclass(frozen=True, slots=True)
class PutChunk:
    """Store chunk n of an output."""

    key: RunKey
    variable: VarId
    n: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class PutValue:
    """Store the value of an output. `streamed`: bytes that its chunks take, about."""

    key: RunKey
    variable: VarId
    value: Value
    streamed: int = 0


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the scheduler how an attempt fares."""

    event: Event


@dataclass(frozen=True, slots=True)
class Present:
    """Announce this worker."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Send `Due` at `at`."""

    key: RunKey
    variable: VarId
    at: float


@dataclass(frozen=True, slots=True)
class Depart:
    """Draining is over: nothing is held any more."""


WorkerCommand = (
    ReadInputs | Fetch | Hoard | Forgo | Begin | Abandon | PutChunk | PutValue | Tell | Present | Wake | Depart
)
