"""What does a worker's work: the seam between the worker actor and an engine process, a no-op engine, or agent functions.

A backend never blocks the event loop. It tells what it makes through the `report` given to `start`, in order, one report at a
time for one output: any number of `Produced`, then one `OutputEnded`; at last one `JobEnded`. Or `JobFailed` or `JobRefused`, at
any moment. And `Offered`, when what it can do has changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from myna.actors.messages import (
    Call,
    CallId,
    Failure,
    FinishReason,
    ModelCall,
    Phase,
    PrefixSight,
    SessionId,
    StepSight,
    Tenant,
    TokenLogprob,
    Usage,
    Value,
    VarId,
    WorkerKind,
)

RunKey = tuple[Tenant, SessionId, CallId, int]
"""One attempt of one call; the last member is the attempt."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a backend can do: see `messages.Announce`."""

    kind: WorkerKind
    serves: tuple[str, ...]
    capacity: int
    tokens: int | None = None
    context_length: int | None = None
    resumable: bool = False
    tenant: Tenant | None = None
    paused: str = ""
    named_only: bool = False
    tokenizer: str = ""
    """The digest of that by which it knows tokens: it resumes from no others. Empty where it makes none."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What earlier attempts have published of an output: go on after it. `ended`: there is nothing left to generate."""

    text: str
    tokens: tuple[int, ...]
    ended: bool
    tokenizer: str = ""
    """Of the tokens; what has ended may be of another than the backend's."""


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt, with the values of its inputs and what is already published of its outputs."""

    key: RunKey
    call: Call
    inputs: Mapping[VarId, Value]
    resumed: Mapping[VarId, Resumed] = field(default_factory=dict)
    cache: str = ""
    """The prefix cache that it shares: its tenant's own, where this is empty."""
    order: float = 0.0
    """Its place among calls of the same priority, the least first."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A prompt that calls to come begin with: `call`, cut where it ends, with its inputs' values. `distance`: seconds until it is
    thought to be used. `made_here`: an input whose token ids this backend has made itself."""

    id: str
    tenant: Tenant
    call: ModelCall
    inputs: Mapping[VarId, Value]
    distance: float
    cache: str = ""
    made_here: VarId | None = None


@dataclass(frozen=True, slots=True)
class Produced:
    """More of an output: text that readers may see, and the tokens generated so far that readers have not been told of."""

    key: RunKey
    variable: VarId
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputEnded:
    """An output is whole. `json` is its parsed form, where it has one; `model` and `tokenizer` describe the tokens."""

    key: RunKey
    variable: VarId
    finish: FinishReason
    usage: Usage = Usage()
    json: Any = None
    model: str = ""
    tokenizer: str = ""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """Nothing more comes of this attempt."""

    key: RunKey


@dataclass(frozen=True, slots=True)
class JobFailed:
    """This attempt failed; the scheduler decides what follows. `final`: this call is not to be tried again, even if a new one
    may be."""

    key: RunKey
    failure: Failure
    final: bool = False


@dataclass(frozen=True, slots=True)
class JobRefused:
    """This attempt could not begin here and now, through no fault of its own: it goes elsewhere, or waits for another `Offer`."""

    key: RunKey
    failure: Failure


@dataclass(frozen=True, slots=True)
class Offered:
    """What the backend can do has changed."""

    offer: Offer


Report = Produced | OutputEnded | JobEnded | JobFailed | JobRefused
Reporter = Callable[[Report | Offered], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is in the backend; the figures are those of `messages.CallSight`."""

    phase: Phase
    tokens: int = 0
    computed: int = 0
    cached: int = 0
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class Insight:
    """What a backend shows of itself. `steps` are told by the wall clock."""

    progress: Mapping[RunKey, Progress] = field(default_factory=dict)
    steps: tuple[StepSight, ...] = ()
    prefixes: tuple[PrefixSight, ...] = ()


class BackendDied(Exception):
    """The backend can't go on: the worker leaves, and its supervisor starts it again."""


class BackendRefused(BackendDied):
    """The backend can never work as it is configured (a model that is not admitted): starting it again would not help."""


class Backend(ABC):
    """Does a worker's work."""

    @abstractmethod
    async def start(self, report: Reporter) -> Offer:
        """Get ready; returns what is offered. Raises `BackendDied` with the reason if that fails."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Begin an attempt. Returns at once."""

    @abstractmethod
    def cancel(self, key: RunKey) -> None:
        """Stop an attempt, if it runs; nothing need be reported of it any more."""

    @abstractmethod
    async def wait(self) -> None:
        """Return or raise `BackendDied` when the backend has ended of itself; until then, wait."""

    @abstractmethod
    async def close(self) -> None:
        """End everything, bounded in time. Idempotent."""

    def retain(self, hold: Hold) -> None:  # noqa: B027 - a backend without a cache has nothing to keep
        """Compute and keep a prompt until `release`, as far as memory allows. Nothing is reported of it."""

    def release(self, hold: str) -> None:  # noqa: B027
        """A retained prompt is a cache like any other again. Unknown ids do nothing."""

    def load(self) -> dict[str, float]:
        """Figures for the heartbeat, such as free KV tokens."""
        return {}

    def look(self) -> Insight:
        """What people may look at, beside what the worker knows; the steps since it was looked at last."""
        return Insight()
