"""`myna top`, `graph` and `trace` against actors that run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from myna.actors.server import Server
from myna.sdk import cli
from myna.sdk.client import connect
from tests.actors.stage import call
from tests.sdk.apart import server

__all__ = ["server"]
pytestmark = pytest.mark.nats


@pytest.fixture(autouse=True)
def _configured(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {"URL": server.url, "USER": server.config.user, "PASSWORD": server.config.password, "HOME": tmp_path}
    for name, value in settings.items():
        monkeypatch.setenv(f"MYNA_{name}", str(value))
    monkeypatch.chdir(tmp_path)


def myna(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, env={"COLUMNS": "120"})


async def application() -> str:
    """Two calls, one after the other, in a session that is kept."""
    async with connect() as client, client.session("report", keep=600.0) as session:
        session.resubmit([call("first"), call("second", "first")])
        await session.lookup("second").get(timeout=20)
        for arguments in (["graph", session.id, "-o", "open.svg"], ["trace", session.id]):
            told = await asyncio.to_thread(myna, *arguments)
            assert told.exit_code == 0, told.output
        return session.id


def test_graph_and_trace_of_a_session_while_it_is_open_and_after_its_end(tmp_path: Path) -> None:
    session = asyncio.run(application())
    traced = json.loads((tmp_path / f"{session}.trace.json").read_text())
    assert {"first", "second"} <= {event["name"] for event in traced["traceEvents"] if event["ph"] == "X"}
    assert myna("graph", session).output == f"{session}.svg: 2 calls\n"
    for name in ("open.svg", f"{session}.svg"):
        texts = [element.text for element in ElementTree.parse(tmp_path / name).iter() if element.text]
        assert {"first", "second", "report"} <= set(texts), name


def test_top_shows_once_what_goes_on() -> None:
    shown = myna("top", "--once")
    assert shown.exit_code == 0, shown.output
    assert "0 ready, 0 running" in shown.output
    assert "worker" in shown.output
    assert "0/64" in shown.output
    assert "no open sessions" in shown.output


def test_a_session_that_is_not_there_is_a_sentence() -> None:
    for name in ("ghost", "no such file.myna"):
        for command in ("graph", "trace"):
            told = myna(command, name)
            assert told.exit_code == 1
            assert name in told.stderr
            assert "Traceback" not in told.output
