"""Whose turn it is in a context. Law: of the programs of one context, only the one that came first goes on."""

from __future__ import annotations

from collections import deque

from myna.engine.context import ContextId
from myna.engine.program import Program
from myna.engine.request import Generate


class Turns:
    """The programs of each context, in the order in which they came."""

    def __init__(self) -> None:
        self._queues: dict[ContextId, deque[Program]] = {}

    def join(self, program: Program) -> bool:
        """Queue a program behind the others of its context. Whether its turn is now."""
        queue = self._queues.setdefault(program.context.id, deque())
        queue.append(program)
        return len(queue) == 1

    def leave(self, program: Program) -> Program | None:
        """Take a program out, if it is in. The program whose turn comes by that."""
        queue = self._queues.get(program.context.id)
        if queue is None or program not in queue:
            return None
        first = queue[0] is program
        queue.remove(program)
        if not queue:
            del self._queues[program.context.id]
        return queue[0] if first and queue else None

    def has(self, program: Program) -> bool:
        """Whether it is this program's turn."""
        queue = self._queues.get(program.context.id)
        return queue is not None and queue[0] is program

    def of(self, context: ContextId) -> list[Program]:
        """All of a context's programs."""
        return list(self._queues.get(context, ()))

    def generates(self, context: ContextId) -> bool:
        """Whether a program of a context has outputs to draw, so that nobody knows yet what the context will hold."""
        programs = self._queues.get(context, ())
        return any(isinstance(step, Generate) for program in programs for step in program.request.steps)
