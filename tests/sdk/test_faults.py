"""The SDK on a bus that loses live messages, refuses to answer, and stores things without saying so."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest

import myna
from myna import Input, Output
from myna.actors.bus import Bus, Delivery, Unavailable
from myna.sdk.client import Client
from tests.actors.stage import stage
from tests.network import MemoryNetwork


@myna.function
def ask(question: Input, answer: Annotated[str, Output(max_tokens=6)]) -> None:
    """{{question}}{{answer}}"""


ANSWER = " ".join(f"answer{n}" for n in range(6))


def make_flaky(bus: Bus, chance: random.Random, monkeypatch: pytest.MonkeyPatch, *, appends: bool) -> None:
    get, append, subscribe = bus.get, bus.append, bus.subscribe

    async def flaky_get(*args: Any, **options: Any) -> Any:
        if chance.random() < 0.3:
            raise Unavailable("no answer")
        found = await get(*args, **options)
        return None if chance.random() < 0.2 else found  # a replica that is behind

    async def flaky_append(*args: Any, **options: Any) -> Any:
        fate = chance.random() if appends else 1.0
        if fate < 0.15:
            raise Unavailable("not stored")
        receipt = await append(*args, **options)
        if fate < 0.3:
            raise Unavailable("stored, but the acknowledgement was lost")
        return receipt

    async def flaky_subscribe(subject: str, handler: Callable[[Delivery], Awaitable[None]], **options: Any) -> Any:
        async def sometimes(delivery: Delivery) -> None:
            if chance.random() < 0.5:
                await handler(delivery)

        return await subscribe(subject, sometimes, **options)

    monkeypatch.setattr(bus, "get", flaky_get)
    monkeypatch.setattr(bus, "append", flaky_append)
    monkeypatch.setattr(bus, "subscribe", flaky_subscribe)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short back-off: what takes seconds on a bad network takes milliseconds here."""
    monkeypatch.setattr("myna.sdk.readers.values.FIRST_GET", 0.001)
    monkeypatch.setattr("myna.sdk.readers.BACK_OFF", 0.001)
    monkeypatch.setattr("myna.sdk.readers.LONGEST_BACK_OFF", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(6))
async def test_every_value_and_every_stream_arrives_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, chance = MemoryNetwork(), random.Random(seed)
    async with stage(network.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        bus = await network.bus()
        make_flaky(bus, chance, monkeypatch, appends=False)
        async with Client(bus=bus).session() as session, Client(bus=bus).attach(session.id) as other:
            top = ask("x")
            leaves = [ask(top) for _ in range(30)]
            theirs = [other.lookup(leaf.id) for leaf in leaves]
            for leaf in leaves[:10]:
                assert "".join([piece async for piece in leaf.stream()]) == ANSWER
            assert await session.gather(*leaves, timeout=30) == [ANSWER] * 30
            assert await other.gather(*theirs, timeout=30) == [ANSWER] * 30
    await bus.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_not_stored_every_variable_ends(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, chance = MemoryNetwork(), random.Random(seed)
    async with stage(network.bus) as cast:
        await cast.scheduler()
        await cast.worker()
        bus = await network.bus()
        session = Client(bus=bus).session(lazy=True)
        async with session:
            make_flaky(bus, chance, monkeypatch, appends=True)
            ends: list[str] = []
            for _ in range(30):
                variable = ask(ask("x"))
                try:
                    ends.append(await variable.get(timeout=30))
                except (myna.SubmitFailed, myna.CallFailed) as error:
                    ends.append(type(error).__name__)
            assert ANSWER in ends
            assert set(ends) <= {ANSWER, "SubmitFailed", "CallFailed"}
            monkeypatch.undo()
    await bus.close()
