from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from myna.actors import codec, config, subjects
from myna.actors.bus import NotAllowed
from myna.actors.config import Address, GatewaySettings, Settings
from myna.actors.machine import MachineFailed, Plan, embedded, home
from myna.actors.machine.shell import States
from myna.actors.machine.supervisor import Policy, State
from myna.actors.messages import Status, StatusRequest, Tenant
from myna.actors.subjects import Question
from myna.actors.tenants.keyring import Keyring
from myna.actors.tenants.rights import Role
from tests.actors.machine.processes import command, descendants, ended, listening
from tests.actors.machine.up import Up, running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

PARTS = ("nats-server", "myna.actors.scheduler", "myna.actors.engine_host", "myna.actors.gateway")


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    async with running(tmp_path / "home") as machine:
        yield machine


async def status_of(settings: Settings, *, workers: int = 1) -> Status:
    """What the scheduler sees, once it has heard of so many workers: they greet it a moment after it has begun to lead."""
    bus = await config.connect_bus(settings, "test")
    try:
        async with asyncio.timeout(20):
            while True:
                subject = subjects.STATUS
                if not config.asks_as_operator(settings):
                    subject = subjects.ask(Tenant(settings.tenant), Question.STATUS)
                answer = await bus.request(subject, codec.encode(StatusRequest()))
                status: Status = codec.decode(answer.data, Status)
                if len(status.workers) >= workers:
                    return status
    finally:
        await bus.close()


async def answer_over_http(up: Up) -> str:
    """What the machine's gateway, found as `myna status` finds it, answers."""
    info = home.find(up.home)
    assert info is not None
    asked = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    async with httpx.AsyncClient(base_url=info.gateway, timeout=20) as http:
        answer = await http.post("/v1/chat/completions", json=asked)
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_a_machine_answers_heals_and_leaves_no_process(up: Up) -> None:
    before = descendants(up.process.pid)
    assert [part for part in PARTS if not any(part in line for line in before.values())] == []
    status = await status_of(up.settings)
    assert [worker.serves for worker in status.workers] == [("noop",)]

    for part in PARTS:  # each of them may die
        victim = up.part(part)
        os.kill(victim, signal.SIGKILL)
        assert ended(victim)
        said = await up.lines_until('"event": "ready"')
        assert any("a process died" in line for line in said)
        assert up.part(part) != victim
    assert (await status_of(up.settings)).scheduler == status.scheduler
    assert await answer_over_http(up) == "answer0 answer1"

    living = descendants(up.process.pid)
    up.process.send_signal(signal.SIGTERM)
    await up.lines_until("no process is left")
    assert await up.process.wait() == 0
    assert [line for pid in before | living if (line := command(pid))] == []
    assert home.find(up.home) is None
    assert not home.info_path(up.home).exists()


async def test_a_request_waits_while_the_gateway_is_started_again(up: Up) -> None:
    victim = up.part("myna.actors.gateway")
    os.kill(victim, signal.SIGKILL)
    assert ended(victim)
    assert await answer_over_http(up) == "answer0 answer1"


async def test_a_supervisor_that_is_killed_takes_everybody_with_it(up: Up) -> None:
    living = descendants(up.process.pid)
    assert len(living) >= len(PARTS)
    up.process.kill()
    assert [line for pid, line in living.items() if not ended(pid)] == []
    await up.process.wait()  # its threads end one by one, and the last one lets the lock go
    assert home.info_path(up.home).exists()  # nobody could remove it,
    assert home.find(up.home) is None  # and nobody believes it


async def test_a_machine_starts_again_where_one_was_killed(up: Up) -> None:
    up.process.kill()
    await up.process.wait()
    again = await Up.start(up.home)
    try:
        await again.lines_until("ready at")
        assert (await status_of(again.settings)).scheduler == "scheduler"
    finally:
        again.process.terminate()
        await again.process.communicate()
    assert again.process.returncode == 0


_SEED = re.compile(r"S[OAU][A-Z2-7]{56}")


async def test_the_keys_are_their_owners_alone(up: Up) -> None:
    folders = [up.home, *(p for p in up.home.rglob("*") if p.is_dir() and up.home / "nats" not in p.parents)]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    keys = [path for folder in ("authority", "keys") for path in (up.home / folder).rglob("*") if path.is_file()]
    assert len([path for path in keys if _SEED.search(path.read_text())]) == len(Role) + 3  # admin, tenant, authority
    for secret in (*keys, home.info_path(up.home), up.home / "nats" / "nats.conf"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600, secret
    public = [home.info_path(up.home), up.home / "nats" / "nats.conf", *(up.home / "logs").iterdir()]
    shown = [command(up.process.pid), *descendants(up.process.pid).values(), *(path.read_text() for path in public)]
    assert [text for text in shown if _SEED.search(text)] == []


async def test_the_server_listens_on_loopback_alone(up: Up) -> None:
    assert home.find(up.home).url.startswith("nats://127.0.0.1:")  # type: ignore[union-attr]
    assert {address for address, _ in listening(up.part("nats-server"))} == {"127.0.0.1"}


async def test_nobody_comes_in_without_credentials_of_this_machine(up: Up, tmp_path: Path) -> None:
    settings = up.settings
    assert settings.address is not None
    forged = Keyring.at(tmp_path / "forged").create(Tenant("default"))  # another authority's
    for address in (Address(settings.address.url), Address(settings.address.url, credentials=forged)):
        with pytest.raises(NotAllowed):
            await config.connect_bus(config.with_address(settings, address), "stranger")


async def test_a_second_machine_says_who_runs_already(up: Up) -> None:
    second = await Up.start(up.home)
    _, said = await second.process.communicate()
    assert second.process.returncode == 1
    assert f"runs already in {up.home}: process {up.process.pid}" in " ".join(said.decode().split())
    assert (await status_of(up.settings)).scheduler == "scheduler"


async def test_an_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    machine = await Up.start(tmp_path / "home")
    await machine.lines_until('"name": "nats"')  # the others are just starting
    living = descendants(machine.process.pid)
    machine.process.send_signal(signal.SIGINT)
    await machine.process.communicate()
    assert machine.process.returncode == 0
    assert [line for pid, line in living.items() if not ended(pid)] == []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.read({"MYNA_HOME": str(tmp_path / "home"), "MYNA_CACHE": str(tmp_path / "cache")})


async def test_an_application_has_a_machine_of_its_own_for_a_while(settings: Settings) -> None:
    async with embedded(settings, Plan(engines=2, noop=True)) as reachable:
        status = await status_of(reachable, workers=2)
        assert sorted(worker.worker for worker in status.workers) == ["engine-1", "engine-2"]
        living = descendants(os.getpid())
        assert len(living) == 4
    assert [line for pid in living if (line := command(pid))] == []
    assert not settings.home.exists()


async def test_a_port_that_is_taken_is_told_at_once(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        elsewhere = replace(settings, gateway=GatewaySettings(port=taken.getsockname()[1]))
        with pytest.raises(MachineFailed, match=r"in use.*MYNA_GATEWAY_PORT"):
            async with embedded(elsewhere, Plan(noop=True, gateway=True)):
                pass


async def test_an_error_in_the_block_comes_out_as_it_is(settings: Settings) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with embedded(settings, Plan(noop=True)):
            raise KeyError("mine")
    assert descendants(os.getpid()) == {}


async def test_a_machine_that_cannot_be_kept_alive_ends_the_block_with_the_reason(settings: Settings) -> None:
    ready: asyncio.Queue[int] = asyncio.Queue()

    def look(states: States) -> None:
        state, pid = states["scheduler"]
        if state is State.READY and pid is not None:
            ready.put_nowait(pid)

    async def work() -> None:
        plan = Plan(noop=True, policy=Policy(give_up_after=1, quick=1e6))
        async with embedded(settings, plan, on_change=look):
            os.kill(await ready.get(), signal.SIGKILL)
            await asyncio.Event().wait()

    with pytest.raises(MachineFailed, match="scheduler was ended by signal 9"):
        await work()
    assert descendants(os.getpid()) == {}
