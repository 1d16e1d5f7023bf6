"""What a session has while it is open: connection, reader, outbox, and the task that owns all its others.

Law: one owner for all tasks. It ends them when the session is closed; if one of them fails, which is a fault of the SDK, the
session fails, and whoever waits is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from myna.actors import codec, outcomes, subjects
from myna.actors.bus import BusError, Unavailable
from myna.actors.messages import PROTOCOL, Alive, Close, Open, Outcome, Value, VarId
from myna.sdk import ids, spans
from myna.sdk.outbox import Outbox
from myna.sdk.reading import Reading

if TYPE_CHECKING:
    from myna.sdk.client import Client
    from myna.sdk.session import Session

_log = structlog.get_logger(__name__)

APPEND_TIMEOUT = 30.0
"""Seconds for which an entry of the log is tried again before its calls fail."""
CLOSE_TIMEOUT = 10.0
"""Seconds that closing takes at most for what is still to be said."""
LONGEST_BEAT = 20.0
"""Seconds between two signs of life of a session, at most."""


class _Stopped(Exception):
    """All is said; the tasks may end."""


class Running:
    """What a session has while it is open: connection, reader, outbox, and the task that owns all others."""

    def __init__(self, session: Session, client: Client) -> None:
        self.session = session
        self.client = client
        self.bus = client.bus
        self.loop = asyncio.get_running_loop()
        self.outbox = Outbox(self._append, session.fail)
        self.reading: Reading
        self._stop: asyncio.Future[None] = self.loop.create_future()
        self._span: spans.SessionSpan | None = None
        self._owner: asyncio.Task[None]

    @classmethod
    async def start(cls, session: Session, client: Client) -> Running:
        """Open `session` on `client`: returns when its first entry is stored. Raises `BusError`."""
        self = cls(session, client)
        ready: asyncio.Future[None] = self.loop.create_future()
        self._owner = self.loop.create_task(self._own(ready), name=f"myna-{session.id}")
        try:
            await asyncio.wait([ready, self._owner], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._owner.cancel()
            await asyncio.wait([self._owner])
            raise
        if not ready.done():
            await self._owner
        ready.result()
        return self

    async def _own(self, ready: asyncio.Future[None]) -> None:
        """Run until told to stop. All the session's tasks are children of this one."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self.reading = Reading(self.bus, self.client.tenant, self.session.id, self.session, tasks)
                try:
                    await self._begin()
                except Exception as error:
                    ready.set_exception(error)
                    await self.reading.close()
                    return
                tasks.create_task(self.outbox.run())
                tasks.create_task(self._beat())
                ready.set_result(None)
                await self._stop
                await self.reading.close()
                raise _Stopped
        except* _Stopped:
            pass  # the way to end all tasks of a group
        except* Exception as group:
            self.reading.closed = True
            self.session.crashed(group)
        finally:
            self.client.forget(self)
            if self._span is not None:
                self._span.end()

    async def _begin(self) -> None:
        session = self.session
        self.client.remember(self)
        if session.attached:
            return
        await self._listen()
        self._span = spans.begin(session.name, session.id)
        await self._append(
            codec.encode(
                Open(
                    protocol=PROTOCOL,
                    lazy=session.lazy,
                    ttl=session.ttl,
                    priority=session.priority,
                    name=session.name,
                    objective=session.objective,
                    keep=session.keep,
                    cache=session.cache,
                )
            ),
            None if self._span is None else self._span.headers,
        )

    async def _listen(self) -> None:
        """Subscribe to the session's values, however often the connection is lost meanwhile. Raises `BusError` in the end."""
        deadline = self.loop.time() + APPEND_TIMEOUT
        while True:
            try:
                return await self.reading.listen_to_all()
            except Unavailable:  # after some seconds: there is no need to wait before the next try
                if self.loop.time() >= deadline:
                    raise

    async def stop(self, last: Close | None) -> None:
        """Say what is still to be said, then end all tasks."""
        if not self._owner.done():
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await (self.outbox.flush() if last is None else self.outbox.tell(last))
            except (TimeoutError, BusError) as error:  # then the session ends when it expires
                _log.warning("close_not_stored", session=self.session.id, error=str(error))
            finally:
                if not self._stop.done():
                    self._stop.set_result(None)
                await asyncio.wait([self._owner])

    async def close(self) -> None:
        """The connection is about to be closed."""
        await self.session.close("its client was closed")

    def lost(self) -> None:
        """The connection was gone."""
        self.reading.lost()

    async def _beat(self) -> None:
        """Say from time to time that the session is held, so that it does not expire."""
        subject = subjects.alive(self.client.tenant, self.session.id)
        message = codec.encode(Alive())
        while True:
            await asyncio.sleep(min(LONGEST_BEAT, self.session.ttl / 4))
            with contextlib.suppress(BusError):  # a later one will get through, or the session expires
                await self.bus.publish(subject, message)

    async def _append(self, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        subject = subjects.log(self.client.tenant, self.session.id)
        message_id = self.session.next_message_id()
        await self.bus.append(subject, data, message_id=message_id, headers=headers, timeout=APPEND_TIMEOUT)

    async def publish(self, variable: VarId, value: Value) -> None:
        """Write a value. Raises `AlreadyAssigned`, `codec.TooLarge`, `Unavailable`."""
        body, headers = outcomes.pack(value)
        subject = subjects.write(self.client.tenant, self.session.id, variable)
        await self.bus.append(subject, body, message_id=ids.new("set"), headers=headers, timeout=APPEND_TIMEOUT)

    async def read(self, variable: VarId) -> Outcome:
        """What the values' stream has for `variable`, which is known to be there. Raises `Unavailable`."""
        for pause in (0.0, 0.05, 0.2, 1.0):  # a replica may not have it yet
            await asyncio.sleep(pause)
            stored = await self.bus.get(subjects.VALUES, subjects.write(self.client.tenant, self.session.id, variable))
            if stored is not None:
                outcome: Outcome = codec.decode(stored.data, Outcome)
                return outcome
        raise Unavailable(f"variable {variable} has a value, but no server shows it")
