"""What an engine tells about itself, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from myna.engine.request import RequestId


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Times are in seconds; `lookup_tokens` were looked for in the prefix cache, `hit_tokens` found."""

    running: int
    waiting: int
    contexts: int
    pins: int
    pages: int
    free_pages: int
    evictable_pages: int
    lookup_tokens: int
    hit_tokens: int
    evicted_tokens: int
    preemptions: int
    steps: int
    computed_tokens: int
    drawn_tokens: int
    step_seconds: float
    model_seconds: float
    last_step_seconds: float


class Stage(StrEnum):
    """Where a request is in the engine."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps that began within one moment, which is `ago` seconds old: the seconds that they took, the tokens drawn, the
    prompt tokens computed; and what ran, waited and was in use at the end of the last one."""

    ago: float
    seconds: float
    steps: int
    drawn: int
    prefilled: int
    running: int
    waiting: int
    pages: int


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request. `tokens` of its context, of which `computed` have KV, and `cached` came from the prefix tree; `drawn` by the
    output under way. `node`: the deepest node of the tree that it holds."""

    id: RequestId
    stage: Stage
    tokens: int
    computed: int
    cached: int
    drawn: int
    node: int | None


@dataclass(frozen=True, slots=True)
class PrefixView:
    """A node of the prefix tree: `tokens` from position `begin` on, found `hits` times and held by `holders` now. `parent` is
    always shown too. `text`: how it begins."""

    id: int
    parent: int | None
    namespace: str
    begin: int
    tokens: int
    hits: int
    holders: int
    text: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All of it. `left_out`: requests that are not shown."""

    requests: tuple[RequestView, ...]
    steps: tuple[Steps, ...]
    prefixes: tuple[PrefixView, ...]
    left_out: int = 0
