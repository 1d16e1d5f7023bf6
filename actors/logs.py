"""Logs: one structured event a line, ids bound to the context at the mailbox, no secret ever, and no text of a variable.

Whose work a task does is set in `ABOUT` where that work comes in; tasks that are begun there have it too, and each line that is
written says it, whoever writes it. It is made into text only then: to be bound costs a call a tenth of a microsecond.

Readable on a terminal, JSON elsewhere. Only standard error is written: standard output belongs to results. Library code
calls `structlog.get_logger()` and needs nothing from here; each process calls `configure` once, at its start.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

import structlog

from myna.actors.config import LogFormat, LogSettings

_SECRET_KEY = re.compile(r"pass(word|wd)?|secret|(auth|access)_?token|credential|authorization|api_?key", re.IGNORECASE)
_SECRET_URL = re.compile(r"(?<=://)[^\s/@]+@")
HIDDEN = "(hidden)"

IDS = ("tenant", "session", "call", "attempt", "variable")
ABOUT: ContextVar[tuple[object, ...]] = ContextVar("myna_about", default=())
"""What the running task's work is about: as many of `IDS` as are known, in their order, None or "" for one that is not."""


def configure(settings: LogSettings, *, process: str, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for this process. `process` is in every event."""
    out = sys.stderr if stream is None else stream
    text = settings.format is LogFormat.TEXT or (settings.format is LogFormat.AUTO and out.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*_SHARED, *_renderers(text=text, colors=text and out.isatty())],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,  # tests capture logs after loggers were first used
    )
    structlog.contextvars.bind_contextvars(process=process)
    _adopt_standard_library(out, level, text=text)


def calm() -> None:
    """For a library in an application that has not configured structlog: warnings and worse, on standard error."""
    if not structlog.is_configured():
        structlog.configure(
            processors=[*_SHARED, *_renderers(text=sys.stderr.isatty(), colors=sys.stderr.isatty())],
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
            cache_logger_on_first_use=False,
        )


def to_file(file: TextIO, settings: LogSettings, *, process: str) -> Any:
    """A logger of its own that writes JSON to `file`, whatever the application has configured."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    return structlog.wrap_logger(
        structlog.WriteLogger(file),
        processors=[*_SHARED, *_renderers(text=False, colors=False)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    ).bind(process=process)


@contextmanager
def about(*ids: object) -> Iterator[None]:
    """Bind `IDS` to every event logged inside the block, tasks that are begun there included."""
    token = ABOUT.set(ids)
    try:
        yield
    finally:
        ABOUT.reset(token)


def add_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: what the running task's work is about, beside what the event says itself."""
    for name, known in zip(IDS, ABOUT.get(), strict=False):
        if known:
            event.setdefault(name, known)
    return event


def hide_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: values under a secret's name, and user and password in URLs, are not shown."""
    return {key: _hide(key, value) for key, value in event.items()}


def _hide(key: str, value: Any) -> Any:
    if _SECRET_KEY.search(key):
        return HIDDEN
    if isinstance(value, str):
        return _SECRET_URL.sub(f"{HIDDEN}@", value)
    if isinstance(value, dict):
        return {k: _hide(str(k), v) for k, v in value.items()}
    return value


_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    add_ids,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    hide_secrets,
]


# Without the frames' variables: these hold other people's texts, and passwords under any name.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def _renderers(*, text: bool, colors: bool) -> list[structlog.typing.Processor]:
    if text:
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
    return [
        _TRACEBACKS,
        structlog.processors.JSONRenderer(default=str),
    ]


def _adopt_standard_library(out: TextIO, level: int, *, text: bool) -> None:
    """What libraries log goes the same way; below `warning` they say too much."""
    handler = logging.StreamHandler(out)
    rendered = _renderers(text=text, colors=False)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendered,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
