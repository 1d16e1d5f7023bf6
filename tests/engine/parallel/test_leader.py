from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import ModelRefused
from myna.engine.interface import BatchLimits
from myna.engine.loading import load
from myna.engine.parallel.leader import load_divided
from tests.engine.scoring import speak
from tests.engine.tiny_folder import tiny_folder

PROMPTS = [[5, 6, 7], [*range(5, 18)], [*range(5, 17), 20, 21], [9]]
"""They share a prefix, part within a page, and are more than run at a time."""


def engine(loaded: Any) -> Engine:
    config = EngineConfig(page_size=4, kv_tokens=400, limits=BatchLimits(3, 16), checks=True)
    return Engine(loaded.model, loaded.tokenizer, config)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_two_devices_say_what_one_says(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    alone = speak(engine(load(folder, dtype="float32")), PROMPTS, 6)
    with load_divided(folder, ["cpu", "cpu"], dtype="float32", threads=1) as divided:
        both = speak(engine(divided), PROMPTS, 6)
        assert divided.model.spec.device == "cpu,cpu"
        assert divided.model.spec.kv_bytes_per_token == load(folder, dtype="float32").model.spec.kv_bytes_per_token
    assert [each.tokens for each in both] == [each.tokens for each in alone]
    pairs = [
        pair for one, two in zip(alone, both, strict=True) for pair in zip(one.logprobs, two.logprobs, strict=True)
    ]
    assert max(abs(mine.logprob - theirs.logprob) for mine, theirs in pairs) < 1e-4


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        (["cpu", "meta"], "no attention implementation for device 'meta'"),
        pytest.param(
            ["cpu", "cuda:0"],
            "torch finds no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_devices_that_are_not_there_are_refused_by_name(devices: list[str], reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason), load_divided("anything", devices):
        pytest.fail("it was loaded")


LOSES_A_FOLLOWER = """
import os, signal, sys
from myna.engine.parallel.leader import load_divided
if __name__ == "__main__":
    with load_divided(sys.argv[1], ["cpu", "cpu"], dtype="float32", threads=1) as divided:
        group = divided.model._followers
        os.kill(group._processes[0].pid, signal.SIGKILL)
        signal.pause()
"""


def test_a_follower_that_dies_ends_the_engine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOSES_A_FOLLOWER, str(tiny_folder(tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert "a follower's process has ended" in ended.stderr + ended.stdout


def test_followers_end_when_their_leader_is_killed(tmp_path: Path) -> None:
    program = LOSES_A_FOLLOWER.replace(
        "os.kill(group._processes[0].pid, signal.SIGKILL)", "print(group._processes[0].pid, flush=True)"
    )
    command = [sys.executable, "-c", program, str(tiny_folder(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        pid = int(leader.stdout.readline())
        leader.send_signal(signal.SIGKILL)
        assert leader.stdout.read() == ""  # the follower has the other end: it is closed when both are gone
    assert not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_text() == ""
