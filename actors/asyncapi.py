"""The wire as an AsyncAPI document, made from `messages` and `subjects`: what is written there is what is documented.

    python -m myna.actors.asyncapi > actors/asyncapi.json

Law: every message of the wire is on a channel here, and every subject of a stream is a channel (`tests/actors/test_asyncapi.py`).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, get_args

import msgspec

from myna.actors import messages as m
from myna.actors import subjects
from myna.actors.subjects import FromWorker, Question, Stream, ToWorker

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_PARAMETERS = {
    "tenant": "Whose it is.",
    "session": "The session's id: unique for ever.",
    "variable": "The variable's id: unique in its session.",
    "worker": "The worker's id.",
    "n": "A number, from 0.",
}


class Party(StrEnum):
    """Who sends or receives."""

    CLIENT = "client"
    AGENT = "agent"
    WORKER = "worker"
    SCHEDULER = "scheduler"
    OPERATOR = "operator"
    STREAM = "stream"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Channel:
    """One kind of subject: `messages` go from `senders` to `receivers` on `address`; `reply` comes back to who asks."""

    name: str
    address: str
    summary: str
    messages: tuple[type, ...]
    senders: tuple[Party, ...]
    receivers: tuple[Party, ...]
    stream: Stream | None = None
    reply: type | None = None


def _members(union: Any) -> tuple[type, ...]:
    return get_args(union) or (union,)


_SESSION = "myna.{tenant}.{session}"
_WRITERS = (Party.CLIENT, Party.AGENT, Party.WORKER, Party.SCHEDULER)
_ORDERS = {
    ToWorker.RUN: (m.Run, "Run a call."),
    ToWorker.STOP: (m.Stop, "Stop an attempt."),
    ToWorker.RETAIN: (m.Retain, "Keep the KV of a prompt."),
    ToWorker.ANTICIPATE: (m.Anticipate, "Begin a call once its last input has been made here."),
    ToWorker.RELEASE: (m.Release, "Keep it no more."),
    ToWorker.DRAIN: (m.Drain, "Finish what runs, and leave."),
    ToWorker.CORDON: (m.Cordon, "Take no new calls for now."),
}
_REPORTS = {
    FromWorker.ANNOUNCE: (m.Announce, "A worker presents itself."),
    FromWorker.BEAT: (m.Beat, "A worker lives: once a second."),
    FromWorker.EVENT: (m.Event, "How an attempt fares."),
    FromWorker.LEAVE: (m.Leave, "A worker goes."),
}
_QUESTIONS: dict[Question, tuple[type, type, str]] = {
    Question.STATUS: (m.StatusRequest, m.Status, "What the scheduler sees."),
    Question.WHY: (m.Why, m.Explanation, "Why a call runs where and when it does."),
    Question.GRAPH: (m.GraphRequest, m.GraphView, "A session's graph as it is."),
    Question.LOG: (m.LogRequest, m.LogPage, "A session's log, page by page, for its tenant."),
    Question.DRAIN: (m.DrainRequest, m.Status, "Have a worker finish and leave."),
    Question.CORDON: (m.CordonRequest, m.Status, "Have a worker take no new calls, or take them again."),
}
_ASKED_BY = {Question.DRAIN: Party.OPERATOR, Question.CORDON: Party.OPERATOR, Question.LOG: Party.CLIENT}


def channels() -> Iterator[Channel]:
    """All of them."""
    yield Channel(
        *("log", f"{_SESSION}.log", "A session's history, entry by entry.", _members(m.LogEntry)),
        *((Party.CLIENT, Party.SCHEDULER), (Party.SCHEDULER,), subjects.LOG),
    )
    yield Channel(
        *("set", f"{_SESSION}.set.{{variable}}", "A variable's end, written once.", _members(m.Outcome)),
        *(_WRITERS, (Party.STREAM,), subjects.VALUES),
    )
    yield Channel(
        *("var", f"{_SESSION}.var.{{variable}}", "What the stream accepted on `set`: read here.", _members(m.Outcome)),
        *((Party.STREAM,), (Party.CLIENT, Party.AGENT, Party.GATEWAY)),
    )
    yield Channel(
        *("put", f"{_SESSION}.put.{{variable}}.{{n}}", "Piece n of a token stream, written once.", (m.Chunk,)),
        *((Party.WORKER, Party.AGENT), (Party.STREAM,), subjects.CHUNKS),
    )
    yield Channel(
        *("tok", f"{_SESSION}.tok.{{variable}}.{{n}}", "What the stream accepted on `put`: read here.", (m.Chunk,)),
        *((Party.STREAM,), (Party.CLIENT, Party.AGENT, Party.GATEWAY)),
    )
    yield Channel(
        *("alive", f"{_SESSION}.alive", "A client still holds its session.", (m.Alive,)),
        *((Party.CLIENT,), (Party.SCHEDULER,)),
    )
    yield from _of_workers("worker", "", Party.WORKER)
    yield from _of_workers("agent", "{tenant}.", Party.AGENT)
    yield Channel(
        *("hello", subjects.HELLO, "A scheduler leads: who no longer hears it is cut off.", (m.Hello,)),
        *((Party.SCHEDULER,), tuple(party for party in Party if party is not Party.STREAM)),
    )
    yield Channel(
        *("sight", "myna-sight.{worker}", "What a worker shows to people who look.", (m.Sight,)),
        *((Party.WORKER,), (Party.GATEWAY, Party.OPERATOR)),
    )
    for question, (asked, answer, summary) in _QUESTIONS.items():
        for name, address, sender in (
            ("question", f"myna-question.{question}", Party.OPERATOR),
            ("ask", f"myna-ask.{{tenant}}.{question}", Party.CLIENT),
        ):
            if _ASKED_BY.get(question, sender) is sender:
                yield Channel(
                    f"{name}-{question}", address, summary, (asked,), (sender,), (Party.SCHEDULER,), reply=answer
                )
    yield Channel(
        *("tenant", "myna-tenant.{tenant}", "What the operator grants a tenant; the last holds.", (m.TenantPolicy,)),
        *((Party.OPERATOR,), (Party.SCHEDULER,), subjects.TENANTS),
    )
    yield Channel(
        *("usage", "myna-usage.{tenant}.{session}.{n}", "What a session used, in parts.", (m.SessionUsage,)),
        *((Party.SCHEDULER,), (Party.OPERATOR,), subjects.USAGE),
    )


def _of_workers(name: str, owner: str, party: Party) -> Iterator[Channel]:
    for order, (message, summary) in _ORDERS.items():
        address = f"myna-{name}.{owner}{{worker}}.{order}"
        yield Channel(f"{name}-{order}", address, summary, (message,), (Party.SCHEDULER,), (party,))
    for report, (message, summary) in _REPORTS.items():
        address = f"myna-{name}s.{owner}{{worker}}.{report}"
        yield Channel(f"{name}-{report}", address, summary, (message,), (party,), (Party.SCHEDULER,))


def document() -> dict[str, Any]:
    """AsyncAPI 3.0 of the whole wire."""
    known = list(channels())
    types = list(dict.fromkeys(t for c in known for t in (*c.messages, c.reply) if t is not None))
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Myna's wire", "version": f"{m.PROTOCOL}.0.0", "description": inspect.getdoc(m)},
        "defaultContentType": "application/msgpack",
        "channels": {c.name: _channel(c) for c in known},
        "operations": dict(_operations(known)),
        "components": {
            "messages": {t.__name__: _message(t) for t in types},
            "schemas": {name: _portable(schema) for name, schema in schemas.items()},
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    parameters = {name: {"description": _PARAMETERS[name]} for name in _PARAMETER.findall(channel.address)}
    described: dict[str, Any] = {
        "address": channel.address,
        "summary": channel.summary,
        "messages": {t.__name__: {"$ref": f"#/components/messages/{t.__name__}"} for t in _carried(channel)},
    }
    if parameters:
        described["parameters"] = parameters
    if channel.stream is not None:
        described["x-stream"] = {"name": channel.stream.name, "oneMessagePerSubject": channel.stream.single}
    return described


def _carried(channel: Channel) -> Iterable[type]:
    return channel.messages if channel.reply is None else (*channel.messages, channel.reply)


def _operations(known: Iterable[Channel]) -> Iterator[tuple[str, Any]]:
    """Who sends and who receives, each seen from itself."""
    for channel in known:
        for action, parties in (("send", channel.senders), ("receive", channel.receivers)):
            for party in parties:
                yield f"{party}-{action}-{channel.name}", _operation(channel, action)


def _operation(channel: Channel, action: str) -> dict[str, Any]:
    at = f"#/channels/{channel.name}"
    operation: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": at},
        "messages": [{"$ref": f"{at}/messages/{t.__name__}"} for t in channel.messages],
    }
    if channel.reply is not None:
        operation["reply"] = {"messages": [{"$ref": f"{at}/messages/{channel.reply.__name__}"}]}
    return operation


def _message(type_: type) -> dict[str, Any]:
    summary = " ".join((inspect.getdoc(type_) or "").split())
    return {"name": type_.__name__, "summary": summary, "payload": {"$ref": _REF.format(name=type_.__name__)}}


def _portable(schema: Any) -> Any:
    """The same in AsyncAPI's words: the end of a text is `$` in a pattern, and a discriminator is the name of its key alone."""
    match schema:
        case {"propertyName": str(name), "mapping": _}:
            return name
        case dict():
            return {k: v.replace("\\Z", "$") if k == "pattern" else _portable(v) for k, v in schema.items()}
        case list():
            return [_portable(item) for item in schema]
        case _:
            return schema


def text() -> str:
    """The document as it is committed."""
    return json.dumps(document(), indent=1, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


if __name__ == "__main__":
    sys.stdout.write(text())
