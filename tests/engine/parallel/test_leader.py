from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from myna.engine import frames
from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import ModelRefused
from myna.engine.interface import BatchLimits
from myna.engine.loading import load
from myna.engine.parallel.leader import load_divided
from tests.engine.scoring import speak
from tests.engine.test_process import Host, call
from tests.engine.tiny_folder import tiny_folder

PROMPTS = [[5, 6, 7], [*range(5, 18)], [*range(5, 17), 20, 21], [9]]
"""They share a prefix, part within a page, and are more than run at a time."""


def engine(loaded: Any) -> Engine:
    config = EngineConfig(page_size=4, kv_tokens=400, limits=BatchLimits(3, 16), checks=True)
    return Engine(loaded.model, loaded.tokenizer, config)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_two_devices_say_what_one_says(folder: Path) -> None:
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lost", ["follower", "leader"])
def test_an_engine_over_two_devices_answers_and_ends_when_one_is_lost(lost: str, folder: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(200)
    command = [sys.executable, "-m", "myna.engine.process", "--fd", str(theirs.fileno()), "--model", str(folder)]
    options = ["--device", "cpu,cpu", "--dtype", "float32", "--kv-tokens", "1024", "--threads", "1"]
    with theirs:
        leader = subprocess.Popen([*command, *options], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    with ours, leader:
        host = Host(ours)
        ready = host.hear()
        assert isinstance(ready, frames.Ready)
        assert (ready.device, ready.kv_tokens) == ("cpu,cpu", 1024)
        host.say(frames.Submit("a", call("the quick")))
        assert any(isinstance(report, frames.FinishedReport) for report in host.until(frames.DoneReport))
        (follower,) = map(int, Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text().split())
        ended = select.poll()
        ended.register(os.pidfd_open(follower), select.POLLIN)
        os.kill(follower if lost == "follower" else leader.pid, signal.SIGKILL)
        assert ended.poll(60_000), "the follower outlives its leader"
        _, logs = leader.communicate(timeout=60)
    assert leader.returncode == (1 if lost == "follower" else -signal.SIGKILL)
    assert (b"a follower's process has ended" in logs) == (lost == "follower")
