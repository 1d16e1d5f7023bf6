"""Which worker has a call's prefix, found by structure: a hash chain over leading segments.

Law: this is belief, and decides place only; the engine's own tree decides what is shared (Law 6). A constant is named by its
text, a variable that a call produces by itself, so that a prefix has its name before it has a value; a variable set by hand by
its text, where that is known. Names are salted with tenant and models: nothing is shared between tenants.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from msgspec import Struct

from myna.actors.messages import Input, ModelCall, Text, WorkerId
from myna.actors.scheduler.policies.lengths import CHARACTERS

LEAST = 16.0
"""Tokens that a segment must add to be worth a name of its own."""
HOLDERS = 8
"""Workers remembered for one prefix."""
ENTRIES = 4096
"""Prefixes remembered of a worker."""
AT_ONCE = 64
"""Prefixes forgotten together: to find the oldest one of a dictionary costs what was taken from its front before."""

Describe = Callable[[str], tuple[object, float]]
"""A variable's name and its length in tokens."""


class Boundary(Struct, frozen=True, gc=False):
    """The end of a leading part of a prompt: its name, and the tokens up to it."""

    name: int
    tokens: float


class Chain(Struct, frozen=True, gc=False):
    """A call's boundaries; the first `prompt` of them stand before its first output. It has `tokens` before that, and `total`
    in the whole context."""

    boundaries: tuple[Boundary, ...]
    prompt: int
    tokens: float
    total: float


def chained(boundaries: tuple[Boundary, ...], prompt: int) -> Chain:
    """A chain of these boundaries."""
    tokens = boundaries[prompt - 1].tokens if prompt else 0.0
    return Chain(boundaries, prompt, tokens, boundaries[-1].tokens if boundaries else 0.0)


def chain_of(call: ModelCall, cache: str, describe: Describe) -> Chain:
    """The prefixes of a call, shortest first, as that cache has them. The end of the prompt is always one."""
    name = hash((cache, call.models, tuple([t.name for t in call.tools]) if call.tools else ()))
    boundaries: list[Boundary] = []
    tokens, named, prompt = 0.0, 0.0, None
    for message in call.messages:
        name = hash((name, message.role))
        for segment in message.segments:
            if isinstance(segment, Text):
                text = segment.text
                name = hash((name, text))
                tokens += len(text) / CHARACTERS
            elif isinstance(segment, Input):
                for variable in segment.variables:
                    what, length = describe(variable)
                    name = hash((name, what))
                    tokens += length
            else:
                if prompt is None:
                    if tokens > named or not boundaries:
                        boundaries.append(Boundary(name, tokens))
                    prompt = len(boundaries)
                what, length = describe(segment.variables[0])
                name = hash((name, what))
                tokens += length
            if tokens - named >= LEAST:
                boundaries.append(Boundary(name, tokens))
                named = tokens
    return chained(tuple(boundaries), len(boundaries) if prompt is None else prompt)


def head_of(chain: Chain, call: ModelCall) -> Boundary:
    """The part of a prompt that is made of constants only: what others may begin with too."""
    constants, head = _leading(call), _NOTHING
    for boundary in chain.boundaries:
        if boundary.tokens > constants:
            break
        head = boundary
    return head


def _leading(call: ModelCall) -> float:
    """Tokens of the constants before the first variable."""
    tokens = 0.0
    for message in call.messages:
        for segment in message.segments:
            if not isinstance(segment, Text):
                return tokens
            tokens += len(segment.text) / CHARACTERS
    return tokens


_NOTHING = Boundary(0, 0.0)


class Belief:
    """What each worker is thought to hold, least recently used out first."""

    def __init__(self) -> None:
        self._holders: dict[int, tuple[WorkerId, ...]] = {}
        self._alone: dict[WorkerId, tuple[WorkerId]] = {}
        """What most prefixes' holders are: one worker. Made once for each."""
        self._held: dict[WorkerId, dict[int, float]] = {}
        self._tokens: dict[WorkerId, float] = {}

    def matched(self, chain: Chain, worker: WorkerId) -> float:
        """Leading tokens of the prompt that the worker is thought to have."""
        held = self._held.get(worker)
        if held:
            boundaries = chain.boundaries
            for i in range(chain.prompt - 1, -1, -1):
                if boundaries[i].name in held:
                    return boundaries[i].tokens
        return 0.0

    def holders(self, chain: Chain, most: int, least: float) -> list[tuple[WorkerId, float]]:
        """Workers that have a part of the prompt of at least so many tokens, those with the longest part first, and how many
        tokens of it."""
        found: dict[WorkerId, float] = {}
        for i in range(chain.prompt - 1, -1, -1):
            boundary = chain.boundaries[i]
            if boundary.tokens < least:
                break
            holders = self._holders.get(boundary.name)
            for worker in reversed(holders or ()):
                if worker not in found:
                    found[worker] = boundary.tokens
                    if len(found) == most:
                        return list(found.items())
        return list(found.items())

    def placed(self, chain: Chain, worker: WorkerId, memory: int | None) -> None:
        """The worker computes this call, and then has all of it. `memory`: tokens that it can hold."""
        held = self._held.get(worker)
        if held is None:
            held = self._held[worker] = {}
            self._tokens[worker], self._alone[worker] = 0.0, (worker,)
        boundaries, new = chain.boundaries, 0.0
        for i in range(len(boundaries) - 1, -1, -1):  # engines evict leaves first: a root counts as used after them
            boundary = boundaries[i]
            name = boundary.name
            added = held.pop(name, None)
            if added is None:
                added = boundary.tokens - boundaries[i - 1].tokens if i else boundary.tokens
                new += added
                if name in self._holders:
                    self._add_holder(name, worker)
                else:
                    self._holders[name] = self._alone[worker]
            held[name] = added
        self._tokens[worker] += new
        if len(held) > ENTRIES or (memory is not None and self._tokens[worker] > memory):
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
        self._alone.pop(worker, None)

    def _shrink(self, worker: WorkerId, memory: int | None) -> None:
        if memory is not None:
            self._drop_oldest(worker, float(memory))
        held = self._held[worker]
        if len(held) > ENTRIES:
            self._drop_first(worker, held)

    def _drop_oldest(self, worker: WorkerId, most: float) -> None:
        held = self._held.get(worker)
        while held and self._tokens[worker] > max(most, 0.0):
            for name in list(islice(held, AT_ONCE)):
                if self._tokens[worker] <= most:
                    return
                self._drop(worker, name)

    def _drop_first(self, worker: WorkerId, held: dict[int, float]) -> None:
        """Forget the oldest prefixes of a worker, so many at once. Most are its alone."""
        holders, alone, tokens = self._holders, self._alone[worker], 0.0
        for name in list(islice(held, AT_ONCE)):
            tokens += held.pop(name)
            if holders[name] is alone:
                del holders[name]
            else:
                self._drop_holder(name, worker)
        self._tokens[worker] -= tokens

    def _drop(self, worker: WorkerId, name: int) -> None:
        self._tokens[worker] -= self._held[worker].pop(name)
        self._drop_holder(name, worker)

    def _add_holder(self, name: int, worker: WorkerId) -> None:
        """One more worker has a prefix that others have too."""
        holders = self._holders[name]
        self._holders[name] = (*holders, worker)
        if len(holders) >= HOLDERS:
            self._drop(holders[0], name)

    def _drop_holder(self, name: int, worker: WorkerId) -> None:
        holders = self._holders.get(name)
        if holders is not None and worker in holders:
            if len(holders) == 1:
                del self._holders[name]
            else:
                self._holders[name] = tuple([w for w in holders if w != worker])

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        pairs = {(name, worker) for name, workers in self._holders.items() for worker in workers}
        assert pairs == {(name, worker) for worker, held in self._held.items() for name in held}
        for worker, held in self._held.items():
            assert abs(sum(held.values()) - self._tokens.get(worker, 0.0)) < 1e-3 * (1 + len(held)), worker
