from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from myna.actors import config
from myna.actors.messages import Status
from myna.sdk import cli
from tests.actors.machine.processes import ended


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests, and no machine of theirs."""
    for name in [name for name in os.environ if name.startswith("MYNA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MYNA_HOME", str(tmp_path / "home"))


def myna(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="myna", terminal_width=200)


def test_help_names_every_command() -> None:
    result = myna("--help")
    assert result.exit_code == 0
    for name in ("up", "status", "agent", "demo"):
        assert f"\n  {name} " in result.output


def test_it_is_also_a_module() -> None:
    answer = subprocess.run([sys.executable, "-m", "myna", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("myna 0.")


def test_without_a_machine_a_person_is_told_how_to_get_one(tmp_path: Path) -> None:
    for arguments in (["status"], ["status", "--json"], ["agent", "some.module"]):
        result = myna(*arguments)
        assert result.exit_code == 3
        assert result.stderr == (
            f"Error: no machine runs in {tmp_path / 'home'}; start one with `myna up`, or set MYNA_URL\n"
        )
        assert result.stdout == ""


def test_a_wrong_setting_is_a_sentence_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_LOG", "loud")
    for command in ("status", "up"):
        result = myna(command)
        assert result.exit_code == 1
        assert result.stderr == "Error: MYNA_LOG is 'loud': must be one of debug, info, warning, error\n"


@pytest.mark.nats
def test_a_server_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_URL", "nats://127.0.0.1:1")
    result = myna("status", "--timeout", "0.5")
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_nats_server_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_NATS_SERVER", "/nowhere/nats-server")
    result = myna("up", "--noop")
    assert result.exit_code == 1
    assert "/nowhere/nats-server, which is no executable file" in result.stderr


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(config, "read", broken)
    assert isinstance(myna("status").exception, ZeroDivisionError)


def test_demo_lists_the_examples_that_are_shipped() -> None:
    result = myna("demo")
    assert result.exit_code == 0
    shipped = {path.stem for path in Path(cli.__file__).parent.glob("examples/[!_]*.py")}
    assert cli.examples().keys() == shipped
    assert all(name in result.output for name in shipped)


def test_an_unknown_example_is_named_with_those_that_exist() -> None:
    result = myna("demo", "no-such-example")
    assert result.exit_code == 1
    assert "there is no example 'no-such-example'; there are:" in result.stderr


@pytest.fixture
def machine() -> Iterator[subprocess.Popen[str]]:
    """A machine without a model in the test's home, ready."""
    arguments = [sys.executable, "-m", "myna", "up", "--noop", "--engines", "2"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "ready at" in line:
                break
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.cluster
def test_status_finds_the_machine_and_shows_its_engines(machine: subprocess.Popen[str]) -> None:
    while (table := myna("status")).output.count("engine-") < 2:  # they greet the scheduler when it has begun to lead
        assert table.exit_code == 0, table.stderr
    for word in ("scheduler leads", "engine-1", "engine-2", "noop", "no open sessions"):
        assert word in table.output
    plain = myna("status", "--json")
    status = msgspec.json.decode(plain.stdout, type=Status)
    assert [worker.serves for worker in status.workers] == [("noop",), ("noop",)]
    assert json.loads(plain.stdout)["queued"] == 0


@pytest.mark.cluster
def test_an_agent_that_does_not_exist_is_a_sentence(machine: subprocess.Popen[str]) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "myna", "agent", "no_such_module:name"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "no_such_module" in answer.stderr
    assert "Traceback" not in answer.stderr


AGENT = '''
import myna

@myna.agent
def shout(text: str) -> str:
    """Say it loud."""
    return text.upper()
'''


@pytest.mark.cluster
def test_agents_of_the_folder_one_stands_in_are_served(machine: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "my_agents.py").write_text(AGENT)
    agent = subprocess.Popen(
        [sys.executable, "-m", "myna", "agent", "my_agents:shout"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert agent.stderr is not None
        line = agent.stderr.readline()
        assert "serving" in line, line + agent.stderr.read()
        call = (
            "import asyncio, myna\n"
            "async def main():\n"
            "    async with myna.session() as session:\n"
            "        print(await myna.native('shout')(text='quiet'))\n"
            "asyncio.run(main())\n"
        )
        answer = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=60, check=False)
        assert answer.stdout == "QUIET\n", answer.stderr
    finally:
        agent.send_signal(signal.SIGINT)
        agent.communicate(timeout=30)
    assert agent.returncode == 0
    assert ended(agent.pid)


def test_a_key_is_made_for_a_tenant_and_shown_apart_from_its_entry() -> None:
    result = myna("key", "acme", "--name", "laptop")
    assert result.exit_code == 0
    assert result.stdout.startswith('[[key]]\nname = "laptop"\nsha256 = "')
    made = result.stderr.strip().rpartition(" ")[2]
    assert made.startswith("myna-")
    assert made not in result.stdout
    assert myna("key", "a b").exit_code == 1
