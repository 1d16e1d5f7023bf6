"""The items of a response while they are written: one after another, each opened, filled and closed by events.

Law: an item is closed before the next one opens, and its last event holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from myna.actors.gateway.openai.callstream import Begun, Piece
from myna.actors.gateway.openai.toolcalls import Called
from myna.sdk import ids


class MakeEvent(Protocol):
    """Numbers and writes an event."""

    def __call__(self, kind: str, **fields: Any) -> bytes:
        """The event's bytes."""


class ItemStream:
    """The events of one response's items."""

    def __init__(self, event: MakeEvent) -> None:
        self._event = event
        self._open: dict[str, Any] | None = None
        self.items: list[dict[str, Any]] = []
        """Those that are closed."""

    def words(self, text: str) -> Iterator[bytes]:
        """More text."""
        if self._open is None or self._open["type"] != "message":
            yield from self.close()
            self._open = text_item("")
            yield self._added({**self._open, "status": "in_progress", "content": []})
            yield self._event("response.content_part.added", **self._place(part=True), part=_part(""))
        self._open["content"][0]["text"] += text
        if text:
            yield self._event("response.output_text.delta", **self._place(part=True), delta=text, logprobs=[])

    def call(self, piece: Piece) -> Iterator[bytes]:
        """More of a tool call."""
        if isinstance(piece, Begun):
            yield from self.close()
            self._open = call_item(Called(piece.name, ""))
            yield self._added({**self._open, "status": "in_progress"})
        elif self._open is not None:
            self._open["arguments"] += piece.text
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=piece.text)

    def whole_call(self, call: Called) -> Iterator[bytes]:
        """A tool call that was not seen before its end."""
        yield from self.close()
        self._open = call_item(call)
        yield self._added({**self._open, "arguments": "", "status": "in_progress"})
        yield self._event("response.function_call_arguments.delta", **self._place(), delta=call.arguments)

    def close(self) -> Iterator[bytes]:
        """The end of the item that is open."""
        item = self._open
        if item is None:
            return
        if item["type"] == "message":
            part = item["content"][0]
            place = self._place(part=True)
            yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
            yield self._event("response.content_part.done", **place, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **self._place(), **done)
        yield self._event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._open = None

    def _added(self, item: dict[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=len(self.items), item=item)

    def _place(self, *, part: bool = False) -> dict[str, Any]:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self.items)}
        return {**place, "content_index": 0} if part else place


def text_item(text: str) -> dict[str, Any]:
    """A message."""
    head = {"id": ids.new("msg"), "type": "message", "role": "assistant", "status": "completed"}
    return {**head, "content": [_part(text)]}


def call_item(call: Called) -> dict[str, Any]:
    """A tool call."""
    head = {"id": ids.new("fc"), "type": "function_call", "status": "completed", "call_id": ids.new("call")}
    return {**head, "name": call.name, "arguments": call.arguments}


def call_items(calls: Sequence[Called]) -> list[dict[str, Any]]:
    """Whole tool calls."""
    return [call_item(Called(call.name, call.arguments or json.dumps({}))) for call in calls]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
