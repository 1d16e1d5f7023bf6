"""A backend whose attempts are tasks of this process's event loop: what agents and the no-op engine have in common."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from myna.actors.worker.backend import Backend, Job, Reporter, RunKey


class TaskBackend(Backend):
    """Owns one task for each attempt. A subclass sets `_report` in `start`, and says in `_run` what a task does."""

    _report: Reporter

    def __init__(self) -> None:
        self._jobs: dict[RunKey, asyncio.Task[None]] = {}
        self._closed = asyncio.Event()

    @abstractmethod
    async def _run(self, job: Job) -> None:
        """Do one attempt, and report it."""

    def run(self, job: Job) -> None:
        """Begin an attempt."""
        task = asyncio.get_running_loop().create_task(self._run(job), name=f"call-{job.call.id}")
        self._jobs[job.key] = task
        task.add_done_callback(lambda _: self._jobs.pop(job.key, None))

    def cancel(self, key: RunKey) -> None:
        """Cancel an attempt's task. A thread that it awaits can't be stopped: what that returns is dropped."""
        task = self._jobs.pop(key, None)
        if task is not None:
            task.cancel()

    async def wait(self) -> None:
        """It never ends of itself."""
        await self._closed.wait()

    async def close(self) -> None:
        """Cancel what runs."""
        jobs = list(self._jobs.values())
        for task in jobs:
            task.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        self._closed.set()
