"""Requests under way, from their submission to their last event. No torch, no model, no clock here.

Law: every request ends in exactly one last event, `Done` or `Failed`; one that can't be served fails alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from myna.engine.batch import Batch
from myna.engine.context import Context, ContextId, ContextStore
from myna.engine.errors import ConstraintFailed, RequestCancelled, RequestError, StepFailed
from myna.engine.output import Output
from myna.engine.pins import Pins
from myna.engine.program import Program, ProgramState
from myna.engine.request import Bounds, Done, Event, Failed, Finished, Request, RequestId
from myna.engine.sampler import Drawn
from myna.engine.structured.compiling import Compiling
from myna.engine.structured.grammars import Grammars
from myna.engine.text import Decode
from myna.engine.turns import Turns


@dataclass(slots=True)
class _Job:
    """A request with the programs that it consists of: one, or its siblings. `due`: when the prefix that it computes is thought
    to be used; None if it is there for its outputs."""

    request: Request
    arrival: int
    due: float | None
    programs: list[Program] = field(default_factory=list)
    grammars: Compiling = field(default_factory=Compiling)


class Jobs:
    """The requests of one engine. `eos_token_ids`: the model's own that end an output."""

    def __init__(
        self, contexts: ContextStore, batch: Batch, pins: Pins, turns: Turns, grammars: Grammars, decode: Decode,
        bounds: Bounds, eos_token_ids: frozenset[int],
    ) -> None:  # fmt: skip
        self._contexts = contexts
        self._batch = batch
        self._pins = pins
        self._turns = turns
        self._grammars = grammars
        self._decode = decode
        self._bounds = bounds
        self._eos_token_ids = eos_token_ids
        self._jobs: dict[RequestId, _Job] = {}
        self._compiling: dict[RequestId, _Job] = {}
        self._events: list[Event] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._jobs

    def __iter__(self) -> Iterator[tuple[RequestId, Sequence[Program]]]:
        return ((request_id, job.programs) for request_id, job in self._jobs.items())

    @property
    def compiles(self) -> bool:
        """Whether a request waits for its grammars."""
        return bool(self._compiling)

    @property
    def has_news(self) -> bool:
        """Whether there is an event to tell."""
        return bool(self._events)

    def take_news(self) -> list[Event]:
        """The events since they were taken last."""
        events, self._events = self._events, []
        return events

    def begin(self, request: Request, due: float | None = None) -> None:
        """Take a request in. Raises ValueError if one of its id is under way; whatever else is wrong becomes its last event."""
        if request.id in self._jobs:
            raise ValueError(f"request {request.id!r} is already under way")
        self._arrivals += 1
        job = self._jobs[request.id] = _Job(request, self._arrivals, due)
        try:
            self._bounds.check(request)
        except RequestError as error:
            self._fail(job, error)
            return
        job.grammars = Compiling.of(request, self._grammars)
        if job.grammars.done or request.context is not None:  # in an open context requests come in their order
            self._launch(job)
        else:
            self._compiling[request.id] = job

    def launch_compiled(self) -> None:
        """Launch what waited for its grammars, and has them now."""
        for job in [job for job in self._compiling.values() if job.grammars.done]:
            self._launch(job)

    def wait_for_grammars(self) -> None:
        """For a moment, if there is something to wait for."""
        job = next(iter(self._compiling.values()), None)
        if job is not None:
            job.grammars.wait()

    def cancel(self, request_id: RequestId) -> None:
        """End a request. Ids that aren't under way do nothing."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._fail(job, RequestCancelled(f"request {request_id!r} was cancelled"))

    def unpin(self, request_id: RequestId) -> None:
        """Let the prefix of that name go, or give it up while it is computed."""
        job = self._jobs.get(request_id)
        if job is not None and job.due is not None:
            self._fail(job, RequestCancelled(f"prefix {request_id!r} need not be kept"))
        self._pins.let_go(request_id)

    def fail(self, programs: Sequence[Program], error: RequestError) -> None:
        """End the requests of these programs, as far as they are still under way."""
        for program in programs:
            job = self._jobs.get(program.request.id)
            if job is not None and program in job.programs:
                self._fail(job, error)

    def take(self, program: Program, output: Output, draw: Drawn) -> None:
        """A step has drawn a program's next token, for that output."""
        if program.state is ProgramState.ENDED or program.output is not output:
            return  # it was cancelled, or the output ended a step ago: nobody wants this one
        matcher = output.matcher
        if matcher is not None and (reason := matcher.error):
            self._fail_of(program, ConstraintFailed(f"the output can't be brought to an end in its format: {reason}"))
            return
        if draw.token is None:
            self._fail_of(program, StepFailed("the model's logits are no numbers"))
            return
        events = program.accept(draw.token, draw.logprob)
        self._events += events
        if events and isinstance(events[-1], Finished) and self._settle(program) and program.finished:
            self._end(program)

    def leave(self, program: Program) -> None:
        """A running program has nothing to compute: it splits into siblings, or it has ended."""
        assert program.output is None, "an output is under way and nothing is left to compute for it"
        if program.must_fork:
            self._split(program)
        else:
            self._end(program)

    def contexts(self) -> set[ContextId]:
        """Those that programs work in."""
        return {program.context.id for job in self._jobs.values() for program in job.programs}

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
        order, capacity = (job.arrival, 0), self._bounds.capacity
        program = Program(request, context, order, capacity, self._decode, self._eos_token_ids, grammars)
        job.programs.append(program)
        if self._turns.join(program):
            self._start(program)
        elif not self._turns.generates(context.id):
            self._settle(program)  # nothing but fills: the context's tokens are known at once, to its forks too

    def _context_of(self, request: Request) -> Context:
        if request.context is not None:
            return self._contexts.get(request.context)
        return self._contexts.open(request.namespace, cache_prefix=request.cache_prefix)

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
            self._fail_of(program, error)
            return False
        return True

    def _split(self, program: Program) -> None:
        """Put a program's siblings in its place. In an open context it keeps its turn until the last of them has ended."""
        job = self._jobs[program.request.id]
        siblings = program.siblings(Context.fork)
        self._batch.end(program)
        job.programs = list(siblings)
        if program.owns_context:
            self._turns.leave(program)
            program.context.free()
        else:
            job.programs.append(program)
        for sibling in siblings:
            if not self._settle(sibling):
                return
            self._batch.add(sibling)

    def _end(self, program: Program) -> None:
        """A program is through: free what it owns; the last one ends its request."""
        job = self._jobs[program.request.id]
        if job.due is not None:
            program.context.publish()
            self._pins.keep(job.request.id, program.context, job.due)
        job.programs.remove(program)
        self._let_go(program)
        if all(other.must_fork for other in job.programs):  # at most the one that its siblings came from
            for other in job.programs:
                self._let_go(other)
            del self._jobs[job.request.id]
            self._events.append(Done(job.request.id))

    def _let_go(self, program: Program) -> None:
        """Take a program off the batch and its context, and start the next one there."""
        context = program.context
        if context.unread and not program.owns_context and self._turns.has(program):
            context.truncate(len(context.tokens))  # what a step under way still draws is nobody's
        self._batch.end(program)
        following = self._turns.leave(program)
        if program.owns_context:
            context.free()
        elif following is not None:
            self._start(following)

    def _fail_of(self, program: Program, error: RequestError) -> None:
        self._fail(self._jobs[program.request.id], error)

    def _fail(self, job: _Job, error: RequestError) -> None:
        """End a request that can't go on. Its last event."""
        if self._jobs.pop(job.request.id, None) is None:
            return
        self._compiling.pop(job.request.id, None)
        programs, job.programs = job.programs, []
        self._events.append(Failed(job.request.id, error))
        for program in programs:
            self._let_go(program)
