"""What the host has said and the engine has not heard yet, in the order in which it is heard.

Law: what somebody waits for is heard in the order in which it was said, and before prompts that are kept for nobody. These keep
an order of their own: a name is let go before it is kept anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from myna.engine.frames import Command, Retain, Unpin

Keeping: TypeAlias = Retain | Unpin


class Inbox:
    """The commands of one host."""

    def __init__(self) -> None:
        self._awaited: deque[Command] = deque()
        self._keeping: deque[Keeping] = deque()

    def __bool__(self) -> bool:
        return bool(self._awaited or self._keeping)

    def add(self, command: Command) -> None:
        """The host has said something."""
        match command:
            case Retain():
                self._keeping.append(command)
            case Unpin() if self._keeping:  # it may mean one of these
                self._keeping.append(command)
            case _:
                self._awaited.append(command)

    def awaited(self) -> Iterator[Command]:
        """Takes out what somebody waits for, one after another."""
        while self._awaited:
            yield self._awaited.popleft()

    def keeping(self) -> Iterator[Keeping]:
        """Takes out a prompt that is to be kept, with what else was said of any before; nothing while somebody waits."""
        while self._keeping and not self._awaited:
            command = self._keeping.popleft()
            yield command
            if isinstance(command, Retain):
                return
