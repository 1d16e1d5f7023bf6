from __future__ import annotations

import struct
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.messages import Timing, Value
from myna.sdk.errors import NotReady
from myna.sdk.timeline import CallTimes, Panel, assign_lanes, collect, draw


def call(start: float, end: float, worker: str = "engine-1", label: str = "call") -> CallTimes:
    return CallTimes(label, worker, start, start, start, end)


def value(call: str, *times: float, worker: str = "engine-1", model: str = "m", attempt: int = 1) -> Value:
    received, began, first, ended = times
    timing = Timing(worker=worker, received=received, began=began, first=first, ended=ended)
    return Value(text="", call=call, model=model, attempt=attempt, timing=timing)


def test_calls_side_by_side_have_lanes_of_their_own_and_later_ones_use_them_again() -> None:
    rows = assign_lanes([call(0, 2), call(1, 3), call(2, 4), call(3.5, 5)])
    assert [row.lane for row in rows] == [0, 1, 0, 1]


def test_each_worker_has_its_own_lanes() -> None:
    rows = assign_lanes([call(0, 2, "a"), call(0, 2, "b"), call(1, 3, "a")])
    assert {(row.worker, row.lane) for row in rows} == {("a", 0), ("a", 1), ("b", 0)}


MOMENTS = st.integers(0, 40)
CALLS = st.lists(
    st.builds(
        lambda start, length, worker: call(start, start + length, worker), MOMENTS, MOMENTS, st.sampled_from("ab")
    )
)


@given(CALLS)
def test_no_two_calls_of_a_lane_overlap_and_no_lane_is_needless(calls: list[CallTimes]) -> None:
    rows = assign_lanes(calls)
    assert sorted((r.call for r in rows), key=repr) == sorted(calls, key=repr)
    for worker in {r.worker for r in rows}:
        mine = [r for r in rows if r.worker == worker]
        for lane in {r.lane for r in mine}:
            there = sorted((r.call for r in mine if r.lane == lane), key=lambda c: (c.received, c.ended))
            assert all(a.ended <= b.received for a, b in pairwise(there))
        # As a call of no length at a moment where another one begins is in a lane too, moments are closed intervals here.
        most = max(sum(o.call.received <= r.call.received <= o.call.ended for o in mine) for r in mine)
        assert max(r.lane for r in mine) < most


def test_the_outputs_of_one_call_are_one_bar_from_its_receipt_to_its_last_end() -> None:
    (only,) = collect([("f", value("c1", 1, 2, 3, 4)), ("f", value("c1", 1, 2, 4, 6))])
    assert only == CallTimes("f", "engine-1", 1, 2, 3, 6)


def test_two_attempts_of_a_call_are_two_bars() -> None:
    assert len(collect([("f", value("c1", 1, 2, 3, 4)), ("f", value("c1", 5, 6, 7, 8, attempt=2))])) == 2


def test_what_no_model_made_is_native_and_what_has_no_timing_is_left_out() -> None:
    calls = collect([("set", Value(text="by hand")), ("search", value("c2", 1, 1, 2, 2, worker="agent", model=""))])
    assert [(c.label, c.native) for c in calls] == [("search", True)]


def panels() -> list[list[Panel]]:
    calls = (
        CallTimes("draft", "engine-1", 100.0, 100.1, 100.4, 101.0),
        CallTimes("search", "agent-search-0123456789abcdef", 101.0, 101.0, 101.0, 101.0, native=True),
        CallTimes("edit", "engine-1", 101.1, 101.1, 101.2, 103.0),
    )
    return [
        [Panel("Myna", calls, 99.9, 103.1), Panel("waiting", calls[:1], 99.9, 101.2)],
        [Panel("none", (), 0.0, 1.0)],
    ]


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return int(width), int(height)


def test_a_picture_is_a_png_that_grows_with_its_lanes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = png_size(draw(panels(), tmp_path / "new" / "small.png", "every call"))
    many = tuple(call(0, 1) for _ in range(20))
    tall = png_size(draw([[Panel("many", many, 0.0, 1.0)]], tmp_path / "tall.png"))
    assert small[0] > 1500
    assert tall[1] > small[1]


def test_a_picture_shows_every_call_every_worker_and_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **_: drawn.append(self))
    draw(panels(), tmp_path / "x.png", "every call")
    (figure,) = drawn
    axes = figure.axes[0]  # the first panel
    assert [t.get_text() for t in axes.get_yticklabels()] == ["engine-1  lane 1", "agent-search  lane 1"]
    texts = [t.get_text() for t in axes.texts]
    assert "edit" in texts
    assert "3.20 s" in texts
    outlines = [(round(p.get_x(), 3), round(p.get_width(), 3)) for p in axes.patches if not p.get_fill()]
    assert (0.1, 1.0) in outlines
    assert (1.2, 1.9) in outlines
    legend = " ".join(t.get_text() for t in figure.legends[0].get_texts())
    assert all(word in legend for word in ("prefill", "decode", "native", "last result"))


def test_without_matplotlib_a_person_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NotReady, match=r"myna\[local\]"):
        draw(panels(), tmp_path / "x.png")
