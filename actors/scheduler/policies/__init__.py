"""What decides the order of ready calls and their place, one policy a module, each of which can be switched off.

Law: a policy never decides whether a call runs, only when and where. With everything switched off, calls are served in the
order in which they became ready, by the least loaded worker.

    objectives    what a call is needed for, deduced backwards from what is awaited
    applications  applications nearly done go first, and the critical path first inside one
    lengths       how long a call's prompt and outputs will be, learned from what its function did before
    prefixes      which worker has a call's prefix, found by structure
    steps         how long a step of an engine takes, learned from its beats
    capacity      how much an engine is given, by the strictest objective that it serves, and no earlier than it can begin;
                  and, as `interference`, how quickly prompts are given to one that many pressing calls draw on
    residents     contexts that will be read again, and the room that they need
    tenants       weighted shares of tokens, and quotas
    retention     what engines keep for calls to come, and compute ahead
    memo          identical calls are computed once
    queue         the order that follows from these
    lines         a queue for each kind of worker, and which of them goes first
    placement     the worker that follows from these
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from myna.actors.messages import Tenant
from myna.actors.scheduler.policies.tenants import Share


class Spread(StrEnum):
    """How calls are spread over workers when nothing else decides."""

    LEAST_LOADED = "least loaded"
    ROUND_ROBIN = "round robin"


@dataclass(frozen=True)
class Policies:
    """Switches. The defaults are what runs in production; the others are there to be compared with."""

    objectives: bool = True
    groups: bool = True
    applications: bool = True
    prefixes: bool = True
    capacity: bool = True
    interference: bool = True
    residents: bool = True
    fairness: bool = True
    memoisation: bool = True
    retention: bool = True
    early: bool = True
    spread: Spread = Spread.LEAST_LOADED
    shares: Mapping[Tenant, Share] = field(default_factory=dict)

    @classmethod
    def none(cls, *, prefixes: bool = False, spread: Spread = Spread.LEAST_LOADED) -> Policies:
        """First come, first served: what a server of single requests does; with `prefixes`, a good one."""
        return cls(
            objectives=False,
            groups=False,
            applications=False,
            prefixes=prefixes,
            capacity=False,
            interference=False,
            residents=False,
            fairness=False,
            memoisation=False,
            retention=False,
            early=False,
            spread=spread,
        )
