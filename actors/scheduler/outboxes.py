"""What a scheduler must store: outcomes, entries of the log, purges.

Law: what concerns one session is stored in order, each as often as it takes; one session's waiting holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

import structlog

from myna.actors import codec, logs, outcomes, subjects
from myna.actors.bus import AlreadyAssigned, Bus, BusError, Unavailable
from myna.actors.codec import TooLarge, WireError
from myna.actors.messages import Cancellation, Close, Failure, SessionUsage, Tried
from myna.actors.scheduler.commands import AppendEntry, EndVariable, PurgeSession
from myna.actors.scheduler.state import SessionKey

log = structlog.get_logger(__name__)

RETRY = 0.5
"""Seconds between two tries to store something."""

Stored = EndVariable | AppendEntry | PurgeSession
"""Commands that come here."""


class Outboxes:
    """One outbox for each session for which something waits. `spawn` begins the task that empties it, and owns it."""

    def __init__(self, bus: Bus, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._bus = bus
        self._spawn = spawn
        self._nonce = uuid.uuid4().hex  # of message ids: who could guess one could have ours taken for a repetition
        self._waiting: dict[SessionKey, deque[Stored]] = {}

    def put(self, command: Stored) -> None:
        """Store what a command says, after all that was put here for its session before. Never waits."""
        key = (command.tenant, command.session)
        outbox = self._waiting.get(key)
        if outbox is None:
            outbox = self._waiting[key] = deque()
            self._spawn(self._empty(key, outbox))
        outbox.append(command)

    async def _empty(self, key: SessionKey, outbox: deque[Stored]) -> None:
        told: set[str] = set()
        while outbox:
            logs.ABOUT.set(_about(outbox[0]))  # of this task, which does nothing else
            try:
                await self._store(outbox[0])
            except Unavailable as error:
                log.warning("not stored yet", reason=str(error))
                await asyncio.sleep(RETRY)
                continue
            except BusError as error:  # full, or forbidden: somebody must mend it, and readers wait meanwhile
                log.error("can't be stored", reason=str(error))
                await asyncio.sleep(RETRY)
                continue
            except WireError as error:
                log.error("could not be stored", reason=str(error))
            else:
                _tell_failed(outbox[0], told)
            outbox.popleft()
        del self._waiting[key]

    async def _store(self, command: Stored) -> None:
        match command:
            case EndVariable(tenant, session, variable, outcome):
                await self._end(subjects.write(tenant, session, variable), outcome)
            case AppendEntry(tenant, session, entry):
                subject = subjects.log(tenant, session)
                which = "closed" if isinstance(entry, Close) else f"{entry.call}:{entry.tries}"
                await self._bus.append(subject, codec.encode(entry), message_id=f"{subject}:{which}:{self._nonce}")
            case PurgeSession(tenant, session, used):
                for n, part in enumerate(used):
                    await self._record(subjects.usage(tenant, session, n), part)
                for stream in (subjects.VALUES, subjects.CHUNKS, subjects.LOG):
                    await self._bus.purge(stream, subjects.of_session(tenant, session))
            case _:
                assert_never(command)

    async def _record(self, subject: str, used: SessionUsage) -> None:
        with contextlib.suppress(AlreadyAssigned):  # by an earlier leader that could not purge
            headers = outcomes.usage_headers(used)
            await self._bus.append(subject, codec.encode(used), headers=headers, message_id=f"{subject}:{self._nonce}")

    async def _end(self, subject: str, outcome: Failure | Cancellation) -> None:
        try:
            data, headers = outcomes.pack(outcome)
        except TooLarge:
            data, headers = outcomes.pack(outcomes.shortened(outcome))
        try:
            await self._bus.append(subject, data, headers=headers, message_id=f"{subject}:ended:{self._nonce}")
        except AlreadyAssigned:
            log.debug("a value came first", subject=subject)


def _about(command: Stored) -> tuple[object, ...]:
    match command:
        case EndVariable(tenant, session, variable, Failure(call=call)):
            return (tenant, session, call, None, variable)
        case EndVariable(tenant, session, variable):
            return (tenant, session, None, None, variable)
        case AppendEntry(tenant, session, Tried(call=call)):
            return (tenant, session, call)
        case AppendEntry(tenant, session) | PurgeSession(tenant, session):
            return (tenant, session)
        case _:
            assert_never(command)


def _tell_failed(command: Stored, told: set[str]) -> None:
    """Failures, by their codes alone: their texts may quote a value. Of all that follows from one call's, the first is told."""
    match command:
        case EndVariable(outcome=Failure(code=code, call=call, function=function)) if call not in told:
            told.add(call)
            log.info("a call failed", code=code, function=function)
        case AppendEntry(entry=Tried(tries=tries)):
            log.info("an attempt failed, and is made again", tries=tries)
        case _:
            pass
