"""`myna tenants` on a machine that runs, and on one that does not."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import myna
from myna.actors import config, subjects
from myna.actors.bus import NotAllowed
from myna.actors.messages import Tenant
from myna.actors.server import find_server
from myna.actors.tenants.keyring import Keyring, tenant_file
from tests.actors.machine.up import Up, running
from tests.network import StoredMessages

HOUSE = ("acme", "--calls", "5", "--weight", "2")


async def cli(home: Path, *arguments: str, code: int = 0) -> str:
    """What `myna tenants` says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MYNA_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "myna", "tenants", *arguments),
        env={**environment, "MYNA_HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == code, said.decode()
    return said.decode()


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    async with running(tmp_path / "home") as machine:
        yield machine


@myna.function
def words(text: myna.Input, out: myna.Output(max_tokens=2)):  # type: ignore[valid-type]
    """{{text}}: {{out}}"""


async def works(up: Up, credentials: Path) -> None:
    """An application with these credentials gets an answer."""
    url = up.settings.address.url  # type: ignore[union-attr]
    async with myna.connect(url, credentials=credentials) as client, client.session() as session:
        assert await words(text="x", session=session) == "out0 out1"


@pytest.mark.cluster
@pytest.mark.timeout(90)
async def test_a_tenant_is_made_rotated_limited_and_removed_while_the_machine_runs(up: Up) -> None:
    said = await cli(up.home, "create", *HOUSE)
    file = tenant_file(up.home, Tenant("acme"))
    assert said == f"credentials of tenant acme: {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await works(up, file)

    stolen = up.home / "stolen.creds"
    stolen.write_bytes(file.read_bytes())
    await cli(up.home, "rotate", "acme")
    await works(up, file)
    with pytest.raises(NotAllowed):
        await works(up, stolen)

    assert await cli(up.home, "quota", "acme", "--calls", "none", "--tokens", "100") == "acme: weight 2, tokens 100\n"
    listed = json.loads(await cli(up.home, "list", "--json"))
    assert sorted(listed) == ["acme", "default"]
    assert listed["acme"]["policy"]["tokens"] == 100
    assert "acme: weight 2, tokens 100" in await cli(up.home, "list")

    async with myna.connect(up.settings.address.url, credentials=file) as client:  # type: ignore[union-attr]
        async with client.session("bill") as session:
            await words(text="x", session=session)
        operator = await config.connect_bus(up.settings, "test")
        records = StoredMessages()
        await operator.follow(subjects.USAGE, records, subject=f"myna-usage.acme.{session.id}.*")
        await records.until(1)
        await operator.close()
    assert f"{session.id} (bill): 0 prompt tokens (0 cached) and 2 output tokens in 1 calls" in await cli(
        up.home, "usage", "acme"
    )
    assert "words" in await cli(up.home, "usage", "acme", "--session", session.id)

    await cli(up.home, "remove", "acme")
    assert not file.exists()
    assert sorted(json.loads(await cli(up.home, "list", "--json"))) == ["default"]


async def test_what_is_made_while_nothing_runs_is_kept_for_the_start(tmp_path: Path) -> None:
    Keyring.at(tmp_path)
    said = await cli(tmp_path, "create", "acme")
    assert "no server runs here" in said
    assert list(Keyring.at(tmp_path).authority.tenants) == ["acme"]
    assert "no scheduler was reached" in await cli(tmp_path, "list")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("create", "acme"), "there is a tenant 'acme' already"),
        (("create", "a.b"), "must be 1 to 80 of the characters"),
        (("rotate", "nobody"), "there is no tenant 'nobody'"),
        (("share", "nobody", "acme"), "there is no tenant 'nobody'"),
        (("share", "acme", "acme", "--withdraw"), "was never granted"),
    ],
)
async def test_a_mistake_is_told_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    Keyring.at(tmp_path).create(Tenant("acme"))
    said = await cli(tmp_path, *arguments, code=1)
    assert reason in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.nats
async def test_a_cluster_is_configured_by_files_that_a_server_takes(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    said = await cli(home, "init", "nats-1", "nats-2", "nats-3", "--out", str(out), "--data", str(out / "nats-1"))
    assert "nats-3: " in said
    for node in ("nats-1", "nats-2", "nats-3"):
        conf = out / node / "nats.conf"
        assert stat.S_IMODE(conf.stat().st_mode) == 0o600
        others = {"nats-1", "nats-2", "nats-3"} - {node}
        assert all(f"@{other}:6222" in conf.read_text() for other in others)
        assert f"@{node}:6222" not in conf.read_text()
        assert len(list((out / node / "accounts").iterdir())) == 2
        check = await asyncio.create_subprocess_exec(
            str(find_server()), "-t", "-c", str(conf), stderr=asyncio.subprocess.PIPE
        )
        _, complaint = await check.communicate()
        assert check.returncode == 0, complaint.decode()


async def test_without_an_authority_one_is_told_how_to_get_it(tmp_path: Path) -> None:
    assert "`myna up` makes one" in " ".join((await cli(tmp_path, "list", code=1)).split())
