from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from myna.actors.machine.process import ModuleProgram, last_lines
from myna.actors.machine.shell import Machine, States
from myna.actors.machine.supervisor import Child, Policy, State

pytestmark = pytest.mark.cluster

QUICK = Policy(first_delay=0.01, quick=0.0, give_up_after=3)


def pid_of(machine: Machine, name: str) -> int:
    _, pid = machine.states()[name]
    assert pid is not None
    return pid


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_children_start_in_order_of_need_and_stop_the_other_way_round(make_child: Any, tmp_path: Path) -> None:
    history = tmp_path / "history"

    def chatty(name: str) -> ModuleProgram:
        say = f"open({str(history)!r}, 'a').write('{{}} {name}\\n')"
        program: ModuleProgram = make_child(name, before=say.format("start"), after=say.format("stop"))
        return program

    children = [Child("low", rank=0), Child("high", needs=("low",), rank=1)]
    machine = Machine(children, {name: chatty(name) for name in ("low", "high")})
    running = asyncio.create_task(machine.run())
    await machine.ready.wait()
    pids = [pid_of(machine, "low"), pid_of(machine, "high")]
    machine.stop()
    assert await running is None
    assert history.read_text().splitlines() == ["start low", "start high", "stop high", "stop low"]
    assert not any(exists(pid) for pid in pids)


async def test_a_child_that_was_killed_is_started_again(make_child: Any) -> None:
    ready: asyncio.Queue[int | None] = asyncio.Queue()

    def look(states: States) -> None:
        state, pid = states["a"]
        if state is State.READY:
            ready.put_nowait(pid)

    machine = Machine([Child("a")], {"a": make_child("a")}, policy=QUICK, on_change=look)
    running = asyncio.create_task(machine.run())
    first = await ready.get()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    second = await ready.get()
    assert second is not None
    assert second != first
    machine.stop()
    assert await running is None
    assert not exists(first)
    assert not exists(second)


async def test_a_child_that_fails_again_and_again_ends_the_machine_with_its_last_words(make_child: Any) -> None:
    policy = Policy(first_delay=0.01, quick=60.0, give_up_after=2)
    children = [Child("good"), Child("bad", rank=1)]
    bad = make_child("bad", before="sys.exit('there is no such model')")
    machine = Machine(children, {"good": make_child("good"), "bad": bad}, policy=policy)
    failure = await machine.run()
    assert failure is not None
    assert "bad ended with status 1, 2 times in a row" in failure
    assert "there is no such model" in failure


async def test_a_child_that_ignores_the_polite_signal_is_killed_when_its_grace_is_over(make_child: Any) -> None:
    deaf = make_child("deaf", after="threading.Event().wait()")
    machine = Machine([Child("deaf", grace=0.2)], {"deaf": deaf})
    running = asyncio.create_task(machine.run())
    await machine.ready.wait()
    pid = pid_of(machine, "deaf")
    machine.stop()
    assert await running is None
    assert not exists(pid)


async def test_a_cancelled_machine_ends_its_children_before_it_is_gone(make_child: Any) -> None:
    machine = Machine([Child("a")], {"a": make_child("a")})
    running = asyncio.create_task(machine.run())
    await machine.ready.wait()
    pid = pid_of(machine, "a")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not exists(pid)


async def test_a_program_that_cannot_be_started_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    nowhere = ModuleProgram("anything", environment=dict, log=tmp_path / "missing" / "log")
    machine = Machine([Child("a")], {"a": nowhere}, policy=Policy(give_up_after=1))
    failure = await machine.run()
    assert failure is not None
    assert "a could not be started" in failure
    assert "No such file" in failure


def test_the_last_lines_of_a_json_log_are_readable(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('plain words\n{"event": "refused", "layer": 3, "level": "error", "timestamp": "now"}\n{"x": 1}\n')
    assert last_lines(log) == ("plain words", "refused layer=3", '{"x": 1}')
    assert last_lines(tmp_path / "none") == ()
