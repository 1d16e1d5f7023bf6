from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from myna.actors.machine import child
from tests.actors.machine.processes import ended

MACHINE = [sys.executable, "-P", "-m", "myna.actors.machine"]


def test_ready_is_said_once_and_only_to_a_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    child.ready()
    listen, speak = os.pipe()
    monkeypatch.setenv(child.READY_VARIABLE, str(speak))
    child.ready()
    child.ready()
    with open(listen, "rb") as pipe:
        assert pipe.read() == b"ready\n"  # to its end: the other side is closed


def test_a_supervisor_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    listen, speak = os.pipe()
    os.close(listen)
    monkeypatch.setenv(child.READY_VARIABLE, str(speak))
    child.ready()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(speak)


@pytest.mark.cluster
def test_a_child_becomes_its_module_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "echo_arguments.py").write_text("import sys\nprint(__name__, *sys.argv[1:])")
    answer = subprocess.run(
        [*MACHINE, str(os.getpid()), "echo_arguments", "--a", "b c"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "__main__ --a b c\n"


@pytest.mark.cluster
def test_a_child_whose_parent_is_gone_before_it_began_ends_at_once(tmp_path: Path) -> None:
    stranger = "1" if os.getpid() != 1 else "2"
    answer = subprocess.run([*MACHINE, stranger, "this"], capture_output=True, check=False)
    assert answer.returncode == -signal.SIGKILL


@pytest.mark.cluster
def test_a_child_that_hangs_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(
        "import signal\n"
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "signal.pause()\n"
    )
    start = (
        "import os, subprocess, sys\n"
        f"p = subprocess.Popen([*{MACHINE!r}, str(os.getpid()), 'deaf'], stdout=subprocess.PIPE, text=True)\n"
        "print(p.pid, p.stdout.readline().strip(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid, word = parent.stdout.readline().split()
    assert word == "deaf"
    parent.kill()
    parent.communicate()
    assert ended(int(pid))
