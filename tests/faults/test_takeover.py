"""How long things take, on the virtual clock: a standby that takes over, a silent worker that is noticed, a drain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

import pytest

from myna.actors.messages import StreamMode, Value
from myna.sdk.client import Client
from tests.faults.cast import Role, Stage, step
from tests.faults.play import _output, _quiet
from tests.faults.simulation import Process


@pytest.fixture
def stage() -> Iterator[Stage]:
    with _quiet(0):
        made = Stage(0)
        yield made
        made.simulation.end()
        assert made.simulation.faults == []


def client(stage: Stage, work: Callable[[Client], object]) -> Role:
    """An application."""

    async def main(role: Role, process: Process) -> None:
        await work(Client(bus=role.bus, tenant="default"))  # type: ignore[misc]

    return Role(stage, "application", main, again=False)


def leading(stage: Stage) -> Role | None:
    return next((r for r in stage.schedulers if r.process.alive and r.actor and r.actor.leading.is_set()), None)


@pytest.mark.parametrize("seed", range(10))
def test_a_standby_leads_within_fifteen_seconds_of_its_leaders_death_and_what_was_submitted_meanwhile_runs(
    stage: Stage, seed: int
) -> None:
    for n in range(2):
        stage.scheduler(f"scheduler-{n}")
    stage.worker("w", 4, 0.0)
    simulation = stage.simulation
    simulation.run(lambda: leading(stage) is not None, 30)
    pause = random.Random(seed).random() * 10
    until = simulation.now + pause
    simulation.after(pause, lambda: None)
    simulation.run(lambda: simulation.now >= until, 20)
    leader = leading(stage)
    assert leader is not None
    leader.again = False
    leader.kill(None)
    died = simulation.now
    texts: list[str] = []

    async def work(client: Client) -> None:
        async with client.session() as session:
            texts.append(await step("go", word=_output(3, StreamMode.LIVE), session=session).get())

    role = client(stage, work)
    simulation.run(lambda: leading(stage) is not None, 60)
    assert simulation.now - died <= 15.0
    simulation.run(lambda: role.process.ended, 60)
    assert texts


def test_a_killed_worker_and_a_stopped_one_are_noticed_within_three_seconds(stage: Stage) -> None:
    stage.scheduler("scheduler")
    stage.worker("w", 4, 0.0)
    simulation = stage.simulation
    simulation.run(lambda: leading(stage) is not None and "w" in stage.schedulers[0].actor._core.fleet.workers, 30)
    fleet = stage.schedulers[0].actor._core.fleet
    for harm in (lambda: stage.workers[0].process.kill(), lambda: stage.workers[0].pause(20.0)):
        struck = simulation.now
        harm()
        simulation.run(lambda: "w" not in fleet.workers, 10)
        assert simulation.now - struck <= 3.0
        stage.workers[0].kill(0.0) if stage.workers[0].process.alive else stage.workers[0].begin()
        simulation.run(lambda: "w" in fleet.workers, 10)


def test_a_zombie_that_wakes_when_its_work_was_given_away_changes_nothing(stage: Stage) -> None:
    stage.scheduler("scheduler")
    stage.worker("w0", 4, 0.0)
    simulation = stage.simulation
    got: list[str] = []

    async def work(client: Client) -> None:
        async with client.session() as session:
            variable = step("go", word=_output(40, StreamMode.LIVE), session=session)
            pieces = [piece async for piece in variable.stream()]
            got.extend(("".join(pieces), await variable.get()))
            await asyncio.sleep(10)  # for what the zombie still has to say

    role = client(stage, work)
    simulation.run(lambda: len(next(iter(stage.notes.chunks.values()), ())) >= 5, 60)
    stage.workers[0].pause(5.0)
    stage.worker("w1", 4, 0.0)
    simulation.run(lambda: role.process.ended, 60)
    assert got[0] == got[1]
    attempts = {chunk.attempt for chunks in stage.notes.chunks.values() for n in chunks.values() for chunk in n}
    assert len(attempts) == 2, "the second went on from the tokens of the first"
    ((outcome,),) = stage.notes.outcomes.values()
    assert isinstance(outcome, Value)
    assert outcome.text == got[0]
    assert stage.workers[0].actor._core.running == ()


@pytest.mark.parametrize("seconds", [9.0, 40.0, 100.0])
@pytest.mark.parametrize("harm", ["pause", "cut", "freeze"])
@pytest.mark.parametrize("mode", list(StreamMode))
def test_a_worker_that_was_away_writes_nothing_into_a_session_that_was_purged_meanwhile(
    stage: Stage, harm: str, seconds: float, mode: StreamMode
) -> None:
    stage.scheduler("scheduler")
    stage.worker("w0", 4, 0.0)
    simulation = stage.simulation

    async def work(client: Client) -> None:
        async with client.session() as session:
            await step("go", word=_output(40, mode), session=session)

    role = client(stage, work)
    zombie = stage.workers[0]
    simulation.run(
        lambda: any(a.begun_at for a in zombie.actor._core._attempts.values()) if zombie.actor else False, 60
    )
    begun = simulation.now
    simulation.after(0.3, lambda: None)
    simulation.run(lambda: simulation.now >= begun + 0.3, 10)
    zombie.pause(seconds) if harm == "pause" else zombie.bus.cut(seconds, noticed=harm == "cut")
    woken = simulation.now + seconds
    stage.worker("w1", 4, 0.0)
    simulation.run(lambda: role.process.ended, 60)
    simulation.run(lambda: bool(stage.network.purged), 90)
    simulation.after(max(woken - simulation.now, 0.0) + 30.0, lambda: None)
    simulation.run(lambda: simulation.now >= woken + 20.0, 200)
    assert stage.notes.late == []
    assert zombie.actor._core.running == ()
