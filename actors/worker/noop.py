"""A worker's backend without a model: it makes as many words as tokens were asked for, at a modelled pace.

For tests and measurements of everything around the engine. Its text depends on the call alone, so that a resumed attempt goes on
where another stopped.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from myna.actors.messages import FinishReason, ModelCall, Output, Usage, VarId, WorkerKind
from myna.actors.worker.backend import Job, JobEnded, Offer, OutputEnded, Produced, Reporter
from myna.actors.worker.tasks import TaskBackend


@dataclass(frozen=True, slots=True)
class NoopModel:
    """The modelled engine: the names of its model, seconds a decode step, and how many calls run at once."""

    name: str = "noop"
    aliases: tuple[str, ...] = ()
    step: float = 0.0
    capacity: int = 64


class NoopBackend(TaskBackend):
    """See the module."""

    def __init__(self, model: NoopModel | None = None) -> None:
        super().__init__()
        self._model = model or NoopModel()

    async def start(self, report: Reporter) -> Offer:
        """Ready at once."""
        self._report = report
        return Offer(WorkerKind.ENGINE, (self._model.name, *self._model.aliases), self._model.capacity, resumable=True)

    async def _run(self, job: Job) -> None:
        assert isinstance(job.call, ModelCall)
        outputs = [s for m in job.call.messages for s in m.segments if isinstance(s, Output)]
        for output in outputs:
            for variable in output.variables:
                await self._generate(job, VarId(variable), output)
        self._report(JobEnded(job.key))

    async def _generate(self, job: Job, variable: VarId, output: Output) -> None:
        resumed = job.resumed.get(variable)
        start = len(resumed.tokens) if resumed else 0
        if not (resumed and resumed.ended):
            for n in range(start, output.sampling.max_tokens):
                if self._model.step:
                    await asyncio.sleep(self._model.step)
                word = f"{'' if n == 0 else ' '}{output.name or 'word'}{n}"
                self._report(Produced(job.key, variable, word, (n,)))
        usage = Usage(output_tokens=output.sampling.max_tokens)
        self._report(OutputEnded(job.key, variable, FinishReason.LENGTH, usage, model=self._model.name))
