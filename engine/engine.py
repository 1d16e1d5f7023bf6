"""The engine loop: schedule, plan, begin a step, read what the step before has drawn, announce. In the caller's thread.

On a GPU a step begins before the one before it is read: its tokens feed it on the device. What the host learns a step
late (that an output has ended) costs one surplus token, which is dropped. Steps take effect in the order in which they
begin, so pages given back early are written by nobody else too soon. An output with a constraint doesn't hold that up: while
the step runs, the tokens before are read and its masks computed, and only then are this step's tokens drawn.

Nothing that a request does can stop the loop: a request that can't be served ends in a `Failed` event of its own. The
engine knows no clock but the one that measures its steps, and no I/O.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from myna.engine.batch import LEAST, Batch, Chunk
from myna.engine.context import Context, ContextId, ContextStore
from myna.engine.errors import (
    ConstraintFailed,
    ContextBusy,
    ContextFreed,
    InvalidPrompt,
    PromptTooLong,
    RequestCancelled,
    RequestError,
    StepFailed,
)
from myna.engine.interface import BatchLimits, ModelRunner, StepUnderWay
from myna.engine.output import Output
from myna.engine.pages import PagePool
from myna.engine.planner import SMALL_RUN, Planner
from myna.engine.program import Program, ProgramState
from myna.engine.request import Done, Event, Failed, Fill, Finished, Generate, Request, RequestId
from myna.engine.sampler import Drawn, Row
from myna.engine.sampling import SamplingParams
from myna.engine.stats import EngineStats, Survey
from myna.engine.structured.compiling import Compiling
from myna.engine.structured.grammars import Grammars
from myna.engine.structured.masks import Masks
from myna.engine.structured.matcher import Mask, Matcher
from myna.engine.survey import MOST_REQUESTS, StepLog, prefixes, requests
from myna.engine.text import decoder
from myna.engine.tree import Node, PrefixTree

_NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """As it is, an engine in production: None takes what suits the model on its device.

    `page_size` is in tokens. `kv_tokens`: tokens of KV in all; None takes as many as `kv_bytes` hold. `checks`: verify all
    invariants after every step (for tests; it is slow). `graphs`: replay captured steps where the device can.
    `small_run`: tokens that several requests must share for them to be read together.
    """

    page_size: int | None = None
    kv_tokens: int | None = None
    kv_bytes: int | None = None
    limits: BatchLimits | None = None
    checks: bool = False
    graphs: bool = True
    small_run: int = SMALL_RUN


@dataclass(slots=True)
class _UnderWay:
    """A step that has begun. `drawing`: for each of its draws, whose it is, for which output, and as which of its draws."""

    step: StepUnderWay
    chunks: Sequence[Chunk]
    drawing: Sequence[tuple[Program, Output, int]]
    holds_up: bool
    """Whether the next step can't be planned before this one's draws are known."""
    _drawn: list[Drawn] | None = None

    def foresee(self) -> bool:
        """Tell the matchers of what has been drawn, before its programs are told. False if that was done before."""
        if self._drawn is not None:
            return False
        for (_, output, number), draw in zip(self.drawing, self.read(), strict=True):
            if output.matcher is not None and draw.token is not None:
                output.matcher.take(number, draw.token)
        return True

    def read(self) -> list[Drawn]:
        """What has been drawn, as soon as it is there."""
        if self._drawn is None:
            self._drawn = self.step.read()
        return self._drawn


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """What a grammar says of the next token of a step that has just begun. Whoever asks first has what the steps before have
    drawn read, and `matchers` computed."""

    before: Iterable[_UnderWay]
    matcher: Matcher
    matchers: Sequence[Matcher]
    masks: Masks

    def allows(self, token: int) -> bool:
        """See `sampler.Constrained`."""
        self._foresee()
        return self.matcher.allows(token)

    def mask(self) -> Mask | None:
        """See `sampler.Constrained`."""
        self._foresee()
        return self.matcher.mask()

    def _foresee(self) -> None:
        if [step for step in self.before if step.foresee()]:
            self.masks.begin(self.matchers)


@dataclass(slots=True)
class _Job:
    """A request under way, with the programs that it consists of: one, or its siblings."""

    request: Request
    programs: list[Program]
    pins: bool = False
    arrival: int = 0
    grammars: Compiling = field(default_factory=Compiling)


class Engine:
    """One model serving many requests. `tokenizer`: a Hugging Face tokenizer, needed for decoding alone."""

    def __init__(self, model: ModelRunner, tokenizer: Any, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.spec = model.spec
        self._model = model
        self._decode = decoder(tokenizer)
        self.limits = self.config.limits or model.suits.limits
        size = self.config.page_size or model.suits.page_size
        kv_bytes = model.prepare(self.limits, graphs=self.config.graphs)
        if self.config.kv_bytes is not None:
            kv_bytes = self.config.kv_bytes
        kv_tokens = self.config.kv_tokens or kv_bytes // max(model.spec.kv_bytes_per_token, 1)
        self.pool = PagePool(max(kv_tokens // size, 1), size)
        model.allocate(self.pool.pages, size)
        self.tree = PrefixTree(self.pool)
        self.contexts = ContextStore(self.pool, self.tree, model.copy_page)
        self.capacity = min(model.spec.context_length, self.pool.pages * size)
        self._eos = frozenset(token for token in model.spec.eos_token_ids if token < model.spec.vocab_size)
        self._batch = Batch(self.contexts, self.limits, self._unpin_farthest)
        self._planner = Planner(self.tree, self.config.small_run)
        self._grammars = Grammars(tokenizer, model.spec.vocab_size, self._eos)
        self._masks = Masks(model.spec.vocab_size)
        self._under_way: deque[_UnderWay] = deque()
        self._jobs: dict[RequestId, _Job] = {}
        self._compiling: dict[RequestId, _Job] = {}
        self._queues: dict[ContextId, deque[Program]] = {}
        self._open: set[ContextId] = set()
        self._pins: dict[RequestId, Node] = {}
        self._due: dict[RequestId, float] = {}
        self._events: list[Event] = []
        self._arrivals = 0
        self._named = 0
        self._step_log = StepLog()
        self._steps = self._computed = self._drawn = 0
        self._step_seconds = self._model_seconds = self._last_step_seconds = 0.0

    @property
    def has_work(self) -> bool:
        """Whether another `step` would do or say anything."""
        return bool(self._jobs or self._events)

    def prepare_constraints(self) -> None:
        """Get ready for outputs with constraints now, not when the first comes: it takes a second for large vocabularies. Raises
        InvalidConstraint where the tokenizer knows none."""
        self._grammars.prepare()

    def knows(self, request_id: RequestId) -> bool:
        """Whether a request of that id is under way."""
        return request_id in self._jobs

    def submit(self, request: Request) -> None:
        """Take a request in. Whatever is wrong with it comes back as its `Failed` event from the next step.

        Raises ValueError if a request of that id is under way.
        """
        self._submit(request, pins=False)

    def retain(
        self, request_id: RequestId, token_ids: Sequence[int], namespace: str = "", *, distance: float = 0.0
    ) -> None:
        """Compute a prefix if need be and keep its whole pages in the tree until `unpin(request_id)`.

        `Done` says that it is there. It is computed when nothing else waits. `distance`: seconds until it is thought to be
        used; pins give way, the farthest first, before a request has to fail for want of pages.
        """
        request = Request(request_id, (Fill(tuple(token_ids)),), priority=LEAST, namespace=namespace)
        self._due[request_id] = time.perf_counter() + distance
        self._submit(request, pins=True)

    def unpin(self, request_id: RequestId) -> None:
        """Let a retained prefix go; it stays cached until its pages are needed. One that is still being computed is given up.
        Unknown ids do nothing."""
        job = self._jobs.get(request_id)
        if job is not None and job.pins:
            self._fail(job, RequestCancelled(f"prefix {request_id!r} need not be kept"))
        self._due.pop(request_id, None)
        node = self._pins.pop(request_id, None)
        if node is not None:
            self.tree.unlock(node)

    def cancel(self, request_id: RequestId) -> None:
        """End a request; its `Failed` event carries RequestCancelled. Ids that aren't under way do nothing."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._fail(job, RequestCancelled(f"request {request_id!r} was cancelled"))

    def open_context(
        self, parent: ContextId | None = None, *, namespace: str = "", cache_prefix: bool = True
    ) -> ContextId:
        """A new context, or a fork of `parent`. It lives until `free`. Raises ContextFreed, ContextBusy."""
        if parent is None:
            context = self.contexts.open(namespace, cache_prefix=cache_prefix)
        else:
            source = self.contexts.get(parent)
            if any(_generates(program.request) for program in self._queues.get(parent, ())):
                raise ContextBusy(f"context {parent} is still being generated into; fork it before or after")
            context = source.fork()
        self._open.add(context.id)
        return context.id

    def fork(self, context: ContextId) -> ContextId:
        """A context with the same tokens, sharing the KV. Raises ContextFreed, ContextBusy."""
        return self.open_context(context)

    def fill(self, context: ContextId, token_ids: Sequence[int]) -> RequestId:
        """Append tokens to an open context and compute them; returns the id under which `Done` will come."""
        return self._submit_to(context, Fill(tuple(token_ids)))

    def generate(self, context: ContextId, sampling: SamplingParams) -> RequestId:
        """Generate in an open context, behind what was submitted to it before; returns the request's id."""
        return self._submit_to(context, Generate(0, sampling))

    def free(self, context: ContextId) -> None:
        """Free an open context; what is under way in it fails with ContextFreed. Raises ContextFreed if it was freed."""
        found = self.contexts.get(context)
        for program in list(self._queues.get(context, ())):
            job = self._jobs.get(program.request.id)
            if job is not None:
                self._fail(job, ContextFreed(f"context {context} was freed under request {program.request.id!r}"))
        self._open.discard(context)
        found.free()

    def step(self) -> list[Event]:
        """Do one step of work and return what there is to say. Returns at once when there is nothing to do."""
        began = time.perf_counter()
        for job in [job for job in self._compiling.values() if job.grammars.done]:
            self._launch(job)
        if self._under_way and self._under_way[-1].holds_up:
            self._read(0)
        schedule = self._batch.schedule()
        for program in schedule.idle:
            self._leave(program)
        if schedule.chunks:
            self._begin(schedule.chunks)
        elif self._compiling and not self._under_way:
            next(iter(self._compiling.values())).grammars.wait()
        if schedule.chunks or self._under_way:
            self._read(self._model.ahead if schedule.chunks else 0)
            self._last_step_seconds = time.perf_counter() - began
            self._step_seconds += self._last_step_seconds
            self._note_step(began)
        if self.config.checks:
            self.check()
        events, self._events = self._events, []
        return events

    def stats(self) -> EngineStats:
        """What the engine holds and has done."""
        tree = self.tree.statistics
        return EngineStats(
            running=len(self._batch.running),
            waiting=len(self._batch.waiting),
            contexts=len(self.contexts),
            pins=len(self._pins),
            pages=self.pool.pages,
            free_pages=self.pool.free,
            evictable_pages=self.tree.evictable_pages,
            lookup_tokens=tree.lookup_tokens,
            hit_tokens=tree.hit_tokens,
            evicted_tokens=tree.evicted_tokens,
            preemptions=self._batch.preemptions,
            steps=self._steps,
            computed_tokens=self._computed,
            drawn_tokens=self._drawn,
            step_seconds=self._step_seconds,
            model_seconds=self._model_seconds,
            last_step_seconds=self._last_step_seconds,
        )

    def _note_step(self, began: float) -> None:
        self._step_log.note(
            began,
            self._last_step_seconds,
            computed=self._computed,
            drawn=self._drawn,
            running=len(self._batch.running),
            waiting=len(self._batch.waiting),
            pages=self.pool.pages - self.pool.free,
        )

    def survey(self) -> Survey:
        """What people may look at; the steps since the last survey."""
        shown = islice(self._jobs.items(), MOST_REQUESTS)
        return Survey(
            tuple(requests((id_, job.programs) for id_, job in shown)),
            self._step_log.take(time.perf_counter()),
            tuple(prefixes(self.tree.roots, self._decode)),
            max(len(self._jobs) - MOST_REQUESTS, 0),
        )

    def check(self) -> None:
        """Verify every invariant of pages, tree, contexts and batch. Raises AssertionError."""
        self.contexts.check(list(self._pins.values()))
        self._batch.check()
        held = {program.context.id for job in self._jobs.values() for program in job.programs} | self._open
        assert held == {context.id for context in self.contexts}, "a context has no owner"

    def _submit_to(self, context: ContextId, step: Fill | Generate) -> RequestId:
        found = self.contexts.get(context)
        self._named += 1
        request_id = RequestId(f"context-{context}-{self._named}")
        self.submit(
            Request(request_id, (step,), namespace="" if not found.caches else found.namespace, context=context)
        )
        return request_id

    def _submit(self, request: Request, *, pins: bool) -> None:
        if request.id in self._jobs:
            raise ValueError(f"request {request.id!r} is already under way")
        self._arrivals += 1
        job = self._jobs[request.id] = _Job(request, [], pins, self._arrivals)
        try:
            self._validate(request)
        except RequestError as error:
            self._fail(job, error)
            return
        job.grammars = Compiling.of(request, self._grammars)
        if job.grammars.done or request.context is not None:  # in an open context requests come in their order
            self._launch(job)
        else:
            self._compiling[request.id] = job

    def _launch(self, job: _Job) -> None:
        """Make a request's program, now that its grammars are compiled."""
        request = job.request
        self._compiling.pop(request.id, None)
        try:
            grammars = job.grammars.result()
            context = self._context_of(request)
        except RequestError as error:
            self._fail(job, error)
            return
        program = Program(request, context, (job.arrival, 0), self.capacity, self._decode, self._eos, grammars)
        job.programs.append(program)
        queue = self._queues.setdefault(context.id, deque())
        queue.append(program)
        if len(queue) == 1:
            self._start(program)
        elif not any(_generates(queued.request) for queued in queue):
            self._settle(program)  # nothing but fills: the context's tokens are known at once, to its forks too

    def _context_of(self, request: Request) -> Context:
        if request.context is not None:
            return self.contexts.get(request.context)
        return self.contexts.open(request.namespace, cache_prefix=request.cache_prefix)

    def _validate(self, request: Request) -> None:
        total = 0
        for step in request.steps:
            match step:
                case Fill(token_ids):
                    total += len(token_ids)
                    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.spec.vocab_size:
                        raise InvalidPrompt(f"a token id lies outside the vocabulary of {self.spec.vocab_size} tokens")
                case Generate(sampling=sampling, forced_token_ids=forced):
                    sampling.check_vocabulary(self.spec.vocab_size)
                    if any(not 0 <= token < self.spec.vocab_size for tokens in forced for token in tokens):
                        raise InvalidPrompt("a forced token id lies outside the vocabulary")
        if total + 1 > self.capacity:
            pool = self.capacity < self.spec.context_length
            raise PromptTooLong(total, self.capacity, *(("the KV pool",) if pool else ()))

    def _start(self, program: Program) -> None:
        """Settle a program whose turn in its context has come, and queue it."""
        if self._settle(program):
            self._batch.add(program)

    def _settle(self, program: Program) -> bool:
        """Let a program go on by itself; False if it failed."""
        try:
            for event in program.settle():
                self._events.append(event)
        except RequestError as error:
            self._fail(self._jobs[program.request.id], error)
            return False
        return True

    def _leave(self, program: Program) -> None:
        """A running program has nothing to compute: it splits into siblings, or it has ended."""
        assert program.output is None, "an output is under way and nothing is left to compute for it"
        if program.must_fork:
            self._split(program)
        else:
            self._end(program)

    def _split(self, program: Program) -> None:
        job = self._jobs[program.request.id]
        siblings = program.siblings(self._fork)
        self._batch.end(program)
        job.programs = siblings
        if program.owns_context:
            self._queues.pop(program.context.id)
            program.context.free()
        else:
            job.programs = [
                *siblings,
                program,
            ]  # it keeps its turn in the open context until the last sibling has ended
        for sibling in siblings:
            if not self._settle(sibling):
                return
            self._batch.add(sibling)

    def _fork(self, context: Context) -> Context:
        return context.fork()

    def _end(self, program: Program) -> None:
        """A program is through: free what it owns; the last one ends its request."""
        job = self._jobs[program.request.id]
        if job.pins:
            self._pin(job, program.context)
        job.programs.remove(program)
        self._let_go(program)
        if all(other.must_fork for other in job.programs):  # at most the one that its siblings came from
            for other in job.programs:
                self._let_go(other)
            del self._jobs[job.request.id]
            self._events.append(Done(job.request.id))

    def _pin(self, job: _Job, context: Context) -> None:
        context.publish()
        before = self._pins.pop(job.request.id, None)
        self._pins[job.request.id] = self.tree.acquire(context.namespace, context.tokens)
        if before is not None:
            self.tree.unlock(before)

    def _unpin_farthest(self) -> bool:
        """Give up the pin whose next use is farthest away."""
        if not self._pins:
            return False
        self.unpin(max(self._pins, key=lambda pin: self._due.get(pin, 0.0)))
        return True

    def _let_go(self, program: Program) -> None:
        """Take a program off the batch and its context, and start the next one there."""
        context = program.context
        queue = self._queues.get(context.id)
        if context.unread and not program.owns_context and queue and queue[0] is program:
            context.truncate(len(context.tokens))  # what a step under way still draws is nobody's; the head alone draws
        self._batch.end(program)
        head = bool(queue) and queue is not None and queue[0] is program
        if queue is not None and program in queue:
            queue.remove(program)
            if not queue:
                del self._queues[context.id]
        if program.owns_context:
            context.free()
        elif head and queue:
            self._start(queue[0])

    def _fail(self, job: _Job, error: RequestError) -> None:
        """End a request that can't go on. Its last event."""
        if self._jobs.pop(job.request.id, None) is None:
            return
        self._compiling.pop(job.request.id, None)
        programs, job.programs = job.programs, []
        self._events.append(Failed(job.request.id, error))
        for program in programs:
            self._let_go(program)

    def _begin(self, chunks: Sequence[Chunk]) -> None:
        """Begin a step. From here on its tokens count as computed: whatever begins later comes after it."""
        plan = self._planner.plan(chunks)
        drawing = [_draw_of(chunk.program) for chunk in chunks if chunk.draws]
        matchers = [
            output.matcher for _, output, _ in drawing if output.matcher is not None and self._wants_mask(output)
        ]
        if not any(step.drawing for step in self._under_way):
            self._masks.begin(matchers)
        began = time.perf_counter()
        try:
            step = self._model.begin(plan, [self._row(program, output, matchers) for program, output, _ in drawing])
        except Exception as error:  # whatever the model does, the requests of other steps go on
            self._abandon(chunks, error)
            return
        self._model_seconds += time.perf_counter() - began
        self._steps += 1
        self._computed += len(plan.token_ids)
        for chunk in chunks:
            self._batch.computed(chunk)
        for place, (program, *_) in enumerate(drawing):
            program.expect(place)
        holds_up = any(output.sampling.penalised for _, output, _ in drawing)
        self._under_way.append(_UnderWay(step, chunks, drawing, holds_up))

    def _row(self, program: Program, output: Output, matchers: Sequence[Matcher]) -> Row:
        """What the next draw depends on. Where penalties count the tokens so far, all of these have been read."""
        unread = program.context.unread
        banned = output.stop_tokens if output.bans_stops(unread) else _NOTHING
        position = len(program.context.tokens) + unread
        constraint = (
            None if output.matcher is None else _Foreseen(self._under_way, output.matcher, matchers, self._masks)
        )
        return Row(output.sampling, output.seed, position, output.counts, output.prompt_ids, banned, constraint)

    def _wants_mask(self, output: Output) -> bool:
        """Whether all tokens that may come are surely wanted, and not only whether one of them is: see `sampler`."""
        return self.spec.device != "cpu" or (output.sampling.cuts and not output.sampling.greedy)

    def _read(self, most: int) -> None:
        """Read what steps have drawn until at most so many are still under way."""
        while len(self._under_way) > most:
            under_way = self._under_way.popleft()
            began = time.perf_counter()
            try:
                drawn = under_way.read()
            except Exception as error:
                self._abandon(under_way.chunks, error)
                continue
            self._model_seconds += time.perf_counter() - began
            self._drawn += len(drawn)
            for (program, output, _), draw in zip(under_way.drawing, drawn, strict=True):
                # A program that was cancelled, or whose output ended a step ago, has no use for this draw.
                if program.state is not ProgramState.ENDED and program.output is output:
                    self._take(program, draw)

    def _abandon(self, chunks: Sequence[Chunk], cause: Exception) -> None:
        for chunk in chunks:
            job = self._jobs.get(chunk.program.request.id)
            if job is not None and chunk.program in job.programs:
                error = StepFailed(f"the model failed: {type(cause).__name__}: {cause}")
                error.__cause__ = cause
                self._fail(job, error)

    def _take(self, program: Program, draw: Drawn) -> None:
        job = self._jobs[program.request.id]
        matcher = _output(program).matcher
        if matcher is not None and (reason := matcher.error):
            self._fail(job, ConstraintFailed(f"the output can't be brought to an end in its format: {reason}"))
            return
        if draw.token is None:
            self._fail(job, StepFailed("the model's logits are no numbers"))
            return
        events = program.accept(draw.token, draw.logprob)
        self._events += events
        if events and isinstance(events[-1], Finished) and self._settle(program) and program.finished:
            self._end(program)


def _output(program: Program) -> Output:
    assert program.output is not None
    return program.output


def _draw_of(program: Program) -> tuple[Program, Output, int]:
    """The next draw of a program: for which output, and the how manieth it is."""
    output = _output(program)
    return program, output, output.drawn + program.context.unread


def _generates(request: Request) -> bool:
    return any(isinstance(step, Generate) for step in request.steps)
