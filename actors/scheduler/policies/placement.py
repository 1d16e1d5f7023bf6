"""Which worker a ready call is given to.

Law: of the workers that may take it, the one where it costs least time: its own (waiting, prompt, tokens) and what it takes from
those that run there already. So calls that share a prefix meet, until their engine is so full that computing the prefix once
more elsewhere is cheaper: then it is there too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

from myna.actors.messages import Source, WorkerId
from myna.actors.scheduler.fleet import Demand, Fleet, Role, Worker
from myna.actors.scheduler.policies.capacity import Cost
from myna.actors.scheduler.policies.prefixes import Belief, Chain
from myna.actors.scheduler.policies.queue import order_of
from myna.actors.scheduler.policies.residents import LENT, SHARE, Residents

if TYPE_CHECKING:
    from myna.actors.scheduler.nodes import CallNode
    from myna.actors.scheduler.policies import Policies
    from myna.actors.scheduler.policies.objectives import Need

NEARLY = 0.8
"""Part of a prompt that must be there for a call to be added to a worker that has prompts enough to compute, or whose memory is
kept for others."""
MEANT = 256.0
"""Tokens of a prefix, if it isn't nearly the whole prompt, for which a worker is looked at that is not the least loaded."""
CANDIDATES = 3
"""Workers with a part of the prefix that are looked at."""


class Because(StrEnum):
    """What decided a call's place."""

    ADOPTED = "it was found running there"
    LEAST_LOADED = "it was the least loaded"
    TURN = "it was its turn"
    PREFIX = "it has the prefix"
    COPIED = "it is to take over what an identical call has made"
    ORDER = "it goes before most prompts that wait there"
    PRESSING = "prompts that can wait are kept from it for the sake of such calls"
    RESERVED = "it is reserved for calls whose tokens are waited for"
    OVERDUE = "it has waited long enough for a worker with room to keep its context"


_LEAST_LOADED = Because.LEAST_LOADED
_Candidate = tuple[Worker, float, Because]
"""A worker, tokens of the prompt that are there, and why it is one."""


class Place(Struct, frozen=True):
    """Where a call goes, at what cost, and why. `matched`: prompt tokens that are thought to be there. `source`: where its
    results stand already, so that they need only be copied."""

    worker: Worker
    cost: Cost | None
    because: Because
    matched: float = 0.0
    source: Source | None = None


class Placement:
    """The decision, from fleet and belief."""

    def __init__(self, policies: Policies, fleet: Fleet, belief: Belief, residents: Residents) -> None:
        self._policies = policies
        self._fleet = fleet
        self._belief = belief
        self._residents = residents
        self._ordered = policies.applications and policies.capacity
        self._round_robin = policies.spread.value == "round robin"

    def choose(
        self, call: CallNode, demand: Demand, chain: Chain | None, output: float, now: float, *, first: bool = True
    ) -> Place | None:
        """A place for a call that will generate `output` tokens; None if nobody can take it now. `first`: it is its tenant's
        turn, so that it may go before others that wait on an engine."""
        policies = self._policies
        if self._round_robin:
            worker = self._fleet.in_turn(demand)
            return None if worker is None else Place(worker, None, Because.TURN)
        if chain is None:
            worker = self._fleet.choose(demand)
            return None if worker is None else Place(worker, None, Because.LEAST_LOADED)
        need = call.need if policies.capacity else None
        paced = need is not None and need.paced
        patient = need is not None and need.patient
        pressing = need is not None and need.pressing and policies.interference
        awaited = need is not None and need.awaited
        tpot = need.tpot if need is not None and paced else None
        back = self._residents.where(chain)
        candidates = self._candidates(demand, chain, back, need, pressing=pressing)
        if not candidates and first and self._ordered:
            candidates = self._overtaking(demand, chain, order_of(call), patient=patient, pressing=pressing)
        if back is None and self._residents.any:
            candidates = self._keeping(call, chain, candidates, now)
        if not candidates:
            return None
        best = candidates[0]
        if len(candidates) > 1:
            best = min(candidates, key=lambda c: _seconds(c[0], chain.tokens - c[1], output, now))
        worker, matched, because = best
        missing = chain.tokens - matched
        order = order_of(call) if self._ordered and worker.occupancy.steps.measured else 0.0
        if because is Because.OVERDUE:
            self._residents.let_in(worker.id, now + missing * worker.occupancy.steps.prompt_seconds / LENT)
        cost = Cost(missing + output, missing, output, paced, tpot, pressing, order, awaited)
        return Place(worker, cost, because, matched)

    def _overtaking(
        self, demand: Demand, chain: Chain, order: float, *, patient: bool, pressing: bool
    ) -> list[_Candidate]:
        """An engine that has prompts enough, most of which the call goes before."""
        worker = self._fleet.overtaking(demand, order, pressing=pressing)
        if worker is None or (patient and self._fleet.is_home(worker) and not self._fleet.opens(worker)):
            return []
        return [(worker, self._belief.matched(chain, worker.id), Because.ORDER)]

    def crowded(self, call: CallNode, demand: Demand, chain: Chain) -> bool:
        """Whether there is a worker for a new context, were it not for those that are kept there."""
        worker = self._fleet.choose(demand)
        return worker is not None and self._crowds(call, chain, worker, self._belief.matched(chain, worker.id))

    def _crowds(self, call: CallNode, chain: Chain, worker: Worker, matched: float) -> bool:
        """Whether the context would stay on this worker, and there is no room beside those that are kept there."""
        occupancy, memory = worker.occupancy, worker.offer.tokens
        if not occupancy.kept or memory is None:
            return False
        needed = occupancy.tokens + occupancy.kept + chain.total - matched
        if needed <= SHARE * memory:
            return False
        assert call.session is not None
        return self._residents.stays((call.session.tenant, call.function))

    def _keeping(self, call: CallNode, chain: Chain, found: list[_Candidate], now: float) -> list[_Candidate]:
        """The candidates for a new context that have room to keep it, or where it need not wait for that any more."""
        keeping = []
        for candidate in found:
            worker, matched, _ = candidate
            if not worker.occupancy.kept or not self._crowds(call, chain, worker, matched):
                keeping.append(candidate)
            elif self._residents.overdue(worker.id, call.since, now):
                keeping.append((worker, matched, Because.OVERDUE))
        return keeping

    def _candidates(
        self, demand: Demand, chain: Chain, back: WorkerId | None, need: Need | None, *, pressing: bool
    ) -> list[_Candidate]:
        fleet, belief = self._fleet, self._belief
        paced = need is not None and need.paced
        patient = need is not None and need.patient
        separate, why = fleet.homes > 0, _LEAST_LOADED
        first = fleet.choose(demand, Role.OPEN) if separate and patient else fleet.choose(demand)
        if first is None and pressing:
            first, why = fleet.resting(demand), Because.PRESSING
        found = [] if first is None else [(first, belief.matched(chain, first.id), why)]
        if separate and paced and back is None:
            homes = (w for w in fleet.some_homes(CANDIDATES) if w is not first and w.has_room)
            found += [(w, belief.matched(chain, w.id), Because.RESERVED) for w in homes if fleet.answers(w, demand)]
        if not self._policies.prefixes:
            return [(w, 0.0, why) for w, _, why in found]
        nearly = NEARLY * chain.tokens
        holders = belief.holders(chain, CANDIDATES, nearly if nearly < MEANT else MEANT)
        if back is not None and all(worker_id != back for worker_id, _ in holders):
            holders.append((back, belief.matched(chain, back)))
        for worker_id, matched in holders:
            worker = fleet.workers.get(worker_id)
            if worker is None or worker is first or not fleet.answers(worker, demand):
                continue
            awaited = worker_id == back or matched >= nearly
            if not worker.has_room and not (awaited and worker.takes):
                continue  # its memory is for others
            if worker.asleep and first is None and not awaited:
                continue  # it has prompts enough to compute
            if separate and patient and fleet.is_home(worker) and not fleet.opens(worker):
                continue
            found.append((worker, matched, Because.PREFIX))
        return found


def _seconds(worker: Worker, missing: float, output: float, now: float) -> float:
    """Time of the call there, and time that it takes from the others."""
    occupancy, steps, held = worker.occupancy, worker.occupancy.steps, len(worker.held)
    step = steps.base + steps.slope * (held + 1) + steps.prefill * (occupancy.pressure + missing / max(output, 1.0))
    wait = occupancy.busy_until - now
    return max(wait, 0.0) + missing * steps.prefill * (1 + held) + output * step
