"""A mailbox: what arrived, in order, handled one after another by one task. Both buses' subscriptions are mailboxes.

Whoever delivers calls `put`, which never waits. A message that finds the mailbox full is lost, and the owner is told so with
`SlowConsumer`: once when it happens, and once more each time it happens again after the handler has caught up.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from myna.actors.bus import BusError, ErrorHandler, SlowConsumer, Subscription

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class HandlerFailed(BusError):
    """A handler raised. The error is its cause; the mailbox goes on with the next message."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one mailbox may hold: messages, and bytes of their bodies. One message always fits."""

    messages: int = 65_536
    size: int = 128 * 1024 * 1024


UNLIMITED = Limits(messages=sys.maxsize, size=sys.maxsize)
"""For a mailbox whose sender is slowed down instead."""


class CaughtUp:
    """In the mailbox of a follow: all that was stored at the start lies before this."""


class Mailbox(Subscription, Generic[T]):
    """The messages of one subscription. `detach` is called once, when it closes, to stop deliveries."""

    def __init__(
        self,
        name: str,
        handler: Callable[[T], Awaitable[None]],
        on_error: ErrorHandler | None,
        limits: Limits,
        detach: Callable[[Mailbox[T]], None],
    ) -> None:
        self.name = name
        self._handler = handler
        self._on_error = on_error
        self._limits = limits
        self._detach = detach
        self._items: deque[tuple[T, int]] | None = None  # none while it is empty, as most are: a deque takes 600 bytes
        self._size = 0
        self._overflowing = False
        self._closed = False
        self._wake: asyncio.Future[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mailbox {name}")

    @property
    def closed(self) -> bool:
        """Whether it takes no more messages."""
        return self._closed

    def put(self, item: T, size: int) -> None:
        """Deliver one message whose body has `size` bytes."""
        if self._closed:
            return
        if self._items is None:
            self._items = deque()
        elif len(self._items) >= self._limits.messages or self._size + size > self._limits.size:
            self._overflow(len(self._items))
            return
        self._items.append((item, size))
        self._size += size
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def fail(self, error: BusError) -> None:
        """Tell the owner of an error of this subscription."""
        if self._on_error is None:
            _log.error("bus.subscription_failed", subscription=self.name, error=str(error), exc_info=error)
            return
        try:
            self._on_error(error)
        except Exception as problem:
            _log.error("bus.error_handler_failed", subscription=self.name, exc_info=problem)

    async def close(self) -> None:
        """Stop; no handler runs after this returns (one that runs is cancelled). A handler may close its own mailbox."""
        if not self._closed:
            self._closed = True
            self._items = None
            self._detach(self)
        if self._task is asyncio.current_task():
            return  # its loop ends when the handler returns
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        while not self._closed:
            if self._items is None:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            item, size = self._items.popleft()
            self._size -= size
            if not self._items:
                self._items, self._overflowing = None, False
            try:
                await self._handler(item)
            except Exception as error:
                failed = HandlerFailed(f"the handler of {self.name} raised {type(error).__name__}: {error}")
                failed.__cause__ = error
                self.fail(failed)

    def _overflow(self, messages: int) -> None:
        if self._overflowing:
            return
        self._overflowing = True
        held = f"{messages} messages, {self._size} bytes"
        self.fail(SlowConsumer(f"the mailbox of {self.name} is full ({held}): messages to it are lost"))
