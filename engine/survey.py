"""What an engine shows of itself to people who look: its requests, the batches of its last steps, the prefixes that are shared.

Law: a survey is bounded, whatever the engine holds, and nothing is kept for it but one note a step. Times are told as seconds
ago, so that no two processes need the same clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from myna.engine.program import Program, ProgramState
from myna.engine.request import RequestId
from myna.engine.stats import PrefixView, RequestView, Stage, Steps
from myna.engine.tree import Node

BUCKET = 0.1
"""Seconds of steps that are told as one."""
MOST_BUCKETS = 64
"""Buckets that are kept until somebody asks."""
MOST_REQUESTS = 256
MOST_PREFIXES = 48
LABEL_TOKENS = 40
"""Tokens of a prefix that are spelled, so that people recognise it."""
LABEL = 96
"""Characters of that."""


@dataclass(slots=True)
class _Bucket:
    began: float
    seconds: float = 0.0
    steps: int = 0
    computed: int = 0
    drawn: int = 0
    running: int = 0
    waiting: int = 0
    pages: int = 0


class StepLog:
    """The last steps, in buckets."""

    def __init__(self) -> None:
        self._buckets: deque[_Bucket] = deque(maxlen=MOST_BUCKETS)
        self._computed = 0
        self._drawn = 0

    def note(
        self, began: float, seconds: float, *, computed: int, drawn: int, running: int, waiting: int, pages: int
    ) -> None:
        """A step has ended. `computed` and `drawn` count since the engine's start."""
        buckets = self._buckets
        if not buckets or began - buckets[-1].began >= BUCKET:
            buckets.append(_Bucket(began))
        bucket = buckets[-1]
        bucket.seconds += seconds
        bucket.steps += 1
        bucket.computed += computed - self._computed
        bucket.drawn += drawn - self._drawn
        bucket.running, bucket.waiting, bucket.pages = running, waiting, pages
        self._computed, self._drawn = computed, drawn

    def take(self, now: float) -> tuple[Steps, ...]:
        """What was noted since it was taken last, but for the bucket that still fills."""
        ready = [b for b in self._buckets if now - b.began >= BUCKET]
        for _ in ready:
            self._buckets.popleft()
        return tuple(
            Steps(
                now - b.began, b.seconds, b.steps, b.drawn, max(b.computed - b.drawn, 0), b.running, b.waiting, b.pages
            )
            for b in ready
        )


def requests(groups: Iterable[tuple[RequestId, Sequence[Program]]]) -> Iterator[RequestView]:
    """What is under way; of a request with siblings, the first."""
    for id_, programs in groups:
        if programs:
            yield _request(id_, programs[0])


def _request(id_: RequestId, program: Program) -> RequestView:
    context, output = program.context, program.output
    drawn = 0 if output is None else output.drawn
    if program.state is not ProgramState.RUNNING:
        stage = Stage.QUEUED
    elif drawn or program.work <= 1:
        stage = Stage.DECODE
    else:
        stage = Stage.PREFILL
    node = context.node.id if context.node.parent is not None else None
    return RequestView(id_, stage, len(context.tokens), context.computed, program.cached, drawn, node)


def prefixes(roots: Iterable[tuple[str, Node]], spell: Callable[[list[int]], str]) -> Iterator[PrefixView]:
    """The nodes that saved most, each after its parent: at most `MOST_PREFIXES`."""
    heap: list[tuple[tuple[int, int, int], int, str, Node]] = []
    for namespace, root in roots:
        _offer(heap, namespace, root)
    for _ in range(MOST_PREFIXES):
        if not heap:
            return
        _, _, namespace, node = heapq.heappop(heap)
        parent = node.parent.id if node.parent is not None and node.parent.parent is not None else None
        text = spell(list(node.tokens[:LABEL_TOKENS]))[:LABEL]
        size = len(node.tokens)
        yield PrefixView(node.id, parent, namespace, node.end - size, size, node.hits, node.locks, text)
        _offer(heap, namespace, node)


def _offer(heap: list[tuple[tuple[int, int, int], int, str, Node]], namespace: str, parent: Node) -> None:
    children: Iterable[Node] = parent.children.values()
    if len(parent.children) > MOST_PREFIXES:
        children = heapq.nsmallest(MOST_PREFIXES, children, key=_rank)
    for child in children:
        heapq.heappush(heap, (_rank(child), child.id, namespace, child))


def _rank(node: Node) -> tuple[int, int, int]:
    """What saved most comes first, then what is shared now, then what is long."""
    return -node.hits * len(node.tokens), -node.locks, -len(node.tokens)
