from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from myna.engine import frames
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits, StepUnderWay
from myna.engine.plan import StepPlan
from myna.engine.process import EngineServer, ServeConfig
from myna.engine.sampler import Row
from myna.engine.tokens import PromptTokenizer
from tests.engine.hash_model import HashModel
from tests.engine.tiny_folder import tiny_folder
from tests.engine.tiny_tokenizers import byte_level

torch.set_num_threads(1)
LIMITS = BatchLimits(4, 64)


@dataclass
class Host:
    """The host's end of the channel."""

    channel: socket.socket
    buffer: frames.FrameBuffer = field(default_factory=frames.FrameBuffer)
    heard: list[frames.Report] = field(default_factory=list)
    ended: bool = False

    def say(self, *commands: frames.Command) -> None:
        self.channel.sendall(b"".join(frames.encode(command) for command in commands))

    def hear(self) -> frames.Report | None:
        """The next report, or None at the end of the conversation."""
        while not self.heard and not self.ended:
            data = self.channel.recv(65536)
            self.ended = not data
            self.heard += [frames.decode_report(body) for body in self.buffer.feed(data)]
        return self.heard.pop(0) if self.heard else None

    def until(self, kind: type[frames.Report]) -> list[frames.Report]:
        said: list[frames.Report] = []
        while (report := self.hear()) is not None:
            said.append(report)
            if isinstance(report, kind):
                return said
        raise AssertionError(f"the conversation ended without {kind}: {said}")


def call(text: str, tokens: int = 5, **sampling: object) -> frames.CallFrame:
    output = frames.OutputSegment(0, frames.Sampling(temperature=0, max_tokens=tokens, **sampling))  # type: ignore[arg-type]
    return frames.CallFrame((frames.CallMessage(None, (frames.TextSegment(text), output)),))


@pytest.fixture
def host() -> Iterator[Host]:
    """A host that talks to a server in another thread, over a real socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    model = HashModel(vocabulary=len(byte_level()), context_length=200, eos=399)
    config = EngineConfig(page_size=4, kv_tokens=400, limits=LIMITS, checks=True)
    tokenizer = byte_level()
    engine = Engine(model, tokenizer, config)
    server = EngineServer(
        engine, PromptTokenizer(tokenizer), theirs, ServeConfig(stall_seconds=0.5, backlog_bytes=4096)
    )

    def serve() -> None:
        with theirs:
            server.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield Host(ours)
    ours.close()
    thread.join(timeout=20)
    assert not thread.is_alive(), "the engine outlives its host"


def test_it_says_what_it_serves_first(host: Host) -> None:
    ready = host.hear()
    assert isinstance(ready, frames.Ready)
    assert (ready.model, ready.context_length, ready.kv_tokens, ready.max_sequences) == ("hash", 200, 400, 4)
    assert ready.tokenizer_digest == PromptTokenizer(byte_level()).digest


def test_a_submitted_call_is_answered_and_repeats(host: Host) -> None:
    host.say(frames.Submit("a", call("abc", ignore_eos=True)))
    said = host.until(frames.DoneReport)
    deltas = [report for report in said if isinstance(report, frames.DeltaReport)]
    finished = [report for report in said if isinstance(report, frames.FinishedReport)]
    assert sum(len(delta.token_ids) for delta in deltas) == 5
    assert (finished[0].usage.prompt_tokens, finished[0].usage.output_tokens) == (3, 5)
    forced = tuple(token for delta in deltas[:2] for token in delta.token_ids)
    segment = frames.OutputSegment(0, frames.Sampling(temperature=0, max_tokens=5, ignore_eos=True), (forced,))
    again = frames.CallFrame((frames.CallMessage(None, (frames.TextSegment("abc"), segment)),))
    host.say(frames.Submit("b", again))
    more = [report for report in host.until(frames.DoneReport) if isinstance(report, frames.DeltaReport)]
    assert [delta.token_ids for delta in more] == [delta.token_ids for delta in deltas[2:]]
    assert [delta.text for delta in more] == [delta.text for delta in deltas[2:]]


def test_of_two_that_wait_the_one_begins_first_whose_order_is_less(host: Host) -> None:
    running = [frames.Submit(f"running {n}", call("abc", 20 + n, ignore_eos=True)) for n in range(4)]
    waiting = [
        frames.Submit(name, call("abc", 2, ignore_eos=True), order=n) for name, n in (("last", 2.0), ("next", 1.0))
    ]
    host.say(*running, *waiting)
    done = [host.until(frames.DoneReport)[-1] for _ in range(6)]
    ids = [report.request_id for report in done if isinstance(report, frames.DoneReport)]
    assert ids.index("next") < ids.index("last")


def test_a_seed_of_the_call_serves_outputs_that_name_none(host: Host) -> None:
    output = frames.OutputSegment(0, frames.Sampling(max_tokens=8, temperature=50))
    sampled = frames.CallFrame((frames.CallMessage(None, (frames.TextSegment("abc"), output)),))
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        host.say(frames.Submit(name, sampled, seed=seed))
        said = host.until(frames.DoneReport)
        drawn.append([t for report in said if isinstance(report, frames.DeltaReport) for t in report.token_ids])
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_wrong_call_fails_alone_with_the_name_of_its_error(host: Host) -> None:
    nothing = frames.CallFrame((frames.CallMessage(None, (frames.TextSegment("abc"),)),))
    host.say(
        frames.Submit("sampling", call("a", top_p=7.0)),
        frames.Submit("prompt", nothing),
        frames.Submit("long", call("abc " * 200)),
        frames.Submit("good", call("abc")),
    )
    failed = [report for report in host.until(frames.DoneReport) if isinstance(report, frames.FailedReport)]
    assert {report.request_id: report.error for report in failed} == {
        "sampling": "InvalidSampling",
        "prompt": "InvalidPrompt",
        "long": "PromptTooLong",
    }


def test_nonsense_is_answered_and_the_conversation_goes_on(host: Host) -> None:
    for body in (b"", b"\xc1", b"\x80", b"\x81\xa4type\xa5bogus", b"\xff" * 50):
        host.channel.sendall(len(body).to_bytes(4, "big") + body)
        host.until(frames.Rejected)
    host.say(frames.Submit("good", call("abc")))
    host.until(frames.DoneReport)


def test_a_second_request_of_the_same_id_is_rejected_and_the_first_goes_on(host: Host) -> None:
    host.say(frames.Submit("a", call("abc", tokens=30)), frames.Submit("a", call("xyz")))
    said = host.until(frames.DoneReport)
    assert sum(isinstance(report, frames.Rejected) for report in said) == 1


def test_a_cancelled_request_ends_and_leaves_nothing_behind(host: Host) -> None:
    host.say(frames.Submit("a", call("abc", tokens=150, ignore_eos=True)), frames.Cancel("a"), frames.Query())
    said = host.until(frames.StatsReport)
    if not any(isinstance(report, frames.FailedReport) for report in said):
        said += host.until(frames.FailedReport)
    stats = next(report.stats for report in said if isinstance(report, frames.StatsReport))
    assert (stats.running, stats.waiting, stats.contexts) == (0, 0, 0)


def test_a_retained_prompt_is_cached_for_its_call(host: Host) -> None:
    text = "the quick brown fox jumps over the lazy dog while it rains"
    host.say(frames.Retain("pin", call(text)))
    host.until(frames.DoneReport)
    host.say(frames.Submit("a", call(text)), frames.Query())
    said = [*host.until(frames.DoneReport)]
    finished = next(report for report in said if isinstance(report, frames.FinishedReport))
    assert finished.usage.cached_tokens >= finished.usage.prompt_tokens - 4
    host.say(frames.Unpin("pin"), frames.Query())
    while (report := host.until(frames.StatsReport)[-1]) and isinstance(report, frames.StatsReport):
        if report.stats.pins == 0:
            break


class Recorded(PromptTokenizer):
    """Tells what it renders, in the order of all that happens."""

    def __init__(self, happened: list[str]) -> None:
        super().__init__(byte_level())
        self.happened = happened

    def plain(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        self.happened.append(text)
        return super().plain(text, first=first)


class Stepping(HashModel):
    """Tells of each step."""

    def __init__(self, happened: list[str]) -> None:
        super().__init__(vocabulary=len(byte_level()), context_length=200, eos=399, ahead=1)
        self.happened = happened

    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        self.happened.append("step")
        return super().begin(plan, rows)


def happenings(
    *commands: frames.Command, clock: Callable[[], float] = time.monotonic, limits: BatchLimits = LIMITS
) -> list[str]:
    """What a server does that finds all of these calls and prompts at once."""
    happened: list[str] = []
    ours, theirs = socket.socketpair()
    engine = Engine(Stepping(happened), byte_level(), EngineConfig(page_size=4, kv_tokens=400, limits=limits))
    server = EngineServer(engine, Recorded(happened), theirs, clock=clock)
    host = Host(ours)
    with ours, theirs:
        host.say(*commands)
        thread = threading.Thread(target=server.serve)
        thread.start()
        for _ in commands:
            host.until(frames.DoneReport)
        host.say(frames.Stop())
        thread.join()
    return happened


def test_what_is_kept_for_nobody_is_rendered_when_the_step_of_who_waits_has_begun() -> None:
    happened = happenings(frames.Retain("kept", call("later")), frames.Submit("a", call("abc", 4, ignore_eos=True)))
    assert happened[:3] == ["abc", "step", "later"]


def test_many_prompts_at_once_hold_no_step_up_for_long() -> None:
    ticks = itertools.count()
    calls = [frames.Submit(name, call(name, 9, ignore_eos=True)) for name in "abc"]
    happened = happenings(*calls, clock=lambda: next(ticks))  # a second for each look at the clock
    assert [what for what in happened if what != "step"] == ["a", "b", "c"]
    assert happened.index("a") < happened.index("step") < happened.index("b")


def test_a_server_that_waits_until_it_is_calm_does_not_turn_in_place() -> None:
    turns = itertools.count()
    limits = BatchLimits(4, 64, ahead_tokens=0, calm=0.05)
    kept = frames.Retain("kept", call("kept for a call to come"))
    happened = happenings(frames.Submit("a", call("abc", 4)), kept, clock=lambda: next(turns), limits=limits)
    assert happened[-1] == "step", "it was computed in the end"
    assert next(turns) < 60


def test_stop_with_drain_finishes_what_was_submitted_and_refuses_the_rest(host: Host) -> None:
    host.say(frames.Submit("a", call("abc")), frames.Stop(drain=True), frames.Submit("late", call("abc")))
    said = host.until(frames.Stopped)
    assert [report.request_id for report in said if isinstance(report, frames.DoneReport)] == ["a"]
    assert [report.request_id for report in said if isinstance(report, frames.FailedReport)] == ["late"]
    assert host.hear() is None


def test_a_host_that_reads_nothing_is_given_up_in_the_end(host: Host) -> None:
    host.channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(400):
        host.say(frames.Submit(f"r{number}", call("abc", tokens=190, ignore_eos=True)))
    # The fixture's end proves it: the server's thread leaves by itself, since we neither read nor close.
    host.channel.settimeout(60)
    while host.channel.recv(1, socket.MSG_PEEK) and not _peer_closed(host.channel):
        pass


def _peer_closed(channel: socket.socket) -> bool:
    try:
        channel.send(frames.encode(frames.Query()))
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models"))


def start(model: str) -> tuple[subprocess.Popen[bytes], Host]:
    ours, theirs = socket.socketpair()
    ours.settimeout(100)
    command = [sys.executable, "-m", "myna.engine.process", "--fd", str(theirs.fileno()), "--model", model]
    options = ["--dtype", "float32", "--kv-tokens", "1024", "--threads", "1"]
    with theirs:
        process = subprocess.Popen([*command, *options], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    return process, Host(ours)


def test_a_process_serves_a_folder_and_exits_when_its_host_goes_away(folder: Path) -> None:
    process, host = start(str(folder))
    ready = host.hear()
    assert isinstance(ready, frames.Ready)
    assert ready.kv_tokens == 1024
    host.say(frames.Submit("a", call("the quick")))
    said = host.until(frames.DoneReport)
    assert any(isinstance(report, frames.FinishedReport) for report in said)
    host.channel.close()
    _, logs = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b'"event": "engine ready"' in logs


def test_a_model_that_cannot_be_loaded_is_named_before_the_process_ends(tmp_path: Path) -> None:
    process, host = start(str(tmp_path / "nothing-here"))
    report = host.hear()
    assert isinstance(report, frames.FailedReport)
    assert (report.request_id, report.error) == ("", "ModelRefused")
    process.communicate(timeout=60)
    assert process.returncode == 1
    host.channel.close()
