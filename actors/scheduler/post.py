"""What a scheduler says without storing it: orders to workers, answers, its hello.

Law: sent at most once, and never an error: what is lost shows in the next beats, and who asked asks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from myna.actors import logs
from myna.actors.bus import Bus, BusError
from myna.actors.messages import WorkerId
from myna.actors.scheduler import border
from myna.actors.subjects import ToWorker

log = structlog.get_logger(__name__)


class Post:
    """The way out."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def tell(
        self,
        worker: WorkerId,
        what: ToWorker,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        about: Sequence[object] = (),
    ) -> None:
        """An order to a worker of the core's; `about` are the ids for the log, as in `logs.about`."""
        await self.send(border.to_worker(worker, what), data, headers, about)

    async def send(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, about: Sequence[object] = ()
    ) -> None:
        """Anything else, such as an answer."""
        try:
            await self._bus.publish(subject, data, headers=headers)
        except (BusError, ValueError) as error:  # too large, or, for an answer, no subject at all
            with logs.about(*about):
                log.warning("not sent", subject=subject, reason=str(error))
