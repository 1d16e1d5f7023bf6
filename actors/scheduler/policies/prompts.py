"""Parts of a prompt: how much of it is known, and the call cut where a part of it ends."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from msgspec import structs

from myna.actors.messages import Input, Message, ModelCall, Output, Segment, Text, VarId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.policies.lengths import CHARACTERS

if TYPE_CHECKING:
    from myna.actors.scheduler.graph import SessionGraph
    from myna.actors.scheduler.nodes import VarNode


def converses(call: ModelCall) -> bool:
    """Whether the call is a later turn of a conversation, to be followed by another, it may be."""
    assistants = [m for m in call.messages if m.role == "assistant"]
    return len(assistants) > 1 and any(isinstance(s, Output) for s in call.messages[-1].segments[-1:])


def known_tokens(call: ModelCall, graph: SessionGraph) -> float:
    """Tokens before the first input that has no value yet."""
    tokens = 0.0
    for message in call.messages:
        for segment in message.segments:
            length = _length(segment, graph, outputs=False)
            if length is None:
                return tokens
            tokens += length
    return tokens


def _length(segment: Segment, graph: SessionGraph, *, outputs: bool) -> float | None:
    """Tokens of a segment; None if it is not known yet. With `outputs` those count that have a value."""
    if isinstance(segment, Text):
        return len(segment.text) / CHARACTERS
    if isinstance(segment, Output) and not outputs:
        return None
    nodes = [graph.variables[VarId(v)] for v in segment.variables]
    if isinstance(segment, Output):
        nodes = nodes[:1]
    if any(node.status is not OutcomeStatus.VALUE for node in nodes):
        return None
    return sum(node.size for node in nodes)


def awaited(call: ModelCall, graph: SessionGraph) -> VarNode | None:
    """The input that ends what is known of the prompt; None if that is not an input, or one of several that are joined."""
    for segment in (s for m in call.messages for s in m.segments):
        if _length(segment, graph, outputs=False) is None:
            if isinstance(segment, Input) and len(segment.variables) == 1:
                return graph.variables[VarId(segment.variables[0])]
            return None
    return None


def cut(call: ModelCall, tokens: float, graph: SessionGraph, *, stream: bool = False) -> ModelCall | None:
    """The call up to so many tokens, its outputs as inputs; None if that is nothing. With `stream` instead up to the end of the
    input that is `awaited`."""
    messages: list[Message] = []
    left = inf if stream else tokens + 0.5
    for message in call.messages:
        segments: list[Segment] = []
        for segment in message.segments:
            length = _length(segment, graph, outputs=True)
            if stream and length is None:
                segments.append(segment)
            left = -1.0 if length is None else left - length
            if left < 0:
                break
            segments.append(Input(variables=segment.variables[:1]) if isinstance(segment, Output) else segment)
        if segments:
            messages.append(structs.replace(message, segments=tuple(segments)))
        if left < 0:
            break
    return structs.replace(call, messages=tuple(messages)) if messages else None
