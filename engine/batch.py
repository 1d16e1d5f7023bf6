"""Which tokens go into the next step, and who gives way when pages run out. No torch, no clock, no I/O here.

Continuous batching: every step takes one token of each decoding program and fills the rest of its budget with chunks of
prompts; how much, `budget` says. Why it can't come to a standstill: programs are strictly ordered by importance (priority,
order, arrival); when a page is wanted, everything less important gives way in turn (idle contexts, then running programs, then
pins), and whatever gives way keeps its tokens and is computed again. No context may outgrow the pool, so the most important
program always fits. What waits takes a running one's place only by its priority.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, takewhile
from operator import attrgetter

from myna.engine.budget import Budget
from myna.engine.context import Context, ContextStore
from myna.engine.errors import OutOfPages
from myna.engine.interface import BatchLimits
from myna.engine.program import Importance, Program, ProgramState

_LOOK_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `tokens` tokens of a program. `draws`: its output's next token is drawn from the last one's logits."""

    program: Program
    tokens: int
    draws: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A step. `idle`: running programs that have nothing to compute: they fork or end."""

    chunks: list[Chunk] = field(default_factory=list)
    idle: list[Program] = field(default_factory=list)


class Batch:
    """The waiting and the running programs. `unpin` gives up a pin, and returns False when there is none left."""

    def __init__(self, store: ContextStore, limits: BatchLimits, unpin: Callable[[], bool]) -> None:
        self.waiting: list[Program] = []
        self.running: list[Program] = []
        self.preemptions = 0
        self._came: list[Program] = []
        """Awaited programs that came since the last step: something of theirs may be being computed ahead."""
        self._learned = False
        """Whether the tree may hold what is to be kept, and did not before."""
        self._store = store
        self._limits = limits
        self._unpin = unpin

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for any of the programs."""
        return any(queue[0].awaited for queue in (self.running, self.waiting) if queue)

    def add(self, program: Program) -> None:
        """Put a program in the queue."""
        program.state = ProgramState.WAITING
        insort(self.waiting, program, key=_importance)
        if program.awaited:
            self._came.append(program)
        else:
            self._learned = True

    def end(self, program: Program) -> None:
        """Take a program out, wherever it is."""
        match program.state:
            case ProgramState.WAITING:
                self.waiting.remove(program)
            case ProgramState.RUNNING:
                self.running.remove(program)
                self._learned = True
            case ProgramState.HELD | ProgramState.ENDED:
                pass
        program.state = ProgramState.ENDED

    def check(self) -> None:
        """Verify that the queues are in order and say the same as the programs. Raises AssertionError."""
        for queue, state in ((self.waiting, ProgramState.WAITING), (self.running, ProgramState.RUNNING)):
            assert all(program.state is state for program in queue), f"a program in the queue is not {state}"
            assert queue == sorted(queue, key=_importance), "a queue is out of order"
        assert len(self.running) <= self._limits.max_sequences, "too many programs run"
        contexts = [program.context.id for program in (*self.waiting, *self.running)]
        assert len(contexts) == len(set(contexts)), "two programs work in one context"
        assert not any(program.context.freed for program in (*self.waiting, *self.running)), "a context is gone"

    def schedule(self, *, calm: bool = True) -> Schedule:
        """Choose the next step's tokens and make room for them. Takes waiting programs in where they fit. `calm`: as `Budget`
        has it."""
        schedule = Schedule(idle=self._take_known())
        self._hand_over()
        self._make_way()
        budget = Budget(self._limits, self.running, self.waiting, calm=calm)
        preempted = self.preemptions
        for program in list(self.running):
            if program.state is ProgramState.RUNNING:
                self._plan(program, budget, schedule)
        if self.preemptions == preempted:
            self._admit(budget, schedule)
        return schedule

    def begun(self, chunks: Iterable[Chunk]) -> None:
        """A step of these chunks has begun. From here on its tokens count as computed: whatever begins later comes after it."""
        place = 0
        for chunk in chunks:
            self._computed(chunk)
            if chunk.draws:
                chunk.program.expect(place)
                place += 1

    def _computed(self, chunk: Chunk) -> None:
        """Account for a computed chunk, and publish a prefix that others wait for."""
        program = chunk.program
        program.context.advance(chunk.tokens)
        program.note_computed()
        awaited = program.publish_at is not None and program.context.computed >= program.publish_at
        if awaited:
            program.publish_at = None
        if awaited or (chunk.tokens > 1 and not program.context.pending):
            program.context.publish()
            self._learned = True

    def _plan(self, program: Program, budget: Budget, schedule: Schedule) -> None:
        """Plan a running program's next chunk."""
        work = program.work
        if not work:
            if program.output is None:  # else it has nothing to do until its last draw is read
                schedule.idle.append(program)
            return
        tokens = 1 if work == 1 else budget.part(program)
        if not tokens or not self._reserve(program, tokens):
            return
        draws = tokens == program.context.pending and program.output is not None
        schedule.chunks.append(Chunk(program, tokens, draws))
        if work > 1:
            budget.spend(program, tokens)

    def _reserve(self, program: Program, tokens: int) -> bool:
        """Get pages for a running program, from less important ones if need be. False: it had to give way itself."""
        while True:
            try:
                program.context.reserve(tokens, program.room)
                return True
            except OutOfPages:
                if self._drop_idle(program.context, queued=True):
                    continue
                victim = self.running[-1]
                if victim is program and len(self.running) == 1 and self._unpin():
                    continue
                if victim is program and len(self.running) == 1:
                    raise
                self._preempt(victim)
                if victim is program:
                    return False

    def _preempt(self, program: Program) -> None:
        self.preemptions += 1
        self.running.remove(program)
        program.context.drop()
        program.publish_at = None
        self.add(program)

    def _drop_idle(self, keep: Context, *, queued: bool) -> bool:
        """Take the KV from one context other than `keep` that isn't being run: all of it is a cache.

        First from those that no program uses, then, if `queued`, from waiting programs, the least important first.
        """
        used = {program.context.id for program in (*self.running, *self.waiting)}
        unused = (context for context in self._store if context.id not in used)
        waiting = (program.context for program in reversed(self.waiting) if queued)
        for context in chain(unused, waiting):
            if context is not keep and context.computed:
                context.drop()
                return True
        return False

    def _take_known(self) -> list[Program]:
        """Take out what is to be kept and is in the tree, which costs no step. Where tokens that join a step are cheap, most have
        some behind their last whole page, and they aren't looked through."""
        if not self._learned or self._limits.in_company:
            return []
        self._learned = False
        kept = takewhile(lambda program: not program.awaited, reversed(self.waiting))
        known = [program for program in kept if self._knows(program.context)]
        for program in known:
            self.waiting.remove(program)
            program.state = ProgramState.HELD
        return known

    def _knows(self, context: Context) -> bool:
        return self._store.tree.match(context.namespace, context.tokens) == len(context.tokens)

    def _hand_over(self) -> None:
        """Who computes for nobody what somebody now waits for gives way to them: what is computed of it they find in the tree."""
        came, self._came = self._came, []
        waiting = [program for program in came if program.state is ProgramState.WAITING]
        if not waiting:
            return
        for leader in [program for program in self.running if not program.awaited]:
            if any(_best_leader(program, (leader,), self._store.pool.page_size) for program in waiting):
                self._preempt(leader)

    def _make_way(self) -> None:
        """What is running and less important by its priority, not merely later, gives way to what waits."""
        while self.waiting and self.running:
            first, last = self.waiting[0], self.running[-1]
            if last.request.priority >= first.request.priority or first.awaits is not None or self._has_room(first):
                return
            self._preempt(last)

    def _has_room(self, program: Program) -> bool:
        """Whether a waiting program could run beside the others, as far as can be told without touching anything."""
        context = program.context
        missing = max(len(context.tokens) - max(context.matchable(), context.computed), 1)
        pages = self._store.pool.pages_for(missing) + len(self.running)
        return len(self.running) < self._limits.max_sequences and self._available(pages)

    def _admit(self, budget: Budget, schedule: Schedule) -> None:
        # A bounded look ahead past those that wait for a prefix: a queue of thousands must not cost every step.
        for program in self.waiting[: _LOOK_AHEAD * self._limits.max_sequences]:
            if not budget.has_room(program) or len(self.running) >= self._limits.max_sequences:
                return
            if program.context.unread or self._waits_for_prefix(program):  # its last token is known a step from now
                continue
            if not self._fits(program):
                return  # nobody overtakes: a large prompt's turn comes
            self.waiting.remove(program)
            program.state = ProgramState.RUNNING
            insort(self.running, program, key=_importance)
            self._plan(program, budget, schedule)

    def _fits(self, program: Program) -> bool:
        """Whether all of a waiting program's work fits now; takes over the prefix that the tree holds if it does."""
        context = program.context
        before = context.computed
        gained = context.match()
        need = context.missing_pages(max(program.work, 1))
        need += len(self.running)  # a page to grow for each, or the newcomer would be thrown out again at once
        while not self._available(need):
            if self._drop_idle(context, queued=not self.running) or (not self.running and self._unpin()):
                continue
            if not self.running:
                break  # nothing else is left to give way, and no context outgrows the pool
            if gained:
                context.drop()
            return False
        program.note_cached(before)
        if context.caches:
            self._store.tree.count(len(context.tokens) - before, gained, context.node, before)
        return True

    def _available(self, pages: int) -> bool:
        return pages <= self._store.pool.free + self._store.tree.evictable_pages

    def _waits_for_prefix(self, program: Program) -> bool:
        """Whether a running program is just computing a prefix of this one, so that waiting saves computing it twice."""
        if program.awaits is not None:
            leader, until = program.awaits
            if leader.state is ProgramState.RUNNING and leader.publish_at is not None and leader.publish_at <= until:
                return True
            program.awaits = None
        context = program.context
        if context.tail or not context.caches:
            return False
        size = self._store.pool.page_size
        leaders = takewhile(attrgetter("awaited"), self.running) if program.awaited else self.running
        best = _best_leader(program, leaders, size)
        saved = 0 if best is None else best[1] - context.matchable()
        if best is None or saved < size or saved * len(self.waiting) <= self._limits.step_price:
            return False
        leader, until = best
        leader.publish_at = until if leader.publish_at is None else min(leader.publish_at, until)
        program.awaits = (leader, until)
        return True


def _importance(program: Program) -> Importance:
    return program.key


def _best_leader(program: Program, running: Iterable[Program], page_size: int) -> tuple[Program, int] | None:
    """The running program that is computing the longest prefix of `program`, and up to which position."""
    best: tuple[Program, int] | None = None
    wanted = program.context.tokens
    for leader in running:
        context = leader.context
        if leader.work <= 1 or context.namespace != program.context.namespace:
            continue
        common = _common_pages(wanted, context.tokens, page_size)
        until = min(common, (len(wanted) - 1) // page_size * page_size)
        if until > context.node.end and (best is None or until > best[1]):
            best = (leader, until)
    return best


def _common_pages(first: list[int], second: list[int], page_size: int) -> int:
    """Tokens of whole pages with which both begin."""
    common = 0
    limit = min(len(first), len(second)) // page_size * page_size
    while common < limit and first[common : common + page_size] == second[common : common + page_size]:
        common += page_size
    return common
