"""Tenants share engines by weight, counted in tokens, and stay within their quotas.

Law (weighted fair queueing): of the tenants that have ready calls, the one is served next whose tokens so far, divided by its
weight, are fewest. A tenant that was idle earns nothing by it. So a flood of one delays another's call by no more than the
calls that already run and one call of each other tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from myna.actors.messages import Tenant


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's part: `weight` against the others', and `most_running` calls at once, if there is a limit."""

    weight: float = 1.0
    most_running: int | None = None


DEFAULT = Share()


class Account:
    """What one tenant has used. `served` is work divided by weight."""

    __slots__ = ("running", "served", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.served = 0.0
        self.running = 0

    @property
    def full(self) -> bool:
        """Whether its quota lets no further call run."""
        return self.share.most_running is not None and self.running >= self.share.most_running

    def charge(self, work: float) -> None:
        """It is given so much work, in generated tokens; a correction may be negative."""
        self.served += work / self.share.weight


class Accounts:
    """All tenants' accounts."""

    def __init__(self, shares: Mapping[Tenant, Share]) -> None:
        self._shares = dict(shares)
        self._accounts: dict[Tenant, Account] = {}
        self._now = 0.0

    def of(self, tenant: Tenant) -> Account:
        """A tenant's account."""
        try:
            return self._accounts[tenant]
        except KeyError:
            account = self._accounts[tenant] = Account(self._shares.get(tenant, DEFAULT))
            account.served = self._now
            return account

    def set(self, tenant: Tenant, share: Share) -> None:
        """The operator has said what a tenant's part is: from now on, for calls that wait too."""
        self._shares[tenant] = share
        account = self._accounts.get(tenant)
        if account is not None:
            account.share = share

    def wake(self, account: Account) -> None:
        """A tenant without ready calls has some again: what it did not use is gone."""
        account.served = max(account.served, self._now)

    def serve(self, account: Account, work: float) -> None:
        """A call of the tenant is dispatched."""
        if account.served > self._now:
            self._now = account.served
        account.served += work / account.share.weight
        account.running += 1

    def check(self) -> None:
        """Raise AssertionError if an account can't be."""
        for tenant, account in self._accounts.items():
            assert account.running >= 0, f"tenant {tenant!r} runs {account.running} calls"
