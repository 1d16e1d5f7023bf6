"""What engines keep of KV, by who is still to read it; and what they compute ahead.

Laws:
- A prefix is kept while declared calls that begin with it are still to come: not while somebody may come, nor for a time. Only
  a conversation whose next turn nobody has declared falls back to a time: `PATIENCE` seconds.
- What is kept gives way by the distance to its next use, the farthest first: here, where more than `SHARE` of an engine's memory
  would be kept, and in the engine, where its memory is short. It is advice: nothing is wrong if an engine keeps nothing.
- A consumer is prepared (early placement) on the engine of the first producer that runs: what stands before its first missing
  input is computed there meanwhile, so that it is drawn there; and that input, if it is of some length and is streamed, as it is
  generated. Not where that is short, takes longer than the producer, or would be in the way of others. If it lacks nothing else,
  it begins there when that has been made, before the scheduler has seen it (`actors/worker/ahead.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from myna.actors.messages import ModelCall, Output, SessionId, StreamMode, Tenant, VarId, WorkerId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.policies.prefixes import Boundary, Chain, chained
from myna.actors.scheduler.policies.prompts import awaited, converses, cut, known_tokens

if TYPE_CHECKING:
    from myna.actors.scheduler.fleet import Fleet, Worker
    from myna.actors.scheduler.graph import SessionGraph
    from myna.actors.scheduler.nodes import CallNode, VarNode

WORTH = 256.0
"""Tokens of a prefix that are worth being kept."""
AHEAD = 128.0
"""Tokens of a prefix that are worth being computed ahead."""
MOMENT = 0.005
"""Seconds of prompts that others wait for beside which one is computed ahead."""
STREAMED = 128.0
"""Tokens of an input that are worth being filled in while it is generated: what comes of it last is computed at the end."""
SHARE = 0.5
"""Part of an engine's memory that may be kept for calls to come."""
PATIENCE = 60.0
"""Seconds that a conversation's context is kept for a next turn that nobody has declared."""
LOOKED_AT = 4
"""Consumers of one call that are looked at."""


class Readers:
    """How many declared calls are still to come, by the prefixes of `AHEAD` tokens or more that they begin with."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, chain: Chain) -> None:
        """A call is still to come."""
        counts = self._counts
        for boundary in chain.boundaries[: chain.prompt]:
            if boundary.tokens >= AHEAD:
                counts[boundary.name] = counts.get(boundary.name, 0) + 1

    def remove(self, chain: Chain) -> None:
        """It has come, or never will."""
        counts = self._counts
        for boundary in chain.boundaries[: chain.prompt]:
            if boundary.tokens >= AHEAD:
                counts[boundary.name] -= 1
                if not counts[boundary.name]:
                    del counts[boundary.name]

    def of(self, name: int) -> int:
        """Calls to come that begin with the prefix of this name."""
        return self._counts.get(name, 0)

    def check(self, chains: Iterable[Chain]) -> None:
        """Raise AssertionError unless these are the chains of the calls that are still to come."""
        counts: dict[int, int] = {}
        for chain in chains:
            for boundary in chain.boundaries[: chain.prompt]:
                if boundary.tokens >= AHEAD:
                    counts[boundary.name] = counts.get(boundary.name, 0) + 1
        assert counts == self._counts, "readers to come are miscounted"
        assert all(count > 0 for count in self._counts.values())


@dataclass(frozen=True, slots=True)
class Wish:
    """A worker is to keep what `call`, cut where the prefix ends, begins with. `distance`: seconds until its use."""

    worker: WorkerId
    id: str
    tenant: Tenant
    session: SessionId
    call: ModelCall
    distance: float
    stream: VarId | str = ""
    """The last input of it, where that is still being generated there."""


@dataclass(frozen=True, slots=True)
class Lead:
    """A worker is to begin `call` once it has made `awaits`, the one input that lacks."""

    worker: WorkerId
    call: CallNode
    awaits: VarId


@dataclass(frozen=True, slots=True)
class Waiver:
    """A worker need not keep these any longer."""

    worker: WorkerId
    ids: tuple[str, ...]


@dataclass(slots=True)
class _Kept:
    """A prefix kept by a worker. `due`: when it is thought to be used. `until`: kept so long, whoever is to come."""

    id: str
    name: int
    tokens: float
    due: float
    until: float = 0.0


class Retention:
    """See the module. `take` gives the orders that come of what happens. `refresh` looks at a call anew. `returns` tells, if it
    knows, in how many seconds a conversation's next turn is likely to come, and for how many it is worth waiting."""

    def __init__(
        self,
        fleet: Fleet,
        refresh: Callable[[CallNode], Chain | None],
        *,
        returns: Callable[[CallNode], tuple[float, float] | None] = lambda call: None,
    ) -> None:
        self.readers = Readers()
        self._fleet = fleet
        self._refresh = refresh
        self._returns = returns
        self._kept: dict[WorkerId, dict[int, _Kept]] = {}
        self._tokens: dict[WorkerId, float] = {}
        self._turns: dict[tuple[Tenant, SessionId], tuple[WorkerId, int]] = {}
        self._finished: list[tuple[CallNode, ModelCall, Boundary, WorkerId]] = []
        self._orders: list[Wish | Lead | Waiver] = []
        self._number = 0
        self.pending = False
        """Whether `take` has something to say."""

    # --- what happens to calls ---

    def began(self, call: CallNode, worker: Worker, pace: float, now: float) -> None:
        """A call was given to a worker, which has memory: what others to come begin with too is kept there."""
        chain = call.chain
        if chain is None or not isinstance(call.spec, ModelCall):
            return
        for boundary in reversed(chain.boundaries[: chain.prompt]):
            if boundary.tokens < WORTH:
                return
            if self.readers.of(boundary.name) and call.spec.cache_prefix:
                self._keep(worker, call, call.spec, boundary, boundary.tokens, now, call.work * pace)
                return

    def finishing(self, call: CallNode) -> None:
        """The last output of a running call has a value. Whether its whole context is kept is decided by `take`, when those
        that became ready by it have been dispatched."""
        chain, spec = call.chain, call.spec
        if chain is None or call.worker is None or not isinstance(spec, ModelCall) or not spec.cache_prefix:
            return
        end = chain.boundaries[-1]
        if end.tokens >= WORTH and (self.readers.of(end.name) or converses(spec)):
            self.pending = True
            self._finished.append((call, spec, end, call.worker))

    def _settle(self, pace: float, now: float) -> None:
        finished, self._finished = self._finished, []
        for call, spec, end, worker_id in finished:
            worker = self._fleet.workers.get(worker_id)
            if worker is None or worker.offer.tokens is None:
                continue
            if self.readers.of(end.name):
                self._keep(worker, call, spec, end, inf, now, _distance(call, pace))
            elif converses(spec):
                gap, patience = self._returns(call) or (PATIENCE, PATIENCE)
                if patience > 0:
                    self._keep(worker, call, spec, end, inf, now, gap, until=now + patience)
                    self._next_turn(call, worker.id, end.name)

    def prepare(
        self, call: CallNode, consumers: Sequence[CallNode], worker: Worker, pace: float, now: float
    ) -> Iterator[Chain]:
        """A call was given to a worker, which has memory: consumers of its results are prepared there. Yields what is computed
        ahead."""
        assert call.session is not None
        for consumer in consumers[:LOOKED_AT]:
            if not consumer.prepared:
                chain = self._prepare(call.session, call, consumer, worker, call.work * pace, now)
                if chain is not None:
                    yield chain

    def _prepare(
        self, graph: SessionGraph, producer: CallNode, call: CallNode, worker: Worker, seconds: float, now: float
    ) -> Chain | None:
        spec = call.spec
        if not isinstance(spec, ModelCall) or not call.wanted or not spec.cache_prefix:
            return None
        call.prepared = True
        known = known_tokens(spec, graph)
        chain = self._refresh(call) if known >= AHEAD else None
        if chain is None:
            return None
        count = sum(b.tokens <= known + 0.5 for b in chain.boundaries[: chain.prompt])
        end = chain.boundaries[count - 1] if count else None
        if end is None or end.tokens < AHEAD or not self._pays(call, producer, worker, end.tokens, seconds, now):
            return None
        coming = awaited(spec, graph)
        streamed = coming if coming is not None and _streams(producer, coming) else None
        self._keep(worker, call, spec, end, end.tokens, now, seconds, stream=streamed)
        self._lead(worker, producer, call, graph)
        return chained(chain.boundaries[:count], count)

    def _lead(self, worker: Worker, producer: CallNode, call: CallNode, graph: SessionGraph) -> None:
        """Where a call lacks nothing but what its producer makes, it need not wait until that has been told."""
        if call.missing != 1 or call.seen or not isinstance(call.spec, ModelCall) or call.spec.memoise:
            return
        lacking = next(v for v in call.inputs if graph.variables[v].status is not OutcomeStatus.VALUE)
        if graph.variables[lacking].producer is producer:
            self.pending = True
            self._orders.append(Lead(worker.id, call, lacking))

    def _pays(
        self, call: CallNode, producer: CallNode, worker: Worker, tokens: float, seconds: float, now: float
    ) -> bool:
        if worker.asleep or not self._serves(call, worker):
            return False
        if self._fleet.is_home(worker) and not (call.need is not None and call.need.paced):
            return False  # somebody waits for each token there
        assert producer.session is not None
        own = worker.costs.get((producer.session.tenant, producer.session.id, producer.id))
        occupancy = worker.occupancy
        each, backlog = occupancy.steps.prompt_seconds, occupancy.backlog(now)
        if backlog > (0.0 if own is None else own.prefill) * each + MOMENT:
            return False  # prompts that somebody waits for come first, and this would not be there in time
        return backlog + tokens * each <= seconds

    def _serves(self, call: CallNode, worker: Worker) -> bool:
        assert isinstance(call.spec, ModelCall)
        return not call.spec.models or any(model in worker.offer.serves for model in call.spec.models)

    def tick(self, now: float) -> None:
        """Time has passed: what nobody to come begins with is kept no more. Not at once: who came last may still be reading its
        inputs."""
        for worker, kept in self._kept.items():
            over = [k for k in kept.values() if k.until <= now and not self.readers.of(k.name)]
            if over:
                self._release(worker, over)

    def lost(self, worker: WorkerId) -> None:
        """A worker is gone, and what it kept."""
        self._kept.pop(worker, None)
        self._tokens.pop(worker, None)

    def closed(self, session: tuple[Tenant, SessionId]) -> None:
        """A session ends, and with it its conversation."""
        worker, name = self._turns.pop(session, (None, 0))
        if worker is not None and (kept := self._kept.get(worker, {}).get(name)) is not None:
            kept.until = 0.0

    def take(self, pace: float, now: float) -> list[Wish | Lead | Waiver]:
        """The orders that have come of an event, once all that could be dispatched has been."""
        if self._finished:
            self._settle(pace, now)
        orders, self._orders, self.pending = self._orders, [], False
        return orders

    def forget(self) -> None:
        """Nobody was told, for this scheduler does not lead: nothing is kept."""
        self._kept, self._tokens, self._turns, self._orders, self._finished = {}, {}, {}, [], []
        self.pending = False

    # --- what is kept ---

    def kept(self, worker: WorkerId) -> dict[int, float]:
        """Names and tokens of the prefixes that a worker keeps."""
        return {name: kept.tokens for name, kept in self._kept.get(worker, {}).items()}

    def _next_turn(self, call: CallNode, worker: WorkerId, name: int) -> None:
        """Of a conversation the last context alone is kept."""
        assert call.session is not None
        session = (call.session.tenant, call.session.id)
        if self._turns.get(session) != (worker, name):
            self.closed(session)
            self._turns[session] = (worker, name)

    def _keep(
        self,
        worker: Worker,
        call: CallNode,
        spec: ModelCall,
        end: Boundary,
        tokens: float,
        now: float,
        distance: float,
        until: float = 0.0,
        stream: VarNode | None = None,
    ) -> None:
        kept = self._kept.setdefault(worker.id, {})
        known = kept.get(end.name)
        if known is not None:
            known.due, known.until = min(known.due, now + distance), max(known.until, until)
            return
        assert call.session is not None
        size = end.tokens + (stream.size if stream is not None else 0.0)
        if not self._make_room(worker, size, now + distance):
            return
        prefix = cut(spec, tokens, call.session, stream=stream is not None)
        if prefix is None:
            return
        self._number += 1
        made = kept[end.name] = _Kept(f"k{self._number}", end.name, size, now + distance, until)
        self._tokens[worker.id] = self._tokens.get(worker.id, 0.0) + size
        self.pending = True
        coming = stream.id if stream is not None else ""
        self._orders.append(Wish(worker.id, made.id, call.session.tenant, call.session.id, prefix, distance, coming))

    def _make_room(self, worker: Worker, tokens: float, due: float) -> bool:
        """Whether so much more may be kept by the worker: what is due later gives way."""
        most = SHARE * (worker.offer.tokens or 0)
        over = self._tokens.get(worker.id, 0.0) + tokens - most
        if over <= 0:
            return True
        given: list[_Kept] = []
        for kept in sorted(self._kept[worker.id].values(), key=lambda k: -k.due):
            if over <= 0 or kept.due <= due:
                break
            given.append(kept)
            over -= kept.tokens
        if over > 0:
            return False
        self._release(worker.id, given)
        return True

    def _release(self, worker: WorkerId, over: list[_Kept]) -> None:
        kept = self._kept[worker]
        for one in over:
            del kept[one.name]
            self._tokens[worker] -= one.tokens
        self.pending = True
        self._orders.append(Waiver(worker, tuple(k.id for k in over)))

    def check(self, to_come: Iterable[Chain]) -> None:
        """Raise AssertionError if the books contradict each other, or these are not the chains of the calls to come."""
        self.readers.check(to_come)
        assert not self._finished, "finished calls were not settled"
        for worker, kept in self._kept.items():
            assert worker in self._fleet.workers, f"{worker} is gone, and keeps prefixes"
            tokens = sum(k.tokens for k in kept.values())
            assert abs(tokens - self._tokens.get(worker, 0.0)) < 1e-3 * (1 + len(kept)), (
                f"{worker}: {tokens} tokens are kept"
            )
            assert tokens <= SHARE * (self._fleet.workers[worker].offer.tokens or 0) + 1e-3, f"{worker} keeps too much"


def _streams(producer: CallNode, variable: VarNode) -> bool:
    """Whether the producer's worker sees a variable of some length grow: chunk by chunk, as readers will see it."""
    if variable.producer is not producer or variable.size < STREAMED or not isinstance(producer.spec, ModelCall):
        return False
    segments = (s for m in producer.spec.messages for s in m.segments)
    places = [s for s in segments if isinstance(s, Output) and variable.id in s.variables]
    return all(s.stream is StreamMode.LIVE and not s.transforms for s in places)


def _distance(call: CallNode, pace: float) -> float:
    """Seconds until the first of the call's consumers may begin, as far as their producers' work tells."""
    graph = call.session
    assert graph is not None
    waits = [
        max((p.work for p in graph.producers(c)), default=0.0)
        for o in call.outputs[:LOOKED_AT]
        for c in graph.variables[o].consumers[:LOOKED_AT]
        if c.unended
    ]
    return min(waits, default=call.work) * pace
