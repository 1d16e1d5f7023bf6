"""Every subject, stream and bucket of the system, and nothing else.

    myna.<tenant>.<session>.log            a session's history: any client -> scheduler               stream LOG
    myna.<tenant>.<session>.set.<var>      a value, failure or cancellation, written once             stream VALUES
    myna.<tenant>.<session>.var.<var>        what the stream accepted of it, republished: read here
    myna.<tenant>.<session>.put.<var>.<n>  chunk n of a token stream, written once                    stream CHUNKS
    myna.<tenant>.<session>.tok.<var>.<n>    what the stream accepted of it, republished: read here
    myna.<tenant>.<session>.alive          a client still holds its session
    myna-worker.<worker>.{run,stop,retain,anticipate,release,drain,cordon}  scheduler -> one worker
    myna-workers.<worker>.{announce,beat,event,leave}  worker -> scheduler
    myna-agent.<tenant>.<worker>.…, myna-agents.<tenant>.<worker>.…   the same for a tenant's agents
    myna-scheduler.hello                   scheduler -> all workers
    myna-sight.<worker>                    what an engine shows of itself: worker -> gateways, operator
    myna-question.{status,why}             operator -> the leading scheduler
    myna-ask.<tenant>.{status,why}         a tenant asks the same, of what is its own
    myna-tenant.<tenant>                   what the operator grants a tenant: quotas, weight          stream TENANTS
    myna-usage.<tenant>.<session>.<n>      what a session used, written at its end, in parts          stream USAGE

Nobody but the streams publishes on `var` and `tok` (Law 1, Law 3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from myna.actors.messages import SessionId, Tenant, VarId, WorkerId

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,80}")


class InvalidName(ValueError):
    """A name that can't be a subject token."""


def token(text: str, what: str = "name") -> str:
    """`text` itself if it can be one subject token; raises `InvalidName` otherwise."""
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise InvalidName(f"{what} {text!r} must be 1 to 80 of the characters A-Z a-z 0-9 _ -")
    return text


# --- Sessions ---------------------------------------------------------------------------------------------------------


def _session(tenant: Tenant, session: SessionId) -> str:
    return f"myna.{token(tenant, 'tenant')}.{token(session, 'session')}"


def log(tenant: Tenant, session: SessionId) -> str:
    """Where a session's history is appended."""
    return f"{_session(tenant, session)}.log"


def write(tenant: Tenant, session: SessionId, variable: VarId) -> str:
    """Where a variable's outcome is written."""
    return f"{_session(tenant, session)}.set.{token(variable, 'variable')}"


def read(tenant: Tenant, session: SessionId, variable: VarId) -> str:
    """Where a variable's outcome is read."""
    return f"{_session(tenant, session)}.var.{token(variable, 'variable')}"


def read_all(tenant: Tenant, session: SessionId) -> str:
    """All outcomes of a session, for a subscriber."""
    return f"{_session(tenant, session)}.var.*"


def write_chunk(tenant: Tenant, session: SessionId, variable: VarId, n: int) -> str:
    """Where chunk n of a variable is written."""
    return f"{_session(tenant, session)}.put.{token(variable, 'variable')}.{n:d}"


def read_chunk(tenant: Tenant, session: SessionId, variable: VarId, n: int) -> str:
    """Where chunk n of a variable is read."""
    return f"{_session(tenant, session)}.tok.{token(variable, 'variable')}.{n:d}"


def read_chunks(tenant: Tenant, session: SessionId, variable: VarId) -> str:
    """All chunks of a variable, for a subscriber."""
    return f"{_session(tenant, session)}.tok.{token(variable, 'variable')}.*"


def alive(tenant: Tenant, session: SessionId) -> str:
    """Where a client says that it still holds its session."""
    return f"{_session(tenant, session)}.alive"


def of_session(tenant: Tenant, session: SessionId) -> str:
    """Everything that a session has stored, for a purge."""
    return f"{_session(tenant, session)}.>"


ALIVE_ALL = "myna.*.*.alive"


class Leaf(StrEnum):
    """The fourth token of a session's subject: what it is for."""

    LOG = "log"
    SET = "set"
    VAR = "var"
    PUT = "put"
    TOK = "tok"
    ALIVE = "alive"


@dataclass(frozen=True, slots=True)
class Address:
    """A session's subject taken apart."""

    tenant: Tenant
    session: SessionId
    leaf: Leaf
    variable: VarId | None = None
    chunk: int | None = None


def parse(subject: str) -> Address:
    """Take a session's subject apart. Raises `InvalidName` if it is none."""
    try:
        root, tenant, session, leaf, *rest = subject.split(".")
        if root != "myna" or len(rest) > 2:
            raise ValueError(subject)
        variable = VarId(token(rest[0], "variable")) if rest else None
        chunk = int(rest[1]) if len(rest) == 2 else None
        return Address(Tenant(token(tenant)), SessionId(token(session)), Leaf(leaf), variable, chunk)
    except ValueError as error:
        raise InvalidName(f"{subject!r} is no subject of a session") from error


# --- Workers and schedulers -------------------------------------------------------------------------------------------


class ToWorker(StrEnum):
    """What a scheduler tells one worker."""

    RUN = "run"
    STOP = "stop"
    RETAIN = "retain"
    ANTICIPATE = "anticipate"
    RELEASE = "release"
    DRAIN = "drain"
    CORDON = "cordon"


class FromWorker(StrEnum):
    """What a worker tells the scheduler."""

    ANNOUNCE = "announce"
    BEAT = "beat"
    EVENT = "event"
    LEAVE = "leave"


def to_worker(worker: WorkerId, leaf: ToWorker) -> str:
    """Scheduler -> one worker."""
    return f"myna-worker.{token(worker, 'worker')}.{leaf.value}"


def to_worker_all(worker: WorkerId) -> str:
    """All that schedulers tell one worker, in one subscription, so that it is one mailbox in order."""
    return f"myna-worker.{token(worker, 'worker')}.*"


def from_worker(worker: WorkerId, leaf: FromWorker) -> str:
    """Worker -> scheduler."""
    return f"myna-workers.{token(worker, 'worker')}.{leaf.value}"


def to_agent(tenant: Tenant, worker: WorkerId, leaf: ToWorker) -> str:
    """Scheduler -> one of a tenant's agents."""
    return f"myna-agent.{token(tenant, 'tenant')}.{token(worker, 'worker')}.{leaf.value}"


def to_agent_all(tenant: Tenant, worker: WorkerId) -> str:
    """All that schedulers tell one of a tenant's agents."""
    return f"myna-agent.{token(tenant, 'tenant')}.{token(worker, 'worker')}.*"


def from_agent(tenant: Tenant, worker: WorkerId, leaf: FromWorker) -> str:
    """One of a tenant's agents -> scheduler."""
    return f"myna-agents.{token(tenant, 'tenant')}.{token(worker, 'worker')}.{leaf.value}"


def sight(worker: WorkerId) -> str:
    """Where an engine shows what it does."""
    return f"myna-sight.{token(worker, 'worker')}"


TO_WORKERS, FROM_WORKERS = "myna-worker.*.*", "myna-workers.*.*"
TO_AGENTS, FROM_AGENTS = "myna-agent.*.*.*", "myna-agents.*.*.*"
HELLO = "myna-scheduler.hello"
SIGHTS = "myna-sight.*"


class Question(StrEnum):
    """What the leading scheduler is asked."""

    STATUS = "status"
    WHY = "why"
    GRAPH = "graph"
    DRAIN = "drain"
    CORDON = "cordon"
    LOG = "log"


def ask(tenant: Tenant, question: Question) -> str:
    """Where a tenant asks the leading scheduler."""
    return f"myna-ask.{token(tenant, 'tenant')}.{question.value}"


def question(what: Question) -> str:
    """Where the operator asks the leading scheduler."""
    return f"myna-question.{what.value}"


STATUS, WHY = question(Question.STATUS), question(Question.WHY)
QUESTIONS, ASK = "myna-question.*", "myna-ask.*.*"


# --- Tenants ----------------------------------------------------------------------------------------------------------


def policy(tenant: Tenant) -> str:
    """Where a tenant's policy is appended; the last one holds."""
    return f"myna-tenant.{token(tenant, 'tenant')}"


def usage(tenant: Tenant, session: SessionId, part: int) -> str:
    """Where part n of what a session used is written."""
    return f"myna-usage.{token(tenant, 'tenant')}.{token(session, 'session')}.{part:d}"


def inbox(name: str) -> str:
    """The prefix of the inboxes of a tenant, or of a role."""
    return f"_INBOX_{token(name, 'inbox')}"


# --- Streams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Republish:
    """What a stream accepted on `source` is published again on `destination`."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream. `single`: one message a subject, a second is refused. `memory`: not kept on disk.

    `duplicate_window`: seconds for which the server remembers message ids, 200 to 300 bytes each, most of its memory where much
    is written. A single-assignment stream needs few: a repetition that comes later is refused, and its writer compares.
    """

    name: str
    subjects: tuple[str, ...]
    single: bool = False
    memory: bool = False
    republish: Republish | None = None
    max_age: float | None = None
    duplicate_window: float = 120.0


_SHORT = 10.0
LOG = Stream("MYNA_LOG", ("myna.*.*.log",))
VALUES = Stream(
    "MYNA_VALUES",
    ("myna.*.*.set.*",),
    single=True,
    duplicate_window=_SHORT,
    republish=Republish("myna.*.*.set.*", "myna.{{wildcard(1)}}.{{wildcard(2)}}.var.{{wildcard(3)}}"),
)
CHUNKS = Stream(
    "MYNA_CHUNKS",
    ("myna.*.*.put.*.*",),
    single=True,  # in files, which cost 2 % of the rate: the restart of an only server must not tear what readers have seen
    max_age=3600.0,
    duplicate_window=_SHORT,
    republish=Republish("myna.*.*.put.*.*", "myna.{{wildcard(1)}}.{{wildcard(2)}}.tok.{{wildcard(3)}}.{{wildcard(4)}}"),
)
TENANTS = Stream("MYNA_TENANTS", ("myna-tenant.*",))
USAGE = Stream("MYNA_USAGE", ("myna-usage.*.*.*",), single=True, max_age=90 * 86400.0, duplicate_window=_SHORT)
SESSION_STREAMS = (LOG, VALUES, CHUNKS)
STREAMS = (*SESSION_STREAMS, TENANTS, USAGE)

LEASES = "MYNA_LEASES"
LEASE_TTL = 10.0
"""Seconds after which a scheduler that has not renewed its lease has lost it."""

# --- Headers ----------------------------------------------------------------------------------------------------------

STATUS_HEADER = "Myna-Status"
ATTEMPT_HEADER = "Myna-Attempt"
SIZE_HEADER = "Myna-Size"
DIGEST_HEADER = "Myna-Digest"
CONTENT_HEADER = "Myna-Content"
"""Of a value: characters and digest of its text, then prompt, cached and output tokens, separated by spaces."""
STREAMED_HEADER = "Myna-Streamed"
"""Of a value: bytes that its chunks take in their stream, about; left out where it has none."""
USAGE_HEADER = "Myna-Usage"
"""Of a record of usage: calls, then prompt, cached and output tokens, separated by spaces."""
MESSAGE_ID = "Nats-Msg-Id"
