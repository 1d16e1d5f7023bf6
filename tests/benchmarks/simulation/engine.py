"""An engine modelled by the time of its steps: batching, chunked prefill, a prefix cache with LRU eviction, a bounded memory.

Law: a step takes `base + slope x sequences + prefill x prompt tokens computed`, or as long as measured steps of as many rows
(tokens drawn and computed) did, and `kv x tokens read` on top; tokens that several sequences share are read once. Prompts are
computed in the scheduler's order and then in that of arrival, at most `chunk` tokens a step beside the decoding, several
prompts at most `joint` where nothing decodes, and what outputs of calls that go before them leave of `leading` where that pays
(`engine/budget.py`); prefixes that nobody waits for only where there are no others, and as many tokens of them as outputs leave
of a `TILE`.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from typing import Any

from myna.actors.scheduler.policies.prefixes import Boundary
from myna.engine.budget import pays

HERE = Path(__file__).parent
OURS = HERE / "h100_myna.json"
"""Our own engine on one H100, with an 8B model. Its steps: of outputs alone up to 256 rows, of one output and a prompt beyond."""
TILE = 64.0
"""Rows of a step, of outputs and of what nobody waits for."""
IDLE = 256.0
"""Tokens of a step that nobody waits for, where there is nothing else to do."""


class Steps(dict[int, float]):
    """Seconds of a step by its rows. `points`: measured ones, by rows; others lie on the lines between them. Rows are padded to
    the next of `buckets`, if there is one."""

    def __init__(self, points: Sequence[tuple[int, float]], buckets: Sequence[int]) -> None:
        super().__init__()
        self._points = points
        self._buckets = buckets

    def __missing__(self, rows: int) -> float:
        at = bisect_left(self._buckets, rows)
        padded = self._buckets[at] if at < len(self._buckets) else rows
        after = min(max(bisect_left(self._points, (padded,)), 1), len(self._points) - 1)
        (low, shorter), (high, longer) = self._points[after - 1 : after + 1]
        seconds = self[rows] = shorter + (padded - low) * (longer - shorter) / (high - low)
        return seconds


@dataclass(frozen=True)
class EngineModel:
    """Seconds, and limits. The numbers are fitted to measurements: see `fitting`. `steps`: what steps of so many rows took,
    without KV that is read; where there are such, the first, second and fourth are the nearest line, for who needs one."""

    base: float
    slope: float
    kv: float
    prefill: float
    chunk: int = 2048
    tokens: int = 400_000
    sequences: int = 256
    leading: int | None = None
    joint: int | None = None
    source: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    buckets: tuple[int, ...] = ()

    @cached_property
    def _by_rows(self) -> Steps | None:
        return Steps(self.steps, self.buckets) if self.steps else None

    @property
    def alone(self) -> float:
        """A step of one sequence."""
        return self.step(1, 0.0)

    @property
    def prompt(self) -> float:
        """A token of a prompt, computed at the best rate."""
        return min((seconds / rows for rows, seconds in self.steps), default=self.prefill)

    def step(self, sequences: int, tokens: float, prompt: float = 0.0) -> float:
        """One step."""
        by_rows = self._by_rows
        if by_rows is None:
            return self.base + self.slope * sequences + self.kv * tokens + self.prefill * prompt
        return by_rows[sequences + ceil(prompt)] + self.kv * tokens

    def cost(self, new: float, context: float, output: float, batch: int = 64) -> float:
        """Seconds of a busy engine that a call takes, of whose `context` so many tokens are `new`: its part of steps shared by
        `batch` sequences of its kind."""
        step = self.step(batch, batch * (context + output / 2))
        return new * self.prefill + output * step / batch


def load(path: Path | None = None) -> EngineModel:
    """A fitted model from JSON; by default vLLM on one H100 with an 8B model, of which no step between 256 and 4,096 rows was
    measured: it is a line."""
    found = json.loads((path or HERE / "h100.json").read_text())
    steps, buckets = found.pop("steps", ()), found.pop("buckets", ())
    return EngineModel(**found, steps=tuple((rows, seconds) for rows, seconds in steps), buckets=tuple(buckets))


@dataclass(eq=False)
class Request:
    """One call on the engine. `boundaries` are the true prefixes of its whole context; `prompt` of them precede the output."""

    key: Any
    boundaries: tuple[Boundary, ...]
    prompt: int
    output: int
    missing: float = 0.0
    cached: float = 0.0
    admitted: bool = False
    dropped: bool = False
    order: float = 0.0
    ahead: bool = False
    """Nobody waits for it: a prefix that calls to come begin with."""
    first: float | None = None
    last_clock: int = 0
    generated_from: int = 0

    @property
    def prompt_tokens(self) -> float:
        return self.boundaries[self.prompt - 1].tokens if self.prompt else 0.0


@dataclass(eq=False)
class _Entry:
    tokens: float
    references: int = 0


@dataclass(eq=False)
class Engine:
    """See the module. `at` asks to be called back: at(time, function). `finished` is told each request that is through."""

    model: EngineModel
    at: Callable[[float, Callable[[float], None]], None]
    finished: Callable[[Request, float], None]
    waiting: list[Request] = field(default_factory=list)
    ahead: deque[Request] = field(default_factory=deque)
    decoding: list[tuple[int, int, Request]] = field(default_factory=list)
    totals: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("steps", "step_seconds", "computed_tokens", "drawn_tokens", "evicted_tokens"), 0.0
        )
    )
    clock: int = 0
    cached_tokens: float = 0.0
    prompt_tokens: float = 0.0
    _cache: dict[int, _Entry] = field(default_factory=dict)
    _idle: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _kept: dict[str, tuple[float, tuple[Boundary, ...]]] = field(default_factory=dict)
    _readers: dict[int, int] = field(default_factory=dict)
    _idle_kept: dict[int, None] = field(default_factory=dict)
    _stored: float = 0.0
    _read: float = 0.0
    _generated: float = 0.0
    _number: int = 0
    _plan: int = 0
    _began: float = 0.0
    _jump: tuple[int, float] | None = None
    _prompts: list[tuple[Request, float]] = field(default_factory=list)
    _pending: set[int] = field(default_factory=set)
    _handed: list[Request] = field(default_factory=list)
    _begun: dict[int, float] = field(default_factory=dict)
    """Tokens of prefixes that were being computed ahead when somebody came who needs them, and goes on with them."""

    def submit(self, request: Request, now: float) -> None:
        """A call arrives. What of its prompt is just being computed ahead it takes over."""
        if request.ahead:
            self.ahead.append(request)
        else:
            names = set(_names(request.boundaries[: request.prompt])) if self.ahead else set()
            self._handed += [r for r in self.ahead if r.boundaries[-1].name in names or self._blocks(r, names)]
            insort(self.waiting, request, key=_order)
        self._interrupt(now)

    def _hand_over(self) -> None:
        """Who computes for nobody what somebody waits for gives way to them."""
        handed, self._handed = self._handed, []
        for early in handed:
            if early in self.ahead:
                self.ahead.remove(early)
                if early.admitted:
                    self._begun[early.boundaries[-1].name] = early.prompt_tokens - early.cached - early.missing
                    self._release(early)

    def cancel(self, key: Any) -> None:
        """A call is stopped: it leaves at the next step."""
        for request in [*self.waiting, *self.ahead, *(r for _, _, r in self.decoding)]:
            if request.key == key:
                request.dropped = True

    def keep(self, name: str, boundaries: tuple[Boundary, ...], now: float, distance: float) -> None:
        """A prefix is computed, if need be, and goes last when memory is needed."""
        if name in self._kept or not boundaries:
            return
        self._kept[name] = (now + distance, boundaries)
        for boundary in _names(boundaries):
            self._readers[boundary] = self._readers.get(boundary, 0) + 1
            if boundary in self._idle:
                del self._idle[boundary]
                self._idle_kept[boundary] = None
        if any(boundary not in self._cache for boundary in _names(boundaries)):
            self.submit(Request(("", "", name), boundaries, len(boundaries), 1, ahead=True), now)

    def let_go(self, name: str) -> None:
        """It is a cache like any other."""
        _, boundaries = self._kept.pop(name, (0.0, ()))
        for boundary in _names(reversed(boundaries)):
            self._readers[boundary] -= 1
            if not self._readers[boundary]:
                del self._readers[boundary]
                if self._idle_kept.pop(boundary, 1) is None:
                    self._idle[boundary] = None

    def figures(self) -> dict[str, float]:
        """What it tells in a beat."""
        return self.totals | {"waiting": float(len(self.waiting))}

    # --- steps ---

    def _interrupt(self, now: float) -> None:
        """Something arrived: idle begins, a row of plain decode steps ends at the next step."""
        if self._jump is None:
            if not self._prompts:
                self._next(now)
            return
        steps, seconds = self._jump
        if steps > 1:
            done = min(steps, int((now - self._began) / seconds) + 1)
            self._jump = (done, seconds)
            self._schedule(self._began + done * seconds)

    def _schedule(self, time: float) -> None:
        self._plan += 1
        plan = self._plan
        self.at(time, lambda now: self._ended(now) if plan == self._plan else None)

    def _next(self, now: float) -> None:
        """Begin what comes next: a step with prompts in it, a row of decode steps, or nothing."""
        self._began, self._jump = now, None
        self._prompts = self._take_prompts()
        batch = len(self.decoding)
        if self._prompts:
            prompt = sum(tokens for _, tokens in self._prompts)
            self._schedule(now + self.model.step(batch, self._reads, prompt))
        elif batch:
            steps = max(1, self.decoding[0][0] - self.clock)
            seconds = self.model.step(batch, self._reads + batch * steps / 2)
            self._jump = (steps, seconds)
            self._schedule(now + steps * seconds)

    @property
    def _reads(self) -> float:
        """KV tokens that a step reads: those that several share, once."""
        return self._read + self._generated

    def _take_prompts(self) -> list[tuple[Request, float]]:
        self._hand_over()
        room, taken = float(self.model.chunk), list[tuple[Request, float]]()
        lead = min((r.order for _, _, r in self.decoding), default=inf)
        withheld = self._withheld(lead)
        begun = [request for request in self.waiting if request.admitted]
        new = [request for request in self.waiting if not request.admitted]
        for request in [*begun, *new, *self.ahead]:
            if request.dropped:
                self._leave(request)
                if request.admitted:
                    self._release(request)
                continue
            if not request.admitted and self._underway(request):
                continue
            if not request.admitted and not self._admit(request):
                break
            if lead < request.order:
                room, withheld = room - withheld, 0.0
            if not self.decoding and not taken and self.model.joint is not None and not request.ahead:
                room = min(room, max(self.model.joint, request.missing))
            if request in self.ahead:
                if taken and not taken[0][0].ahead:
                    break
                room = min(room, TILE - len(self.decoding) if self.decoding else IDLE)
            if room <= 0:
                break
            tokens = min(request.missing, room)
            taken.append((request, tokens))
            room -= tokens
            if room <= 0:
                break
        return taken

    def _withheld(self, lead: float) -> float:
        """Tokens of a step that are not for prompts of calls that come after the `lead`."""
        model, behind = self.model, [request for request in self.waiting if request.order > lead]
        if model.leading is None or not behind:
            return 0.0
        first = min(request.order for request in behind)
        left = [last - self.clock for last, _, request in self.decoding if request.order < first]
        prompts = [request.missing if request.admitted else request.prompt_tokens for request in behind]
        held_to = max(model.leading - len(self.decoding), 1)
        return model.chunk - held_to if pays(left, prompts, [r.order for r in behind], held_to) else 0.0

    def _ended(self, now: float) -> None:
        steps = self._jump[0] if self._jump else 1
        batch = len(self.decoding)
        self.clock += steps
        self._generated += steps * batch
        computed = sum(tokens for _, tokens in self._prompts)
        self._count(steps, now - self._began, computed, steps * batch)
        done = self._advance_prompts(now)
        while self.decoding and self.decoding[0][0] <= self.clock:
            done.append(heapq.heappop(self.decoding)[2])
        for request in done:
            self._release(request)
        self._next(now)
        for request in done:
            if not request.dropped:
                self.finished(request, now)

    def _count(self, steps: int, seconds: float, computed: float, drawn: float) -> None:
        self.totals["steps"] += steps
        self.totals["step_seconds"] += seconds
        self.totals["computed_tokens"] += computed + drawn
        self.totals["drawn_tokens"] += drawn

    def _advance_prompts(self, now: float) -> list[Request]:
        done: list[Request] = []
        for request, tokens in self._prompts:
            request.missing -= tokens
            if request.missing <= 1e-9:
                self._leave(request)
                self._store(request.boundaries[: request.prompt])
                request.first = now
                request.generated_from = self.clock
                self._generated += 1
                self.totals["drawn_tokens"] += 1
                self._number += 1
                request.last_clock = self.clock + request.output - 1
                if request.output <= 1:
                    done.append(request)
                else:
                    heapq.heappush(self.decoding, (request.last_clock, self._number, request))
        self._prompts = []
        return done

    def _leave(self, request: Request) -> None:
        """Its prompt is computed, or need not be."""
        (self.ahead if request in self.ahead else self.waiting).remove(request)

    # --- memory ---

    def _admit(self, request: Request) -> bool:
        if len(self.decoding) + sum(r.admitted for r in (*self.waiting, *self.ahead)) >= self.model.sequences:
            return False
        known = 0.0
        for boundary in request.boundaries[: request.prompt]:
            if boundary.name not in self._cache:
                break
            known = boundary.tokens
        need = request.prompt_tokens - known + request.output
        pinned = self._read + self._generated
        if pinned and pinned + need > self.model.tokens:
            return False
        request.cached = known if request.prompt_tokens > known else max(known - 1.0, 0.0)
        begun = sum(self._begun.pop(boundary.name, 0.0) for boundary in request.boundaries[: request.prompt])
        request.missing = max(request.prompt_tokens - request.cached - begun, 1.0)
        request.admitted = True
        if not request.ahead:
            self.cached_tokens += request.cached
            self.prompt_tokens += request.prompt_tokens
        before = 0.0
        for boundary in request.boundaries[: request.prompt]:
            name = boundary.name
            entry = self._cache.get(name)
            if entry is None:
                entry = self._cache[name] = _Entry(boundary.tokens - before)
                self._stored += entry.tokens
                self._pending.add(name)
            if entry.references == 0:
                self._read += entry.tokens
                self._idle.pop(name, None)
                self._idle_kept.pop(name, None)
            entry.references += 1
            before = boundary.tokens
        self._evict(request.output)
        return True

    def _underway(self, request: Request) -> bool:
        """Whether a part of its prompt is just being computed for another: it waits rather than computing it again."""
        return any(name in self._pending for name in _names(request.boundaries[: request.prompt]))

    def _blocks(self, early: Request, names: set[int]) -> bool:
        """Whether a part that goes by one of these names is just being computed with it: who needs that waits for it."""
        return early.admitted and any(n in names and n in self._pending for n in _names(early.boundaries))

    def _store(self, boundaries: tuple[Boundary, ...]) -> None:
        for name in _names(boundaries):
            self._pending.discard(name)

    def _release(self, request: Request) -> None:
        """It holds its context no more; prompt and output stay cached until the memory is needed."""
        self._keep_output(request)
        for name in _names(reversed(request.boundaries[: request.prompt])):  # a leaf goes before what it hangs on
            entry = self._cache[name]
            entry.references -= 1
            if entry.references == 0:
                self._read -= entry.tokens
                if name in self._pending:
                    self._pending.discard(name)
                    self._stored -= self._cache.pop(name).tokens
                else:
                    self._rest(name)
        self._evict(0)

    def _rest(self, name: int) -> None:
        """Nobody holds it now."""
        if name in self._readers:
            self._idle_kept[name] = None
        else:
            self._idle[name] = None

    def _keep_output(self, request: Request) -> None:
        if request.first is None:
            return
        self._generated -= self.clock - request.generated_from + 1
        after = request.boundaries[request.prompt :]
        lengths = (b.tokens - a.tokens for a, b in pairwise(request.boundaries[request.prompt - 1 :]))
        for name, tokens in reversed(list(zip(_names(after), lengths, strict=True))):
            entry = self._cache.get(name)
            if entry is None:
                self._cache[name] = _Entry(tokens)
                self._stored += tokens
                self._rest(name)
            elif name in self._idle:
                self._idle.move_to_end(name)

    def _evict(self, room: float) -> None:
        while self._stored + self._generated + room > self.model.tokens:
            if self._idle:
                name, _ = self._idle.popitem(last=False)
                tokens = self._cache.pop(name).tokens
                self._stored -= tokens
                self.totals["evicted_tokens"] += tokens
            elif self._idle_kept and self._kept:
                self.let_go(max(self._kept, key=lambda kept: self._kept[kept][0]))  # the one that is used last
            else:
                return


def _order(request: Request) -> float:
    return request.order


def _names(boundaries: Iterable[Boundary]) -> Iterator[int]:
    return (boundary.name for boundary in boundaries)
