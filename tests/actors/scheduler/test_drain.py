"""The operator drains a worker: it finishes what it runs, hands nothing over, and leaves; a tenant may not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import Unavailable
from myna.actors.messages import DrainRequest, Status, Tenant
from myna.actors.subjects import Question
from tests.actors.stage import Application, GatedBackend, Stage, call, stage, words
from tests.network import MemoryNetwork


@pytest.fixture
async def play() -> AsyncIterator[Stage]:
    async with stage(MemoryNetwork().bus) as it:
        await it.scheduler()
        yield it


async def test_a_drained_worker_finishes_what_it_runs_and_leaves_and_the_rest_goes_elsewhere(play: Stage) -> None:
    first, second = GatedBackend(("a", 1)), GatedBackend()
    await play.worker("w1", first)
    app = Application(await play.bus("app"), "s")
    await app.open()
    await app.submit(call("a"), call("b", "a"))
    await first.reached["a", 1].wait()
    answer = await app.bus.request(subjects.question(Question.DRAIN), codec.encode(DrainRequest(worker="w1")))
    status: Status = codec.decode(answer.data, Status)
    assert [w.running for w in status.workers] == [1]
    await play.worker("w2", second)
    first.gates["a", 1].set()
    assert await app.text("b") == words("b")
    await play.ended("w1")
    assert (first.runs("a"), first.runs("b"), second.runs("b")) == (1, 0, 1)


async def test_draining_is_not_for_tenants(play: Stage) -> None:
    await play.worker("w1")
    bus = await play.bus("app")
    question = subjects.ask(Tenant("default"), Question.DRAIN)
    with pytest.raises(Unavailable):
        await bus.request(question, codec.encode(DrainRequest(worker="w1")), timeout=0.2)
    assert [w.draining for w in (await play.status()).workers] == [False]
