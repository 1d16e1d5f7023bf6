"""What a session's graph is made of: its calls, its variables, and what follows from a change of them.

Law: state only. `graph` changes what stands above `--- policies ---`, the planner and its policies what stands below.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from myna.actors.messages import Call, CallId, Cancellation, Failure, VarId, WorkerId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.policies.applications import Application
from myna.actors.scheduler.policies.lengths import Habit
from myna.actors.scheduler.policies.memo import Entry
from myna.actors.scheduler.policies.objectives import Need
from myna.actors.scheduler.policies.prefixes import Chain

if TYPE_CHECKING:
    from myna.actors.scheduler.graph import SessionGraph


class CallState(StrEnum):
    """Where a call stands: WAITING -> READY -> RUNNING (-> READY again, for another try) -> ENDED; any -> ENDING -> ENDED."""

    WAITING = "waiting"  # for inputs, or, in a lazy session, for somebody who wants it
    READY = "ready"
    RUNNING = "running"
    ENDING = "ending"  # its outputs' failure or cancellation is on its way to the stream
    ENDED = "ended"  # every output has an outcome


# Bound, as in other places that each call passes: to look a member up at its enum takes longer than most lines do.
WAITING, READY, RUNNING, ENDING, ENDED = CallState


class CallNode(Struct, eq=False):
    """A call of the graph and where it stands; below, what policies know of it."""

    id: CallId
    spec: Call | None  # None once ended: nobody needs the text any more
    function: str
    outputs: tuple[VarId, ...]
    missing: int
    unended: int
    inputs: tuple[VarId, ...] = ()  # each once; none once ended
    state: CallState = WAITING
    wanted: bool = False
    worker: WorkerId | None = None
    attempt: int = 0
    tries: int = 0
    overtaken: int = 0  # attempts that met another one's chunks
    seen: bool = False  # an attempt before this one may have published something
    since: float = 0.0
    outcome: Failure | Cancellation | None = None
    session: SessionGraph | None = None
    # --- policies ---
    constant: float = 0.0  # tokens of the prompt's constants
    limit: int = 0  # most tokens that it may generate
    work: float = 0.0  # as estimated when it was submitted
    path: float = 0.0  # work on the longest way from its end to the end of the application
    need: Need | None = None
    habit: Habit | None = None  # of its function
    application: Application | None = None
    asks: tuple[Literal[0, 1, 2], bool, tuple[str, ...]] | None = None  # the line that it was put into last
    queued: int = 0  # number of its entry among the ready calls, 0 while it is not there
    aged: int = 0  # number of the first of its entries since it became ready
    chain: Chain | None = None  # once it has been looked at for dispatch
    produced: int = 0  # tokens generated so far, as its outputs' headers say
    counted: bool = False  # among those to come
    prepared: bool = False  # it has been looked at for being computed ahead
    placed: Placed | None = None  # its last dispatch
    memo: Entry | None = None  # what it has to do with identical calls


class Placed(Struct, frozen=True, gc=False):
    """Why a call runs where and since when it does: for whoever asks."""

    at: float
    worker: WorkerId
    because: str
    waited: float
    prompt: float
    matched: float


class VarNode(Struct, eq=False):
    """A variable of the graph. `known`: the log has declared it or named its producer. `consumers` stay when it has ended:
    what is a cycle must not depend on which values were there, or a rebuilt scheduler would judge the same log otherwise."""

    id: VarId
    producer: CallNode | None = None
    consumers: list[CallNode] = field(default_factory=list)
    known: bool = False
    readers: tuple[str, ...] = ()  # who wait for it, as they name themselves
    status: OutcomeStatus | None = None
    failure: Failure | None = None
    need: Need | None = None  # of whoever asked for it
    size: float = 0.0  # tokens: estimated, or as its text is long
    content: str = ""  # digest of the text, once it has one


class Effects(Struct):
    """What follows from a change: calls that are new, calls that may run, calls to stop, calls that nobody needs now (those that
    ran are to be stopped too), calls that will end without results, outcomes to publish, running calls that have ended, and all
    calls that have ended."""

    added: list[CallNode] = field(default_factory=list)
    ready: list[CallNode] = field(default_factory=list)
    halted: list[CallNode] = field(default_factory=list)
    withdrawn: list[CallNode] = field(default_factory=list)
    ending: list[CallNode] = field(default_factory=list)
    doomed: list[tuple[VarId, Failure | Cancellation]] = field(default_factory=list)
    ended: list[CallNode] = field(default_factory=list)
    finished: list[CallNode] = field(default_factory=list)
