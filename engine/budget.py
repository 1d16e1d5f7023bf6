"""How many tokens of prompts one step computes, and whose. Pure: it looks at programs, and changes nothing.

Law: a step is as long as those who wait for its end can bear. A token of each output comes on top: what is left of a prompt
after a step that outputs shortened would cost a whole step more.

Outputs that go before the prompts that wait hold these back, where that pays: where one of them ends sooner by it, or where they
are at least as many as the siblings that a prompt waits with. (Else few would hold up many. Where each prompt goes before the
next, it soon draws itself, while those after it are held back.) Prompts lose little by it: in steps of some hundred tokens, which
fill a bucket, each takes hardly more time than in steps of thousands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from myna.engine.interface import BatchLimits
from myna.engine.program import Program

_TILES_ALONE = 4
"""Of a step that computes for nobody alone. On a GPU 256 tokens take half as long again as one."""
_ALONE = 256
"""Tokens of such a step where there are no tiles. On a CPU any part of a prompt costs as much as 90 tokens more."""

_LOOKED_AT = 64
"""Outputs, and prompts that wait, the most important first, by which it is judged whether that pays."""


class Budget:
    """Of one step. `running`, `waiting`: all programs, the most important first. `calm`: whether nobody has been served for as
    long as the limits say."""

    def __init__(
        self, limits: BatchLimits, running: Sequence[Program], waiting: Sequence[Program], *, calm: bool = True
    ) -> None:
        self._lead = next((program.key[:2] for program in running if program.work == 1), None)
        """Priority and order of the first program that draws in the step."""
        self._left = (
            _alone(limits, running, waiting) if self._lead is None else limits.mixed_tokens or limits.step_tokens
        )
        self._withheld = self._left - _held_to(limits, self._left, self._lead, running, waiting)
        """What those who come after that one have less."""
        self._ahead = _ahead(limits.ahead_tokens, running, waiting, calm=calm)
        """What is left for nobody; None: no bound."""

    def has_room(self, program: Program) -> bool:
        """Whether a step may compute any more of a prompt of this importance: who would get nothing need not run."""
        return self._left_for(program) > 0 and (self._ahead != 0 or program.awaited)

    def part(self, program: Program) -> int:
        """Tokens of a program's prompt that the step may compute."""
        part = min(program.work, max(self._left_for(program), 0))
        return part if self._ahead is None or program.awaited else min(part, self._ahead)

    def spend(self, program: Program, tokens: int) -> None:
        """The step computes so many tokens of a program's prompt."""
        self._left -= tokens
        if self._ahead is not None and not program.awaited:
            self._ahead -= tokens

    def _left_for(self, program: Program) -> int:
        follows = self._lead is not None and self._lead < program.key[:2]
        return self._left - self._withheld if follows else self._left


def _alone(limits: BatchLimits, running: Sequence[Program], waiting: Sequence[Program]) -> int:
    """Tokens of prompts in a step in which nobody draws. Several prompts of one step would draw in step from then on, end
    together, and come back together: the first of them had better begin."""
    if limits.joint_tokens is None:
        return limits.step_tokens
    first = next((p.work for p in (*running, *waiting) if p.awaited and p.work > 1), 0)
    return min(max(limits.joint_tokens, first), limits.step_tokens)


def pays(left: Sequence[float], prompts: Sequence[float], orders: Sequence[Hashable], held_to: float) -> bool:
    """Whether outputs that have so many tokens `left` each should hold back these prompts, to `held_to` tokens a step. Siblings
    among them have the same of the `orders`."""
    waiting = sum(prompts)
    with_siblings = sum(n * n for n in Counter(orders).values())
    return len(left) * len(prompts) >= with_siblings or any(0 < n * held_to < waiting for n in left)


def _held_to(
    limits: BatchLimits,
    most: int,
    lead: tuple[int, float] | None,
    running: Sequence[Program],
    waiting: Sequence[Program],
) -> int:
    """Tokens that a step may compute of prompts that come after the first who draws."""
    if lead is None or limits.leading_tokens is None or limits.leading_tokens >= most:
        return most
    begun = [p for p in running if _comes_after(lead, p) and p.work > 1]
    behind = begun + [p for p in waiting[:_LOOKED_AT] if _comes_after(lead, p) and p.work > 1]
    if not behind:
        return most
    first = min(p.key[:2] for p in behind)
    before = [p for p in running[:_LOOKED_AT] if p.key[:2] < first]
    left = [p.room - len(p.context.tokens) for p in before if p.work == 1]
    held_to = max(limits.leading_tokens - len(running) + len(begun), 1)
    return held_to if pays(left, [p.work for p in behind], [p.key[:2] for p in behind], held_to) else most


def _comes_after(lead: tuple[int, float], program: Program) -> bool:
    """Whether somebody waits for it, and it comes after the first who draws."""
    request = program.request
    return program.awaited and lead < (-request.priority, request.order)


def _ahead(tile: int | None, running: Sequence[Program], waiting: Sequence[Program], *, calm: bool) -> int | None:
    """Tokens that a step may compute for nobody: what its outputs leave of a tile of rows, and none beside a prompt that somebody
    waits for. A step with nothing else has a few tiles: somebody may come while it runs."""
    if tile is None or all(queue[-1].awaited for queue in (running, waiting) if queue):
        return None
    if waiting and waiting[0].awaited:
        return 0
    awaited = [program for program in running if program.awaited]
    if any(program.work > 1 for program in awaited):
        return 0
    if not awaited:
        return (_TILES_ALONE * tile or _ALONE) if calm else 0
    return tile - len(awaited) % tile if tile else 0
