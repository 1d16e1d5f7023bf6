"""The engine: one model serving many requests. Its loop, in the caller's thread: schedule, begin a step, read the one before.

Law: nothing that a request does can stop the loop. The engine knows no clock but the one that measures its steps, and no I/O.
Requests live in `jobs`, the programs that run in `batch`, what the model is doing in `pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from myna.engine.batch import Batch, Chunk
from myna.engine.context import ContextId, ContextStore
from myna.engine.errors import ContextBusy, ContextFreed, StepFailed
from myna.engine.interface import BatchLimits, ModelRunner
from myna.engine.jobs import Jobs
from myna.engine.pages import PagePool
from myna.engine.pins import Pins
from myna.engine.pipeline import Pipeline
from myna.engine.planner import SMALL_RUN, Planner
from myna.engine.request import LEAST, Bounds, Event, Fill, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from myna.engine.stats import EngineStats, Survey
from myna.engine.structured.grammars import Grammars
from myna.engine.survey import MOST_REQUESTS, StepLog, prefixes, requests
from myna.engine.text import decoder
from myna.engine.tree import PrefixTree
from myna.engine.turns import Turns


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


class Engine:
    """One model serving many requests. `tokenizer`: a Hugging Face tokenizer, needed for decoding alone."""

    def __init__(self, model: ModelRunner, tokenizer: Any, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.spec = model.spec
        self.limits = self.config.limits or model.suits.limits
        self.pool = _pool(model, self.config, self.limits)
        self.tree = PrefixTree(self.pool)
        self.contexts = ContextStore(self.pool, self.tree, model.copy_page)
        self.capacity = min(model.spec.context_length, self.pool.pages * self.pool.page_size)
        self._ahead = model.ahead
        self._decode = decoder(tokenizer)
        eos = frozenset(token for token in model.spec.eos_token_ids if token < model.spec.vocab_size)
        self._grammars = Grammars(tokenizer, model.spec.vocab_size, eos)
        self._pins = Pins(self.tree, self.contexts.stubs)
        self._batch = Batch(self.contexts, self.limits, self._pins.yield_farthest)
        self._turns = Turns()
        bounds = Bounds(model.spec.vocab_size, model.spec.context_length, self.capacity)
        self._jobs = Jobs(
            self.contexts, self._batch, self._pins, self._turns, self._grammars, self._decode, bounds, eos
        )
        self._pipeline = Pipeline(model, Planner(self.tree, self.config.small_run))
        self._open: set[ContextId] = set()
        self._named = 0
        self._step_log = StepLog()
        self._step_seconds = self._last_step_seconds = 0.0
        self._served = float("-inf")
        """When somebody was waited for last."""

    @property
    def has_work(self) -> bool:
        """Whether another `step` would do or say anything, at the latest when `rest` is over."""
        return bool(self._jobs) or self._jobs.has_news

    @property
    def rest(self) -> float:
        """Seconds for which steps would do nothing, if nothing comes: all that is left is for nobody, and somebody may come."""
        if self._awaited or self._pipeline or self._jobs.has_news:
            return 0.0
        return max(self._served + self.limits.calm - time.perf_counter(), 0.0)

    @property
    def _awaited(self) -> bool:
        return self._batch.awaited or self._jobs.compiles

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
        self._jobs.begin(request)

    def retain(
        self, request_id: RequestId, token_ids: Sequence[int], namespace: str = "", *, distance: float = 0.0
    ) -> None:
        """Compute a prefix if need be and keep its pages until `unpin(request_id)`: the last one, if it isn't full, for the first
        who goes on there; where such a part costs a step as much as many tokens, whole pages alone.

        `Done` says that it is there. It is computed when nothing else waits. `distance`: seconds until it is thought to be
        used; pins give way, the farthest first, before a request has to fail for want of pages.
        """
        part = 0 if self.limits.in_company else len(token_ids) % self.pool.page_size
        kept = Fill(tuple(token_ids[: len(token_ids) - part]))
        request = Request(request_id, (kept,), priority=LEAST, namespace=namespace)
        self._jobs.begin(request, due=time.perf_counter() + distance)

    def unpin(self, request_id: RequestId) -> None:
        """Let a retained prefix go; it stays cached until its pages are needed. One that is still being computed is given up.
        Unknown ids do nothing."""
        self._jobs.unpin(request_id)

    def cancel(self, request_id: RequestId) -> None:
        """End a request; its `Failed` event carries RequestCancelled. Ids that aren't under way do nothing."""
        self._jobs.cancel(request_id)

    def open_context(
        self, parent: ContextId | None = None, *, namespace: str = "", cache_prefix: bool = True
    ) -> ContextId:
        """A new context, or a fork of `parent`. It lives until `free`. Raises ContextFreed, ContextBusy."""
        if parent is None:
            context = self.contexts.open(namespace, cache_prefix=cache_prefix)
        else:
            source = self.contexts.get(parent)
            if self._turns.generates(parent):
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
        self._jobs.fail(self._turns.of(context), ContextFreed(f"context {context} was freed under its requests"))
        self._open.discard(context)
        found.free()

    def step(self) -> list[Event]:
        """Do one step of work and return what there is to say. Returns at once when there is nothing to do."""
        began = time.perf_counter()
        self._jobs.launch_compiled()
        if self._pipeline.holds_up:
            self._read(0)
        serving = self._awaited
        schedule = self._batch.schedule(calm=not serving and began - self._served >= self.limits.calm)
        for program in schedule.idle:
            self._jobs.leave(program)
        if schedule.chunks:
            self._begin(schedule.chunks)
        elif not self._pipeline:
            self._jobs.wait_for_grammars()
        if schedule.chunks or self._pipeline:
            self._read(self._ahead if schedule.chunks else 0)
            self._note_step(began)
        if serving:
            self._served = time.perf_counter()
        if self.config.checks:
            self.check()
        return self._jobs.take_news()

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
            steps=self._pipeline.steps,
            computed_tokens=self._pipeline.computed,
            drawn_tokens=self._pipeline.drawn,
            step_seconds=self._step_seconds,
            model_seconds=self._pipeline.seconds,
            last_step_seconds=self._last_step_seconds,
        )

    def survey(self) -> Survey:
        """What people may look at; the steps since the last survey."""
        return Survey(
            tuple(requests(islice(self._jobs, MOST_REQUESTS))),
            self._step_log.take(time.perf_counter()),
            tuple(prefixes(self.tree.roots, self._decode)),
            max(len(self._jobs) - MOST_REQUESTS, 0),
        )

    def check(self) -> None:
        """Verify every invariant of pages, tree, contexts and batch. Raises AssertionError."""
        self.contexts.check(self._pins.nodes)
        self._batch.check()
        assert self._jobs.contexts() | self._open == {context.id for context in self.contexts}, "a context has no owner"

    def _submit_to(self, context: ContextId, step: Fill | Generate) -> RequestId:
        found = self.contexts.get(context)
        self._named += 1
        request_id = RequestId(f"context-{context}-{self._named}")
        self.submit(
            Request(request_id, (step,), namespace="" if not found.caches else found.namespace, context=context)
        )
        return request_id

    def _begin(self, chunks: Sequence[Chunk]) -> None:
        try:
            self._pipeline.begin(chunks)
        except StepFailed as error:
            self._jobs.fail([chunk.program for chunk in chunks], error)
        else:
            self._batch.begun(chunks)

    def _read(self, most: int) -> None:
        """Read what steps have drawn until at most so many are still under way."""
        while len(self._pipeline) > most:
            step = self._pipeline.take_oldest()
            try:
                drawn = self._pipeline.read(step)
            except StepFailed as error:
                self._jobs.fail(step.programs, error)
                continue
            for (program, output, _), draw in zip(step.drawing, drawn, strict=True):
                self._jobs.take(program, output, draw)

    def _note_step(self, began: float) -> None:
        self._last_step_seconds = time.perf_counter() - began
        self._step_seconds += self._last_step_seconds
        self._step_log.note(
            began,
            self._last_step_seconds,
            computed=self._pipeline.computed,
            drawn=self._pipeline.drawn,
            running=len(self._batch.running),
            waiting=len(self._batch.waiting),
            pages=self.pool.pages - self.pool.free,
        )


def _pool(model: ModelRunner, config: EngineConfig, limits: BatchLimits) -> PagePool:
    """The pages that a configuration asks for, with the model's memory behind them."""
    size = config.page_size or model.suits.page_size
    room = model.prepare(limits, graphs=config.graphs)
    kv_bytes = room if config.kv_bytes is None else config.kv_bytes
    kv_tokens = config.kv_tokens or kv_bytes // max(model.spec.kv_bytes_per_token, 1)
    pool = PagePool(max(kv_tokens // size, 1), size)
    model.allocate(pool.pages, size)
    return pool
