from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from myna.actors.engine_host.pulse import BUSY, IDLE, READ_EVERY, Pulse, processor_seconds


def readings(pulse: Pulse, used: float, *, seconds: float, working: float = 0.0, start: float = 0.0) -> str | None:
    """What is said first when a process is read for so long, `working` being the share of the time that it computes."""
    steps = round(seconds / READ_EVERY)
    for n in range(1, steps + 1):
        said = pulse.read(start + n * READ_EVERY, used + n * READ_EVERY * working)
        if said is not None:
            return said
    return None


def test_an_engine_that_owes_nothing_may_idle_for_ever() -> None:
    assert readings(Pulse(), 5.0, seconds=1000) is None


def test_an_engine_that_owes_an_answer_and_does_nothing_hangs_and_that_is_known_within_three_seconds() -> None:
    pulse = Pulse()
    readings(pulse, 5.0, seconds=10)
    pulse.owes(10.0)
    assert "neither answered nor worked" in (readings(pulse, 5.0, seconds=IDLE + READ_EVERY, start=10.0) or "")
    assert IDLE + 2 * READ_EVERY < 3.0


def test_a_long_step_is_work_and_no_hang_but_not_an_endless_one() -> None:
    pulse = Pulse()
    pulse.owes(0.0)
    assert readings(pulse, 0.0, seconds=BUSY - 1, working=1.0) is None
    assert "not answered" in (readings(pulse, 1000.0, seconds=2, working=1.0, start=BUSY - 1) or "")


def test_an_answer_begins_everything_anew() -> None:
    pulse = Pulse()
    for n in range(50):
        pulse.owes(float(n))
        assert readings(pulse, 5.0, seconds=1.0, start=float(n)) is None
        pulse.answered()


def test_a_host_that_was_itself_stopped_blames_nobody_for_the_time() -> None:
    pulse = Pulse()
    pulse.owes(0.0)
    pulse.read(0.5, 5.0)
    assert pulse.read(60.0, 5.0) is None
    assert pulse.read(60.5, 5.0) is None


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is read from /proc")
def test_processor_time_is_read_of_a_process_and_of_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while (processor_seconds(parent.pid) or 0.0) < 0.3:  # of which the parent, which waits, uses next to nothing
            assert time.monotonic() < deadline
            os.sched_yield()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert processor_seconds(parent.pid) is None
