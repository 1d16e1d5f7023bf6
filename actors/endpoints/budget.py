"""What calls cost, and what may be spent. Pure: the time, in seconds since the epoch, comes with each question.

Laws:
- A call is let through only if all that it may cost at most, as far as that can be told before, is left in every budget that
  concerns it. That much is set aside until it is known what it did cost; so budgets hold however many calls run at once.
- A period begins at a round time (an hour, a day of UTC, 30 days); what was spent before is forgotten then.
- The books can be written down and read again: they outlive the process where it may write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from myna.actors.endpoints.settings import Budget, BudgetOf, Endpoint, Period, Prices, counts_at
from myna.actors.messages import ErrorCode, Failure, SessionId, Tenant, Usage

MILLION = 1_000_000
CHARACTERS = 4.0
"""Characters of a token, as long as nobody has counted."""
FORGOTTEN = 30 * 86400.0
"""Seconds without an expense after which a session's lasting budget is forgotten: it is over, and its id is never used again."""

_SECONDS = {Period.HOUR: 3600.0, Period.DAY: 86400.0, Period.MONTH: 30 * 86400.0}


def cost(usage: Usage, prices: Prices | None) -> int:
    """What tokens cost, in millionths."""
    if prices is None:
        return 0
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    fresh = usage.prompt_tokens - cached
    of_cached = prices.input if prices.cached is None else prices.cached
    return math.ceil(fresh * prices.input + cached * of_cached + usage.output_tokens * prices.output)


def at_most(characters: int, output: int) -> Usage:
    """What a call of a prompt so long, which may draw so many tokens, is thought to use at most."""
    return Usage(prompt_tokens=math.ceil(characters / CHARACTERS), output_tokens=output)


class Entry(Struct):
    """What was spent of a budget in a period; `period` is its number, `at` the time of the last expense."""

    period: int
    money: int = 0
    tokens: int = 0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Reserve:
    """What is set aside for a call: of these budgets, for these owners."""

    owners: tuple[str, ...]
    usage: Usage


class Ledger:
    """All budgets of a file, and what was spent of each."""

    def __init__(self, budgets: Sequence[Budget] = (), written: Mapping[str, Entry] | None = None) -> None:
        self._budgets = tuple(budgets)
        self._spent: dict[str, Entry] = dict(written or {})
        self._reserved: dict[str, Usage] = {}
        self.changed = False

    def reserve(
        self, endpoint: Endpoint, tenant: Tenant, session: SessionId, usage: Usage, now: float
    ) -> Reserve | Failure:
        """Set aside what a call may use, with its cost; or why it may not."""
        owners = []
        for budget in self._budgets:
            if counts_at(budget, endpoint.name):
                owner = _owner(budget, tenant, session)
                over = self._over(budget, owner, usage, now)
                if over is not None:
                    return over
                owners.append(owner)
        for owner in owners:
            self._reserved[owner] = self._reserved.get(owner, Usage()) + usage
        return Reserve(tuple(owners), usage)

    def settle(self, reserve: Reserve, used: Usage, now: float) -> None:
        """A call has ended, and used so much."""
        for owner in reserve.owners:
            left = _less(self._reserved.pop(owner, Usage()), reserve.usage)
            if left != Usage():
                self._reserved[owner] = left
            entry = self._entry(self._budget_of(owner), owner, now)
            entry.money += used.cost
            entry.tokens += used.prompt_tokens + used.output_tokens
            entry.at = now
            self.changed = True

    def written(self, now: float) -> dict[str, Entry]:
        """The books, to be written down; what concerns nobody any more is left out, and forgotten."""
        self._spent = {o: e for o, e in self._spent.items() if not self._over_and_done(o, e, now)}
        self.changed = False
        return dict(self._spent)

    def _over(self, budget: Budget, owner: str, usage: Usage, now: float) -> Failure | None:
        entry, reserved = self._entry(budget, owner, now), self._reserved.get(owner, Usage())
        money = entry.money + reserved.cost + usage.cost
        tokens = entry.tokens + sum((u.prompt_tokens + u.output_tokens) for u in (reserved, usage))
        if budget.money is not None and money > budget.money * MILLION:
            what = f"{budget.money:g} in money, of which {entry.money / MILLION:.6g} is spent"
        elif budget.tokens is not None and tokens > budget.tokens:
            what = f"{budget.tokens} tokens, of which {entry.tokens} are used"
        else:
            return None
        whom = "all together" if budget.of is BudgetOf.ALL else f"a {budget.of.value}"
        message = f"the budget of {whom} for this model{_per(budget)} is {what}: too little is left for this call"
        wait = None if budget.per is None else _SECONDS[budget.per] * (entry.period + 1) - now
        return Failure(code=ErrorCode.OVER_QUOTA, message=message, retryable=True, retry_after=wait)

    def _entry(self, budget: Budget | None, owner: str, now: float) -> Entry:
        period = 0 if budget is None or budget.per is None else int(now // _SECONDS[budget.per])
        entry = self._spent.get(owner)
        if entry is None or entry.period != period:
            entry = self._spent[owner] = Entry(period)
        return entry

    def _budget_of(self, owner: str) -> Budget | None:
        return next((b for b in self._budgets if owner.startswith(f"{_name(b)}/")), None)

    def _over_and_done(self, owner: str, entry: Entry, now: float) -> bool:
        budget = self._budget_of(owner)
        if budget is None:
            return True
        if budget.per is not None:
            return entry.period != int(now // _SECONDS[budget.per])
        return budget.of is BudgetOf.SESSION and now - entry.at > FORGOTTEN


def _name(budget: Budget) -> str:
    """What a budget's books are known by: a budget with other limits has the same, one of other scope has not."""
    return ":".join((budget.of, budget.per or "ever", ",".join(_sorted(budget.endpoints))))


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(set(names))


def _owner(budget: Budget, tenant: Tenant, session: SessionId) -> str:
    match budget.of:
        case BudgetOf.ALL:
            return f"{_name(budget)}/"
        case BudgetOf.TENANT:
            return f"{_name(budget)}/{tenant}"
        case BudgetOf.SESSION:
            return f"{_name(budget)}/{tenant}/{session}"


def _per(budget: Budget) -> str:
    return "" if budget.per is None else f" and {budget.per.value}"


def _less(a: Usage, b: Usage) -> Usage:
    return Usage(
        prompt_tokens=a.prompt_tokens - b.prompt_tokens,
        cached_tokens=a.cached_tokens - b.cached_tokens,
        output_tokens=a.output_tokens - b.output_tokens,
        cost=a.cost - b.cost,
    )
