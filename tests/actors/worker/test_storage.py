from __future__ import annotations

import asyncio

from myna.actors import subjects
from myna.actors.bus import Stored
from myna.actors.bus.memory import MemoryBroker, MemoryBus
from myna.actors.messages import CallId, Value, VarId, WorkerId
from myna.actors.subjects import Stream
from myna.actors.worker.events import Read, ReadInputs
from myna.actors.worker.storage import READS, Storage
from tests.actors.stage import TENANT, Application


class Crowded(MemoryBus):
    """A bus that answers once so many have asked."""

    def __init__(self, wanted: int) -> None:
        super().__init__(MemoryBroker())
        self.asked: list[str] = []
        self.first = asyncio.Event()
        self._wanted = wanted
        self._enough = asyncio.Event()

    async def get(self, stream: Stream, subject: str, *, timeout: float = 5.0, fresh: bool = False) -> Stored | None:
        self.asked.append(subject)
        self.first.set()
        if len(self.asked) == self._wanted:
            self._enough.set()
        await self._enough.wait()
        return await super().get(stream, subject, timeout=timeout, fresh=fresh)


async def storage_over(bus: MemoryBus, names: list[str]) -> tuple[Storage, Application]:
    """A worker's storage over streams that have a value of each name."""
    await bus.ensure(subjects.STREAMS)
    application = Application(bus, "s")
    for name in names:
        await application.set(name, Value(text=f"text of {name}"))
    return Storage(bus, WorkerId("w"), "life"), application


def inputs(application: Application, call: str, names: list[str]) -> ReadInputs:
    return ReadInputs((TENANT, application.session, CallId(call), 1), tuple(VarId(name) for name in names), ())


def texts(read: Read) -> list[str]:
    assert read.failure is None
    return [value.text for value in read.inputs.values()]


async def test_the_inputs_of_a_call_are_asked_for_side_by_side_and_come_in_their_order() -> None:
    names = ["c", "a", "b"]
    storage, application = await storage_over(Crowded(3), names)
    async with asyncio.timeout(5):
        read = await storage.read(inputs(application, "x", names))
    assert texts(read) == [f"text of {name}" for name in names]


async def test_no_more_inputs_are_asked_for_at_once_than_the_bound() -> None:
    names = [f"v{n}" for n in range(READS + 1)]
    bus = Crowded(READS + 1)
    storage, application = await storage_over(bus, names)
    reading = asyncio.create_task(storage.read(inputs(application, "x", names)))
    for _ in range(4 * READS):  # turns enough for all to have asked
        await asyncio.sleep(0)
    assert len(bus.asked) == READS
    reading.cancel()
    await asyncio.wait([reading])


async def test_of_two_calls_that_read_one_value_together_the_first_asks_for_both() -> None:
    bus = Crowded(1)
    storage, application = await storage_over(bus, ["a"])
    reads = await asyncio.gather(*(storage.read(inputs(application, call, ["a"])) for call in "xy"))
    assert [texts(read) for read in reads] == [["text of a"], ["text of a"]]
    assert len(bus.asked) == 1


async def test_when_the_first_to_ask_is_stopped_the_next_one_asks() -> None:
    bus = Crowded(2)
    storage, application = await storage_over(bus, ["a"])
    first, second = (asyncio.create_task(storage.read(inputs(application, call, ["a"]))) for call in "xy")
    await bus.first.wait()
    first.cancel()
    async with asyncio.timeout(5):
        assert texts(await second) == ["text of a"]
    assert len(bus.asked) == 2
