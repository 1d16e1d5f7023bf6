"""Calls that are begun ahead: the backend gets one the moment that the last of its inputs has been made here, before that is
stored and the scheduler has seen it.

Law: it is a hint. What such a call makes is nobody's until a `Run` of it has read the very inputs that it was begun with; where
none has within `GRACE` seconds, it is given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from myna.actors.messages import Anticipate, CallId, SessionId, Tenant, Value, VarId
from myna.actors.program import inputs_of
from myna.actors.worker.backend import Job, JobFailed, JobRefused, Report, RunKey
from myna.actors.worker.keeping import StreamKey

GRACE = 0.1
"""Seconds that a `Run` may take. It commonly comes after two to four thousandths."""

CallKey = tuple[Tenant, SessionId, CallId]


@dataclass(frozen=True, slots=True)
class Begun:
    """A call that the backend has. `reports`: what it has made of it so far."""

    job: Job
    reports: list[Report] = field(default_factory=list)

    def suits(self, job: Job) -> bool:
        """Whether it is what this attempt would be."""
        return not job.resumed and _prompt(job) == _prompt(self.job)


class Ahead:
    """All such calls of one worker. The backend knows them by attempts of their own, below zero."""

    def __init__(self) -> None:
        self._waiting: dict[StreamKey, list[tuple[Anticipate, Mapping[VarId, Value]]]] = {}
        self._begun: dict[CallKey, Begun] = {}
        self._number = 0

    def expect(self, order: Anticipate, inputs: Mapping[VarId, Value]) -> None:
        """A call is to begin when its last input is made; these are the others."""
        stream = (Tenant(order.tenant), SessionId(order.session), VarId(order.awaits))
        self._waiting.setdefault(stream, []).append((order, inputs))

    def awaits(self, stream: StreamKey) -> bool:
        """Whether a call waits for this variable."""
        return stream in self._waiting

    def made(self, stream: StreamKey, value: Value) -> Iterator[Job]:
        """A variable is made: the calls that begin by it."""
        for order, inputs in self._waiting.pop(stream, ()):
            call = (*stream[:2], CallId(order.call.id))
            if call not in self._begun:
                self._number += 1
                values = {**inputs, stream[2]: value}
                ordered = {name: values[name] for name in inputs_of(order.call)}
                job = Job((*call, -self._number), order.call, ordered, cache=order.cache, order=order.order)
                self._begun[call] = Begun(job)
                yield job

    def gone(self, stream: StreamKey) -> None:
        """A variable is not made here any more."""
        self._waiting.pop(stream, None)

    def note(self, report: Report) -> None:
        """The backend has made something of a call, if it is one of these."""
        begun = self._begun.get(report.key[:3])
        if begun is None or begun.job.key != report.key:
            return
        if isinstance(report, JobFailed | JobRefused):
            del self._begun[report.key[:3]]
        else:
            begun.reports.append(report)

    def take(self, call: CallKey) -> Begun | None:
        """What was begun of a call, for its attempt to go on with, or to give up."""
        return self._begun.pop(call, None)

    def overdue(self, key: RunKey) -> bool:
        """`GRACE` is over for a call: whether it is still nobody's, and now nothing."""
        begun = self._begun.get(key[:3])
        if begun is None or begun.job.key != key:
            return False
        del self._begun[key[:3]]
        return True

    def clear(self) -> list[RunKey]:
        """Forget all. Returns what the backend has."""
        keys = [begun.job.key for begun in self._begun.values()]
        self._waiting, self._begun = {}, {}
        return keys


def _prompt(job: Job) -> tuple[object, ...]:
    """All that a job's outputs follow from."""
    return job.call, job.cache, {name: (v.text, v.tokens, v.tokenizer) for name, v in job.inputs.items()}
