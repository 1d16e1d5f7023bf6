"""Whether a process is well, told to whoever runs it by the age of a file.

Law: the event loop itself touches the file, so that one that is blocked stops telling. To ask takes no port, no client and no
secret: `find FILE -newermt '-15 seconds'` is the question, in a container's health check (`deploy/Dockerfile`) or anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

EVERY = 3.0
"""Seconds between two touches."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """What a process tells: `file` is touched while `well` says so. Without a file nothing is told."""

    file: Path | None
    well: Callable[[], bool]

    @contextlib.asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Tell it inside the block."""
        telling = asyncio.create_task(self._tell(), name="health")
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait((telling,))

    async def _tell(self) -> None:
        """A file that can't be written is logged, and ends this: nothing else."""
        while self.file is not None:
            try:
                if self.well():
                    self.file.touch()
            except OSError as error:
                _log.error("health can't be told", file=str(self.file), reason=str(error))
                return
            await asyncio.sleep(EVERY)
