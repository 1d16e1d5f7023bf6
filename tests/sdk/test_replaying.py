from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import pytest
from click.testing import CliRunner

import myna
from myna import Input, Output
from myna.actors.messages import Cancellation
from myna.actors.program import outputs_of
from myna.sdk import cli
from myna.sdk.client import Client
from myna.sdk.recording import Recording
from tests.actors.stage import GatedBackend, Stage, stage
from tests.network import Network


@myna.function
def go(parts: Input, out: Annotated[str, Output(max_tokens=3)]) -> None:
    """{{parts}}{{out}}"""


@pytest.fixture
async def cast(network: Network) -> AsyncIterator[Stage]:
    async with stage(network.bus) as it:
        await it.scheduler()
        yield it


async def client_of(cast: Stage) -> Client:
    return await Client(bus=await cast.bus("client")).open()


def ran(backend: GatedBackend) -> list[str]:
    """The variables that an engine made."""
    return [outputs_of(job.call)[0] for job in backend.jobs]


async def recorded(cast: Stage, tmp_path: Path) -> tuple[Recording, dict[str, str], GatedBackend]:
    """A diamond with a tail, top -> (left, right) -> bottom -> tail, run to the end, exported and read back from its file."""
    backend = GatedBackend()
    await cast.worker("w", backend)
    client = await client_of(cast)
    async with client.session("diamond") as session:
        top = go("begin")
        left, right = go(top), go(top)
        bottom = go([left, right])
        tail = go(bottom)
        await session.gather(tail)
        names = {"top": top.id, "left": left.id, "right": right.id, "bottom": bottom.id, "tail": tail.id}
        exported = await myna.export(client, session.id)
    exported.save(tmp_path / "run.myna")
    backend.jobs.clear()
    return Recording.load(tmp_path / "run.myna"), names, backend


async def test_an_export_holds_graph_values_placements_and_timings_and_its_file_says_the_same(
    cast: Stage, tmp_path: Path
) -> None:
    recording, names, _ = await recorded(cast, tmp_path)
    assert len(recording.calls) == 5
    assert set(recording.values) == set(names.values())
    assert {timing.worker for timing in recording.timings.values()} == {"w"}
    assert recording.timings[names["top"]].ended <= recording.timings[names["tail"]].began
    assert recording.downstream([names["left"]]) == {names[n] for n in ("left", "bottom", "tail")}
    assert recording.opened is not None
    assert recording.opened.name == "diamond"


async def test_a_replay_keeps_all_values_and_computes_nothing(cast: Stage, tmp_path: Path) -> None:
    recording, names, backend = await recorded(cast, tmp_path)
    async with myna.replayed(await client_of(cast), recording) as (session, variables):
        for name in names.values():
            assert await variables[name].get(timeout=20) == recording.values[name].text
        assert session.id != recording.session
    assert backend.jobs == []


async def test_from_any_variable_only_what_is_made_of_it_is_made_anew(cast: Stage, tmp_path: Path) -> None:
    recording, names, backend = await recorded(cast, tmp_path)
    async with myna.replayed(await client_of(cast), recording, recompute=[names["left"]]) as (session, variables):
        await session.gather(*variables.values(), timeout=20)
    assert sorted(ran(backend)) == sorted(names[n] for n in ("left", "bottom", "tail"))


async def test_a_fork_gives_a_variable_another_value_and_recomputes_its_descendants_alone(
    cast: Stage, tmp_path: Path
) -> None:
    recording, names, backend = await recorded(cast, tmp_path)
    forks = [{names["bottom"]: f"fork {n}"} for n in range(2)]
    for values in forks:
        async with myna.replayed(await client_of(cast), recording, values=values) as (_, variables):
            await variables[names["tail"]].get(timeout=20)
            assert await variables[names["bottom"]].get() == values[names["bottom"]]
            assert await variables[names["left"]].get() == recording.values[names["left"]].text
    assert ran(backend) == [names["tail"]] * 2
    assert [next(iter(job.inputs.values())).text for job in backend.jobs] == ["fork 0", "fork 1"]


async def test_an_application_that_broke_off_is_resumed_where_it_was(cast: Stage) -> None:
    client = await client_of(cast)
    session = client.session("broken", keep=600.0)
    async with session:
        top = go("begin")
        tail = go(top)
        backend = GatedBackend((tail.id, 1))
        await cast.worker("w", backend)
        assert await top.get(timeout=20)
        await asyncio.wait_for(backend.reached[tail.id, 1].wait(), 20)
    recording = await myna.export(client, session.id)  # closed, and kept
    assert isinstance(recording.outcomes[tail.id].outcome, Cancellation)
    backend.gates[tail.id, 1].set()
    backend.jobs.clear()
    async with myna.replayed(client, recording) as (_, variables):
        assert await variables[tail.id].get(timeout=20) == " ".join(f"out{n}" for n in range(3))
    assert ran(backend) == [tail.id]


async def test_what_is_not_there_is_refused_by_name(cast: Stage, tmp_path: Path) -> None:
    recording, _, _ = await recorded(cast, tmp_path)
    client = await client_of(cast)
    with pytest.raises(myna.RecordingError, match="ghost"):
        await myna.export(client, "ghost")
    async with client.session() as session:
        with pytest.raises(myna.RecordingError, match="nobody"):
            await myna.replay(recording, session, recompute=["nobody"])
    (tmp_path / "junk").write_bytes(b"\xc1junk")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("junk", "empty"):
        with pytest.raises(myna.RecordingError, match=name):
            Recording.load(tmp_path / name)


async def test_a_recording_is_shown_to_people(cast: Stage, tmp_path: Path) -> None:
    _, names, _ = await recorded(cast, tmp_path)
    shown = CliRunner().invoke(cli.main, ["replay", "--show", str(tmp_path / "run.myna")], terminal_width=300)
    assert shown.exit_code == 0
    assert "5 calls, 5 values" in shown.output
    assert names["top"].split("-")[0] in shown.output
