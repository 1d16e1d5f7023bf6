"""Questions to a scheduler, of tenants and of the operator: decoded, put to the core, answered.

Law: a tenant is told of its own alone, and orders no worker about. No answer goes to a subject of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

import structlog
from msgspec import structs

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError, Delivery
from myna.actors.codec import TooLarge, WireError
from myna.actors.messages import (
    Cordon,
    CordonRequest,
    Drain,
    DrainRequest,
    GraphRequest,
    LogRequest,
    SessionId,
    Status,
    StatusRequest,
    Tenant,
    Why,
    WorkerId,
)
from myna.actors.scheduler import border, history
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.post import Post
from myna.actors.subjects import Question, ToWorker

log = structlog.get_logger(__name__)

LOGS_AT_ONCE = 4
"""Logs that are read for tenants at once: each takes a consumer of the stream's."""

_OURS = ("myna.", "myna-", "$")
"""Where no answer may go: a tenant could make us write where it may not."""


class Questions:
    """Answers them. `spawn` begins a task, and owns it; `status` tells a tenant, or the operator, what the actor sees."""

    def __init__(
        self,
        bus: Bus,
        core: SchedulerCore,
        post: Post,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        status: Callable[[Tenant | None], Status],
    ) -> None:
        self._bus = bus
        self._core = core
        self._post = post
        self._spawn = spawn
        self._status = status
        self._reading_logs = asyncio.Semaphore(LOGS_AT_ONCE)

    async def answer(self, delivery: Delivery) -> None:
        """Answer one, if an answer was asked for. Raises `WireError` for what is no question, or not this one's to ask."""
        if delivery.reply is None:
            return
        question, tenant = border.question(delivery.subject)
        if delivery.reply.startswith(_OURS):
            raise WireError(f"an answer to {delivery.reply!r} was asked for")
        if question is Question.LOG:
            self._spawn(self._tell_log(delivery.reply, *_log_of(delivery.data, tenant)))
        else:
            await self._post.send(delivery.reply, self._answer(question, delivery.data, tenant))

    async def _tell_log(self, reply: str, tenant: Tenant, session: SessionId, after: int) -> None:
        async with self._reading_logs:
            try:
                answer = codec.encode(await history.page(self._bus, tenant, session, after))
            except (BusError, TimeoutError, WireError) as error:  # who asked asks again
                log.warning("a log can't be told", tenant=tenant, session=session, reason=str(error) or "time-out")
                return
        await self._post.send(reply, answer)

    def _answer(self, question: Question, data: bytes, tenant: Tenant | None) -> bytes:
        """The answer for a tenant, or for the operator. Raises `WireError`."""
        match question:
            case Question.STATUS:
                codec.decode(data, StatusRequest)
                return self._told(tenant)
            case Question.WHY:
                return codec.encode(self._core.why(codec.decode(data, Why), self._now(), tenant))
            case Question.DRAIN:
                drained: DrainRequest = codec.decode(data, DrainRequest)
                return self._order(drained.worker, ToWorker.DRAIN, lambda lease: Drain(lease=lease), tenant)
            case Question.CORDON:
                asked: CordonRequest = codec.decode(data, CordonRequest)
                order = ToWorker.CORDON
                return self._order(asked.worker, order, lambda lease: Cordon(lease=lease, lift=asked.lift), tenant)
            case Question.LOG:
                raise WireError("a log is read from its stream")
            case Question.GRAPH:
                return codec.encode(self._core.graph(codec.decode(data, GraphRequest), self._now(), tenant))
            case _:
                assert_never(question)

    def _told(self, tenant: Tenant | None) -> bytes:
        status = self._status(tenant)
        try:
            return codec.encode(status)
        except TooLarge:
            return codec.encode(structs.replace(status, sessions=()))

    def _order(self, name: str, what: ToWorker, order: Callable[[int], Drain | Cordon], tenant: Tenant | None) -> bytes:
        """Tell a worker what the operator wants; the answer is who is there. Raises `WireError` where a tenant asks."""
        if tenant is not None:
            raise WireError(f"tenant {tenant!r} can't {what} workers")
        worker = WorkerId(name)
        if self._core.lease is not None and worker in self._core.fleet.workers:
            self._spawn(self._post.tell(worker, what, codec.encode(order(self._core.lease))))
        return self._told(None)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _log_of(data: bytes, tenant: Tenant | None) -> tuple[Tenant, SessionId, int]:
    """Whose log is asked for, and from where on. Raises `WireError`."""
    if tenant is None:
        raise WireError("the operator follows the logs themselves")
    asked: LogRequest = codec.decode(data, LogRequest)
    return tenant, SessionId(subjects.token(asked.session)), asked.after
