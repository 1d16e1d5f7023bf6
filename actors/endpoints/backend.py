"""The backend of one endpoint's worker: each call is a task that asks the endpoint, and reports what comes.

Laws:
- An attempt is asked of the endpoint once. What fails there is told to the scheduler, which knows who else serves the model.
- What the endpoint can't take now is refused, and costs the call no try; meanwhile the worker offers nothing (see `gate`).
- No call is asked for that its budgets don't cover.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import assert_never

import structlog

from myna.actors.endpoints.budget import Ledger, Reserve, at_most, cost
from myna.actors.endpoints.client import Client, Fault, Trouble
from myna.actors.endpoints.gate import Gate
from myna.actors.endpoints.pieces import Answer
from myna.actors.endpoints.requests import Request, Texts, Unsupported, check, places, requests
from myna.actors.endpoints.settings import Endpoint
from myna.actors.endpoints.verdict import verdict
from myna.actors.messages import (
    ErrorCode,
    Failure,
    ModelCall,
    Output,
    Usage,
    VarId,
    WorkerKind,
)
from myna.actors.worker.backend import (
    Job,
    JobEnded,
    JobFailed,
    JobRefused,
    Offer,
    Offered,
    OutputEnded,
    Produced,
    Reporter,
)
from myna.actors.worker.tasks import TaskBackend

log = structlog.get_logger(__name__)


class EndpointBackend(TaskBackend):
    """See the module. `ledger` is shared by all endpoints of a host."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._ledger = ledger
        self._client: Client
        self._gate: Gate
        self._models = dict(endpoint.models)
        self._told: Offer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._woken = asyncio.Event()
        self._counts = dict.fromkeys(("requests", "failures", "limited", "refused", "output_tokens", "cost"), 0)

    # --- life ---

    async def start(self, report: Reporter) -> Offer:
        """Look whether somebody is there. If nobody is, the offer says so, and another follows when that changes."""
        self._report = report
        self._client = Client(self._endpoint)
        self._gate = Gate(self._endpoint.concurrency, self._now())
        await self._look()
        self._told = self._offer()
        self._watching = asyncio.create_task(self._watch(), name=f"endpoint {self._endpoint.name}")
        return self._told

    async def close(self) -> None:
        """Leave what runs, and the endpoint."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        await super().close()
        if self._told is not None:
            await self._client.close()

    def load(self) -> dict[str, float]:
        """Calls that run, and what was asked so far."""
        return {"running": float(len(self._jobs)), **{name: float(n) for name, n in self._counts.items()}}

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # --- what is offered ---

    def _offer(self) -> Offer:
        endpoint, opening = self._endpoint, self._gate.opening(self._now())
        serves = tuple(self._models) if opening.serves else ()
        return Offer(
            WorkerKind.ENGINE,
            serves,
            min(opening.capacity, endpoint.concurrency),
            context_length=endpoint.context_length,
            paused=opening.paused,
            named_only=endpoint.by_name_only or not serves,
        )

    def _refresh(self) -> None:
        """Tell when what is offered has changed, now and when time alone changes it."""
        if self._told is None:
            return
        offer = self._offer()
        if offer != self._told:
            if offer.paused != self._told.paused:
                log.info("endpoint", name=self._endpoint.name, paused=offer.paused or "no more", serves=offer.serves)
            self._told = offer
            self._report(Offered(offer))
            self._woken.set()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        until = self._gate.opening(self._now()).until
        if until is not None and self._gate.due is None:
            self._alarm = asyncio.get_running_loop().call_at(until + 0.001, self._refresh)

    async def _watch(self) -> None:
        """Look after the endpoint: soon where it has failed, now and then where nothing is heard of it."""
        while True:
            at = self._look_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(at - self._now(), 0.0)):
                    await self._woken.wait()
            self._woken.clear()
            if self._now() >= self._look_at():
                await self._look()
                self._refresh()

    def _look_at(self) -> float:
        due = self._gate.due
        return self._heard_at + self._endpoint.health_seconds if due is None else due

    async def _look(self) -> None:
        began = self._now()
        try:
            models = await self._client.models()
        except Trouble as trouble:
            self._blame(trouble, began)
        except Exception:
            log.exception("looking after an endpoint failed", name=self._endpoint.name)
            self._gate.failed(began, self._now(), "looking after it failed; the log of its worker says how")
        else:
            if not self._endpoint.models:
                self._models = {model: model for model in models}
            self._gate.answered(self._now())
        self._heard_at = self._now()

    def _blame(self, trouble: Trouble, began: float) -> None:
        """What the trouble says of the endpoint itself."""
        now = self._now()
        match trouble.fault:
            case Fault.LIMITED:
                self._gate.limited(began, now, trouble.after)
                self._counts["limited"] += 1
            case Fault.ABSENT | Fault.FAILED | Fault.BROKEN:
                self._gate.failed(began, now, _SHORTLY[trouble.fault], broken=trouble.fault is Fault.BROKEN)
                self._counts["failures"] += 1
                log.warning("endpoint failed", name=self._endpoint.name, reason=str(trouble))
            case Fault.REJECTED:
                self._gate.succeeded()
            case _:
                assert_never(trouble.fault)

    # --- calls ---

    async def _run(self, job: Job) -> None:
        assert isinstance(job.call, ModelCall)
        paused = self._gate.opening(self._now()).paused
        if paused:
            self._refuse(job, Failure(code=ErrorCode.WORKER_LOST, message=paused, retryable=True))
            return
        began = self._now()
        try:
            check(job.call, self._endpoint)
            await self._answer(job, job.call)
        except Unsupported as error:
            self._report(JobFailed(job.key, Failure(code=error.code, message=str(error))))
        except _Failed as error:
            self._report(JobFailed(job.key, error.failure, error.final))
        except Trouble as trouble:
            self._blame(trouble, began)
            self._refresh()
            if trouble.fault in (Fault.LIMITED, Fault.ABSENT, Fault.BROKEN):
                self._refuse(job, trouble.failure)
            else:
                self._report(JobFailed(job.key, trouble.failure))
        except Exception as error:
            log.exception("a call failed inside", call=job.call.id)
            message = f"the worker of endpoint {self._endpoint.name!r} failed: {type(error).__name__}"
            self._report(JobFailed(job.key, Failure(code=ErrorCode.ENGINE_ERROR, message=message)))
        else:
            self._gate.succeeded()
            self._refresh()
            self._report(JobEnded(job.key))

    def _refuse(self, job: Job, failure: Failure) -> None:
        self._counts["refused"] += 1
        self._report(JobRefused(job.key, failure))

    async def _answer(self, job: Job, call: ModelCall) -> None:
        """All outputs of a call, one after another; those that earlier attempts have finished are taken as they are."""
        texts = {variable: value.text for variable, value in job.inputs.items()}
        ours = next((name for name in call.models if name in self._models), next(iter(self._models), ""))
        salt = job.cache or job.key[0] if call.cache_prefix else ".".join(map(str, job.key))
        for place in places(call):
            wanted = []
            for variable in map(VarId, place.variables):
                earlier = job.resumed.get(variable)
                if earlier is not None and earlier.ended:
                    texts[variable] = earlier.text
                else:
                    wanted.append(variable)
            if not wanted:
                continue
            model = self._models.get(ours, ours)
            failures: list[Failure] = []
            for request in requests(call, place, wanted, texts, self._endpoint, model=model, salt=salt):
                texts |= await self._draw(job, call, place, request, ours, failures)
            if failures:  # siblings were drawn all the same; what would follow is not
                raise _Failed(failures[0])

    async def _draw(
        self, job: Job, call: ModelCall, place: Output, request: Request, model: str, failures: list[Failure]
    ) -> Texts:
        """What one request draws; what of it can be no value goes to `failures`."""
        answer = Answer(request)
        written: dict[VarId, list[str]] = {variable: [] for variable in request.variables}
        reserve, asked = self._reserve(job, request), False
        try:
            async with self._client.answer(request) as stream:
                asked = True
                self._counts["requests"] += 1
                async for event in stream.events:
                    for piece in answer.feed(event):
                        variable = request.variables[piece.index]
                        written[variable].append(piece.text)
                        self._report(Produced(job.key, variable, piece.text, (), piece.logprobs))
                answer.check_whole()
        finally:
            self._heard_at = self._now()
            usage = self._priced(answer.usage) if asked else Usage()
            self._ledger.settle(reserve, usage, time.time())
        if stream.exhausted is not None:
            self._gate.exhausted(self._now(), stream.exhausted)
        self._counts["output_tokens"] += usage.output_tokens
        self._counts["cost"] += usage.cost
        texts = {variable: "".join(pieces) for variable, pieces in written.items()}
        for index, (variable, share) in enumerate(zip(request.variables, _shares(usage, len(texts)), strict=True)):
            match verdict(call, place, texts[variable], answer.finishes[index]):
                case Failure() as failure:
                    failures.append(failure)
                case finish:
                    self._report(OutputEnded(job.key, variable, finish, share, model=model))
        return texts

    def _reserve(self, job: Job, request: Request) -> Reserve:
        usage = self._priced(at_most(request.characters, request.limit * len(request.variables)))
        reserve = self._ledger.reserve(self._endpoint, *job.key[:2], usage, time.time())
        if isinstance(reserve, Failure):
            raise _Failed(reserve, final=True)
        return reserve

    def _priced(self, usage: Usage) -> Usage:
        return usage + Usage(cost=cost(usage, self._endpoint.prices))


class _Failed(Exception):
    """A call that fails, through no fault of the endpoint's connection. `final`: another try would not help now."""

    def __init__(self, failure: Failure, *, final: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.final = final


_SHORTLY = {
    Fault.ABSENT: "the endpoint can't be reached, or takes no calls",
    Fault.FAILED: "the endpoint has failed",
    Fault.BROKEN: "the endpoint refuses its key, or has no such model",
}
"""What those learn who wait: the whole reason is in the log."""


def _shares(usage: Usage, siblings: int) -> Sequence[Usage]:
    """What was used, told of siblings: the prompt and the cost with the first, and the drawn tokens, of which the endpoint tells
    the sum, in equal parts."""
    each, rest = divmod(usage.output_tokens, siblings)
    first = Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=each + rest,
        cost=usage.cost,
    )
    return (first, *(Usage(output_tokens=each) for _ in range(siblings - 1)))
