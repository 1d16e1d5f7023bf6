"""The backend of an agent worker: runs one function's calls, each as a task of its own.

Law: a function's exception is a typed failure of that call alone, and never ends the worker. Nothing of a cancelled call
is reported.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from myna.actors.messages import (
    ErrorCode,
    Failure,
    FinishReason,
    NativeCall,
    Tenant,
    VarId,
    WorkerKind,
)
from myna.actors.worker.backend import (
    Job,
    JobEnded,
    JobFailed,
    Offer,
    OutputEnded,
    Produced,
    Reporter,
)
from myna.actors.worker.tasks import TaskBackend

_log = structlog.get_logger(__name__)


class NativeFailure(Exception):
    """A call that failed for a reason that has its own typed failure, such as an input that does not fit."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Result:
    """What a function returned: text, or the JSON form of it beside."""

    text: str
    json: Any = None


class Performer(Protocol):
    """A function that can be served."""

    @property
    def name(self) -> str:
        """By which it is called."""

    @property
    def concurrency(self) -> int:
        """How many of its calls may run at once."""

    def perform(self, job: Job) -> AsyncGenerator[str | Result, None]:
        """Run one call: pieces of text as they come, or one `Result`. Raises `NativeFailure`, or whatever the function raises."""


class AgentBackend(TaskBackend):
    """Serves one function; `tenant` limits it to that tenant's sessions."""

    def __init__(self, performer: Performer, tenant: Tenant | None = None) -> None:
        super().__init__()
        self._performer = performer
        self._tenant = tenant

    async def start(self, report: Reporter) -> Offer:
        """Ready at once."""
        self._report = report
        performer = self._performer
        return Offer(WorkerKind.AGENT, (performer.name,), performer.concurrency, tenant=self._tenant)

    async def _run(self, job: Job) -> None:
        try:
            await self._perform(job)
        except Exception as error:
            failure = _failure(job, error)
            # Not `exc_info`: a log that shows local variables would show the values of other people's calls.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.info(
                "agent_call_failed", function=job.call.function, call=job.call.id, error=failure.message, trace=trace
            )
            self._report(JobFailed(job.key, failure))
        else:
            self._report(JobEnded(job.key))

    async def _perform(self, job: Job) -> None:
        call = job.call
        if not isinstance(call, NativeCall):
            message = f"agents serve native calls; {call.id!r} is a call of a model"
            raise NativeFailure(Failure(code=ErrorCode.INVALID_CALL, message=message, call=call.id))
        variable = VarId(call.variable)
        data: Any = None
        async with aclosing(self._performer.perform(job)) as pieces:
            async for piece in pieces:
                text, data = (piece, None) if isinstance(piece, str) else (piece.text, piece.json)
                self._report(Produced(job.key, variable, text))
        self._report(OutputEnded(job.key, variable, FinishReason.STOP, json=data))


def _failure(job: Job, error: Exception) -> Failure:
    if isinstance(error, NativeFailure):
        return error.failure
    return Failure(
        code=ErrorCode.NATIVE_ERROR,
        message=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        call=job.call.id,
        function=job.call.function,
    )
