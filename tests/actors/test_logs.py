from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from myna.actors import logs
from myna.actors.config import LogFormat, LogLevel, LogSettings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def configured(level: LogLevel = LogLevel.INFO, format: LogFormat = LogFormat.AUTO) -> io.StringIO:
    out = io.StringIO()
    logs.configure(LogSettings(level, format), process="test", stream=out)
    return out


def events(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_elsewhere_than_on_a_terminal_an_event_is_one_json_object_with_its_ids() -> None:
    out = configured()
    with logs.about("t-1", "s-1", None, 7):
        structlog.get_logger().info("dispatched", call="c-1")
    structlog.get_logger().info("idle")
    first, second = events(out)
    ids = {"tenant": "t-1", "session": "s-1", "call": "c-1", "attempt": 7}
    assert {"event": "dispatched", "process": "test", "level": "info", **ids}.items() <= first.items()
    assert "variable" not in first
    assert "session" not in second


def test_libraries_lines_say_what_they_are_about_too() -> None:
    out = configured()
    with logs.about("t-1", "s-1"):
        logging.getLogger("some.package").warning("trouble")
    (event,) = events(out)
    assert event["session"] == "s-1"


def test_text_is_for_people() -> None:
    out = configured(format=LogFormat.TEXT)
    structlog.get_logger().info("dispatched", call="c-1")
    assert "dispatched" in out.getvalue()
    assert "call=c-1" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_events_below_the_level_are_not_written() -> None:
    out = configured(LogLevel.WARNING)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [event["event"] for event in events(out)] == ["loud"]


def test_no_secret_is_written() -> None:
    out = configured()
    structlog.get_logger().info(
        "connecting", password="hunter2", url="nats://ada:hunter2@host:4222", peer={"auth_token": "hunter2"}, tokens=7
    )
    assert "hunter2" not in out.getvalue()
    (event,) = events(out)
    assert event["url"] == "nats://(hidden)@host:4222"
    assert event["tokens"] == 7


def test_libraries_log_the_same_way_from_warnings_on() -> None:
    out = configured()
    logging.getLogger("some.package").info("chatter")
    logging.getLogger("some.package").warning("trouble at nats://ada:hunter2@host:1")
    (event,) = events(out)
    assert event["logger"] == "some.package"
    assert event["event"] == "trouble at nats://(hidden)@host:1"


def test_an_exception_is_part_of_its_event() -> None:
    out = configured()
    try:
        raise ValueError("wrong")
    except ValueError:
        structlog.get_logger().exception("failed")
    (event,) = events(out)
    assert event["exception"][0]["exc_value"] == "wrong"


@pytest.mark.parametrize("format", [LogFormat.JSON, LogFormat.TEXT])
def test_an_exception_tells_where_and_not_what_variables_held(format: LogFormat) -> None:
    out = configured(format=format)

    def fails() -> None:
        value = "a customer's " + "letter"
        raise ValueError(str(len(value)))

    try:
        fails()
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "fails" in out.getvalue()
    assert "letter" not in out.getvalue()


def test_an_application_that_configured_nothing_hears_only_of_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()
    logs.calm()
    structlog.get_logger().info("chatter")
    structlog.get_logger().warning("trouble", password="hunter2")
    said = capsys.readouterr()
    assert said.out == ""
    assert "trouble" in said.err
    assert "chatter" not in said.err + said.out
    assert "hunter2" not in said.err


def test_an_application_that_configured_its_logs_keeps_them() -> None:
    out = configured(LogLevel.DEBUG)
    logs.calm()
    structlog.get_logger().debug("still here")
    assert [event["event"] for event in events(out)] == ["still here"]
