from __future__ import annotations

import pytest
from rich.console import Console

from myna.actors.messages import (
    CallSight,
    Phase,
    SessionStatus,
    SpanSight,
    Status,
    StepSight,
    Usage,
    WorkerKind,
    WorkerStatus,
)
from myna.actors.watch.history import EngineView
from myna.sdk import top
from myna.sdk.top import curve, rates, screen

AT = 1000.0


def step(ago: float, running: int = 4, drawn: int = 10, prefilled: int = 100) -> StepSight:
    return StepSight(
        at=AT - ago, seconds=0.1, steps=1, drawn=drawn, prefilled=prefilled, running=running, waiting=0, pages=50
    )


def engine(*steps: StepSight, spans: tuple[SpanSight, ...] = ()) -> EngineView:
    call = CallSight(tenant="t", session="s", call="c", attempt=1, function="f", phase=Phase.DECODE, since=1.0)
    load = {"pages": 100.0, "free_pages": 60.0, "evictable_pages": 6.0, "hit_tokens": 12345.0} if steps else {}
    return EngineView("engine-1", ("tiny",), 8, AT, load, (call,), steps, spans, (), 0)


def status() -> Status:
    worker = WorkerStatus(
        *(), worker="engine-1", kind=WorkerKind.ENGINE, serves=("tiny",), capacity=8, running=3, draining=True,
        silent_seconds=0.1,
    )  # fmt: skip
    session = SessionStatus(
        tenant="acme", session="s-1", name="report", calls=10, waiting=4, ready=1, running=2, done=3
    )
    return Status(scheduler="main", lease=1, workers=(worker,), sessions=(session,), queued=1)


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_shows_engines_queue_and_sessions_in_the_width_there_is(width: int) -> None:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(screen(status(), [engine(step(1.0), step(2.0))], width))
    shown = captured.get()
    for told in ("1 ready, 3 running, 4 tokens/s", "engine-1", "draining", "3/8", "34%", "report", "█"):
        assert told in shown, shown
    assert "…" not in shown, shown
    assert ("acme" in shown) == ("12,345" in shown) == (width == 120)


def test_rates_are_of_the_last_seconds_and_without_steps_of_the_calls_that_ended() -> None:
    assert rates(engine(step(1.0), step(2.0), step(20.0, drawn=999))) == (4.0, 40.0)
    used = Usage(prompt_tokens=30, cached_tokens=10, output_tokens=50)
    span = SpanSight(
        *(), tenant="t", session="s", call="c", attempt=1, function="f", received=AT - 2, began=AT - 2, first=AT - 1,
        ended=AT - 1, usage=used,
    )  # fmt: skip
    assert rates(engine(spans=(span,))) == (10.0, 4.0)


def test_the_curve_is_as_high_as_the_batch_and_empty_where_nothing_ran() -> None:
    drawn = curve(engine(step(29.0, running=8), step(1.0, running=4)))
    assert (drawn[0], drawn[-1], set(drawn[1:-1])) == ("█", "▄", {" "})
    assert curve(engine()).strip() == ""


def test_what_failed_of_a_session_is_red_however_little_it_is() -> None:
    session = SessionStatus(
        tenant="t", session="s", name="n", calls=1000, waiting=0, ready=0, running=0, done=1000, failed=1
    )
    bar = top._progress(session)
    assert [(str(span.style), span.end - span.start) for span in bar.spans] == [("green", 19), ("red", 1)]
