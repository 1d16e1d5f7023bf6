from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from click.testing import CliRunner
from hypothesis import given

from myna.actors.messages import PROTOCOL, Open, SessionId, Submit, Tenant, Timing, Usage, Value
from myna.sdk import cli
from myna.sdk.recording import Ended, Recording, Said
from myna.sdk.trace import trace
from tests.actors.stage import call

START = 1_750_000_000.0


def recording(*made: tuple[str, tuple[str, ...], tuple[float, float, float, float] | None]) -> Recording:
    """Calls: the name of each, what it reads, and its times after the start, if it has ended."""
    log = [Said(START, Open(protocol=PROTOCOL, name="demo"))]
    outcomes = {}
    for n, (name, inputs, times) in enumerate(made):
        log.append(Said(START + n / 1000, Submit(calls=(call(name, *inputs),))))
        if times is not None:
            received, began, first, ended = (START + t for t in times)
            timing = Timing(worker=f"engine-{n % 2}", received=received, began=began, first=first, ended=ended)
            used = Usage(prompt_tokens=9, cached_tokens=4, output_tokens=2)
            value = Value(text=name, model="m", call=f"call-{name}", attempt=1, usage=used, timing=timing)
            outcomes[name] = Ended(ended, value)
    return Recording(Tenant("default"), SessionId("s1"), START + 99, tuple(log), outcomes)


def check(made: dict[str, Any]) -> None:
    """What Perfetto asks of a trace: complete events, of which those of one track are nested or apart, and arrows in pairs."""
    events = json.loads(json.dumps(made))["traceEvents"]
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    arrows: dict[int, list[str]] = {}
    for event in events:
        assert event["ph"] in {"X", "M", "i", "s", "f"}
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ph"] == "M" or event["ts"] >= 0
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] in "sf":
            arrows.setdefault(event["id"], []).append(event["ph"])
    for slices in tracks.values():
        open_: list[tuple[int, int]] = []
        for begin, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_ and open_[-1][1] <= begin:
                open_.pop()
            assert not open_ or end <= open_[-1][1], "slices of one track cross"
            open_.append((begin, end))
    assert all(pair == ["s", "f"] for pair in arrows.values())


def test_a_trace_has_a_track_for_each_engine_a_slice_for_each_phase_and_an_arrow_for_each_variable() -> None:
    made = trace(recording(("a", (), (0.1, 0.2, 0.5, 1.0)), ("b", ("a",), (1.1, 1.1, 1.4, 2.0)), ("c", ("b",), None)))
    check(made)
    events = made["traceEvents"]
    named = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    assert set(named) == {"application", "engine-0", "engine-1"}
    slices = [(e["pid"], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert (named["engine-0"], "a", 100_000, 900_000) in slices
    assert (named["engine-0"], "queue and prefill", 200_000, 300_000) in slices
    assert (named["engine-1"], "decode", 1_400_000, 600_000) in slices
    assert [name for _, name, *_ in slices].count("reads its inputs") == 1  # b had nothing to wait for
    (begin, end) = (e for e in events if e["ph"] in "sf")
    assert (begin["name"], begin["pid"], end["pid"]) == ("a", named["engine-0"], named["engine-1"])
    (a,) = (e for e in events if e["ph"] == "X" and e["name"] == "a")
    assert a["args"]["cached_tokens"] == 4
    assert made["otherData"]["calls_without_times"] == 1


TIMES = st.tuples(*[st.floats(0, 3)] * 4).map(lambda t: tuple(sorted(t)))


@given(st.lists(TIMES, max_size=12))
def test_whatever_the_times_slices_never_cross(times: list[tuple[float, float, float, float]]) -> None:
    check(trace(recording(*((f"c{n}", (), t) for n, t in enumerate(times)))))


def test_the_command_writes_the_trace_and_the_graph_of_a_recording(tmp_path: Path) -> None:
    file = tmp_path / "run.myna"
    recording(("a", (), (0.1, 0.2, 0.5, 1.0)), ("b", ("a",), None)).save(file)
    runner = CliRunner()
    told = runner.invoke(cli.main, ["trace", str(file), "-o", str(tmp_path / "t.json")])
    assert told.exit_code == 0, told.output
    assert "1 calls have no times" in told.output
    check(json.loads((tmp_path / "t.json").read_text()))
    for name in ("g.svg", "g.dot", "g.json"):
        told = runner.invoke(cli.main, ["graph", str(file), "-o", str(tmp_path / name)])
        assert told.output == f"{tmp_path / name}: 2 calls\n"
    assert "done, 0.90 s" in (tmp_path / "g.svg").read_text()
    assert "n0 -> n1" in (tmp_path / "g.dot").read_text()
    refused = runner.invoke(cli.main, ["graph", str(file), "-o", str(tmp_path / "g.png")])
    assert (refused.exit_code, "ends in none of .svg, .dot, .json" in refused.output) == (1, True)
