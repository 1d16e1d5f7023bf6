"""A scheduler that knows the true length of every call, where ours has learned those of its function: what better estimates gain.

Law: nothing else differs from the cluster that it is compared with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from myna.actors.messages import ModelCall, Tenant
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.lengths import Habit, Lengths
from tests.benchmarks.simulation.cluster import Client, Cluster, Turn
from tests.benchmarks.simulation.engine import EngineModel
from tests.benchmarks.simulation.workloads import Job, sizes


class _True(Habit):
    """What one call is like, which nothing changes."""

    def __init__(self, output: float, fresh: float) -> None:
        super().__init__()
        super().learn_output(round(output))
        super().learn_fresh(fresh)

    def learn_output(self, tokens: int) -> None:
        """It is known."""

    def learn_fresh(self, part: float) -> None:
        """It is known."""


class TrueLengths(Lengths):
    """Habits of calls, told in the order in which they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._next: deque[Habit] = deque()

    @property
    def left(self) -> int:
        """Calls that were told and not asked for."""
        return len(self._next)

    def tell(self, calls: Iterable[tuple[float, float]]) -> None:
        """Tokens that calls will generate, and the part of their prompts that is new."""
        self._next.extend(_True(*call) for call in calls)

    def of(self, tenant: Tenant, function: str) -> Habit:
        """See `Lengths`."""
        return self._next.popleft()


class Known(Cluster):
    """See the module."""

    def __init__(self, model: EngineModel, engines: int, policies: Policies) -> None:
        super().__init__(model, engines, policies)
        self._lengths = self.core.planner.lengths = TrueLengths()
        self._truth: dict[tuple[int, str], tuple[float, float]] = {}

    def run(self, jobs: list[Job]) -> list[Turn]:
        """See `Cluster`."""
        for job in jobs:
            for call, (made, new, context, _) in zip(job.calls(), sizes(job), strict=True):
                output = sum(job.outputs[v] for v in made)
                self._truth[id(job), call.id] = output, new / context if context else 1.0
        return super().run(jobs)

    def _send(self, client: Client, calls: Sequence[ModelCall], now: float) -> None:
        self._lengths.tell(self._truth[id(client.job), call.id] for call in calls)
        super()._send(client, calls, now)
