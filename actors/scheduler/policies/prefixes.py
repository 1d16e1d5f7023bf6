"""Which worker has a call's prefix, found by structure: a hash chain over leading segments.

Law: this is belief, and decides place only; the engine's own tree decides what is shared (Law 6). A constant is named by its
text, a variable that a call produces by itself, so that a prefix has its name before it has a value; a variable set by hand by
its text, where that is known. Names are salted with tenant and models: nothing is shared between tenants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from myna.actors.messages import Input, ModelCall, Output, Text, VarId, WorkerId
from myna.actors.scheduler.policies.lengths import CHARACTERS

LEAST = 16.0
"""Tokens that a segment must add to be worth a name of its own."""
HOLDERS = 8
"""Workers remembered for one prefix."""
ENTRIES = 4096
"""Prefixes remembered of a worker that does not tell its memory."""

Describe = Callable[[VarId], tuple[object, float]]
"""A variable's name and its length in tokens."""


class Boundary(NamedTuple):
    """The end of a leading part of a prompt: its name, and the tokens up to it."""

    name: int
    tokens: float


class Chain(NamedTuple):
    """A call's boundaries; the first `prompt` of them stand before its first output."""

    boundaries: tuple[Boundary, ...]
    prompt: int

    @property
    def tokens(self) -> float:
        """Tokens before the first output."""
        return self.boundaries[self.prompt - 1].tokens if self.prompt else 0.0

    @property
    def total(self) -> float:
        """Tokens of the whole context."""
        return self.boundaries[-1].tokens if self.boundaries else 0.0


def chain_of(call: ModelCall, salt: object, describe: Describe) -> Chain:
    """The prefixes of a call, shortest first. The end of the prompt is always one."""
    name = hash((salt, call.models, tuple(t.name for t in call.tools)))
    boundaries: list[Boundary] = []
    tokens, named, prompt = 0.0, 0.0, None
    for message in call.messages:
        name = hash((name, message.role))
        for segment in message.segments:
            if isinstance(segment, Text):
                name = hash((name, segment.text))
                tokens += len(segment.text) / CHARACTERS
            elif isinstance(segment, Input):
                for variable in segment.variables:
                    what, length = describe(VarId(variable))
                    name = hash((name, what))
                    tokens += length
            elif isinstance(segment, Output):
                if prompt is None:
                    if tokens > named or not boundaries:
                        boundaries.append(Boundary(name, tokens))
                    prompt = len(boundaries)
                what, length = describe(VarId(segment.variables[0]))
                name = hash((name, what))
                tokens += length
            if tokens - named >= LEAST:
                boundaries.append(Boundary(name, tokens))
                named = tokens
    return Chain(tuple(boundaries), len(boundaries) if prompt is None else prompt)


class Belief:
    """What each worker is thought to hold, least recently used out first."""

    def __init__(self) -> None:
        self._holders: dict[int, dict[WorkerId, None]] = {}
        self._held: dict[WorkerId, dict[int, float]] = {}
        self._tokens: dict[WorkerId, float] = {}

    def matched(self, chain: Chain, worker: WorkerId) -> float:
        """Leading tokens of the prompt that the worker is thought to have."""
        held = self._held.get(worker)
        if held:
            for boundary in reversed(chain.boundaries[: chain.prompt]):
                if boundary.name in held:
                    return boundary.tokens
        return 0.0

    def holders(self, chain: Chain, most: int, least: float) -> list[tuple[WorkerId, float]]:
        """Workers that have a part of the prompt of at least so many tokens, those with the longest part first, and how many
        tokens of it."""
        found: dict[WorkerId, float] = {}
        for name, tokens in reversed(chain.boundaries[: chain.prompt]):
            if tokens < least:
                break
            for worker in reversed(self._holders.get(name, ())):
                if worker not in found:
                    found[worker] = tokens
                    if len(found) == most:
                        return list(found.items())
        return list(found.items())

    def placed(self, chain: Chain, worker: WorkerId, memory: int | None) -> None:
        """The worker computes this call, and then has all of it. `memory`: tokens that it can hold."""
        held = self._held.setdefault(worker, {})
        boundaries = chain.boundaries
        for i in range(len(boundaries) - 1, -1, -1):  # engines evict leaves first: a root counts as used after them
            name, tokens = boundaries[i]
            added = held.pop(name, None)
            if added is None:
                added = tokens - boundaries[i - 1].tokens if i else tokens
                self._tokens[worker] = self._tokens.get(worker, 0.0) + added
                self._add_holder(name, worker)
            held[name] = added
        self._shrink(worker, memory)

    def disproved(self, chain: Chain, worker: WorkerId, cached: int) -> None:
        """The worker found only `cached` tokens of the prompt in its cache: what was longer had been evicted before, and this
        worker's oldest prefixes are likely gone too. The call's own are there again now."""
        wrong = self.matched(chain, worker) - cached
        if wrong > 0:
            self._drop_oldest(worker, self._tokens.get(worker, 0.0) - wrong)

    def evicted(self, worker: WorkerId, tokens: float) -> None:
        """The worker's engine says that it has evicted so many tokens, the least recently used."""
        self._drop_oldest(worker, self._tokens.get(worker, 0.0) - tokens)

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone, or has started anew."""
        for name in self._held.pop(worker, ()):
            self._drop_holder(name, worker)
        self._tokens.pop(worker, None)

    def _shrink(self, worker: WorkerId, memory: int | None) -> None:
        if memory is not None:
            self._drop_oldest(worker, float(memory))
        held = self._held[worker]
        while len(held) > ENTRIES:
            self._drop(worker, next(iter(held)))

    def _drop_oldest(self, worker: WorkerId, most: float) -> None:
        held = self._held.get(worker)
        while held and self._tokens[worker] > max(most, 0.0):
            self._drop(worker, next(iter(held)))

    def _drop(self, worker: WorkerId, name: int) -> None:
        self._tokens[worker] -= self._held[worker].pop(name)
        self._drop_holder(name, worker)

    def _add_holder(self, name: int, worker: WorkerId) -> None:
        holders = self._holders.setdefault(name, {})
        holders[worker] = None
        if len(holders) > HOLDERS:
            oldest = next(iter(holders))
            self._drop(oldest, name)

    def _drop_holder(self, name: int, worker: WorkerId) -> None:
        holders = self._holders.get(name)
        if holders is not None:
            holders.pop(worker, None)
            if not holders:
                del self._holders[name]

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        pairs = {(name, worker) for name, workers in self._holders.items() for worker in workers}
        assert pairs == {(name, worker) for worker, held in self._held.items() for name in held}
        for worker, held in self._held.items():
            assert abs(sum(held.values()) - self._tokens.get(worker, 0.0)) < 1e-3 * (1 + len(held)), worker
