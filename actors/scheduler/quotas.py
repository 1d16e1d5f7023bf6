"""What each tenant has at once and has used, and what of it is too much.

Law: a quota is looked at where something new is asked for, a session or calls, and then by the leading scheduler alone: what
was accepted goes on, and a rebuilt scheduler refuses nothing that is in the log. Only a session that goes on storing when its
tenant holds twice its bytes is closed.
Tokens are paid for when they are counted: a tenant may begin while it has spent less than a minute's tokens, and what it has
spent is forgiven at that rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import add

from myna.actors.messages import (
    CallId,
    CallUsage,
    ErrorCode,
    Failure,
    SessionId,
    SessionUsage,
    Tenant,
    TenantPolicy,
    TenantStatus,
    Usage,
)

MINUTE = 60.0
SOON = 1.0
"""Seconds after which to try again where nothing better is known: something has to end first."""
PART = 5000
"""Calls in one record of what a session used: a record has to fit into a message."""


@dataclass(slots=True, eq=False)
class Stake:
    """What one session adds to what its tenant has."""

    counts: bool = True
    calls: int = 0
    bytes: int = 0
    used: dict[CallId, Usage] = field(default_factory=dict)

    @property
    def total(self) -> Usage:
        """What all its calls have used."""
        return reduce(add, self.used.values(), _NONE)


class _Sum:
    """Usage that is added up for every call: in place, since a new `Usage` each time costs more than the sum."""

    __slots__ = ("cached_tokens", "cost", "output_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.cost = 0

    def add(self, usage: Usage, times: int = 1) -> None:
        self.prompt_tokens += times * usage.prompt_tokens
        self.cached_tokens += times * usage.cached_tokens
        self.output_tokens += times * usage.output_tokens
        self.cost += times * usage.cost

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            cost=self.cost,
        )


class _Tenant:
    """One tenant's books. `spent`: tokens that are not forgiven yet, at `at`. `used` by `used_by` calls: in the sessions that are
    there, and in those of which there is only a record."""

    __slots__ = ("at", "bytes", "calls", "name", "policy", "sessions", "spent", "used", "used_by")

    def __init__(self, name: Tenant) -> None:
        self.name = name
        self.policy: TenantPolicy | None = None
        self.sessions = self.calls = self.bytes = 0
        self.spent, self.at = 0.0, 0.0
        self.used, self.used_by = _Sum(), 0

    def settle(self, now: float) -> None:
        """Forgive what time has paid for."""
        if self.policy is not None and self.policy.tokens is not None:
            self.spent = max(0.0, self.spent - (now - self.at) * self.policy.tokens / MINUTE)
        self.at = now


class _Tenants(dict[Tenant, _Tenant]):
    """Books by tenant, opened when they are first looked into. (Each call looks into them several times.)"""

    def __missing__(self, name: Tenant) -> _Tenant:
        books = self[name] = _Tenant(name)
        return books


class Quotas:
    """All tenants' books."""

    def __init__(self) -> None:
        self._tenants = _Tenants()

    def set(self, policy: TenantPolicy, now: float) -> None:
        """The operator has said what a tenant may have."""
        tenant = self._tenants[Tenant(policy.tenant)]
        tenant.settle(now)
        tenant.policy = policy
        if policy.tokens is None:
            tenant.spent = 0.0

    def cache_of(self, name: Tenant, session: str) -> str:
        """The prefix cache of a tenant's session that asks for cache `session`; empty for the tenant's own. Neither names nor
        words have a colon or a slash, so that no cache is taken for another."""
        tenant = self._tenants.get(name)
        shared = "" if tenant is None or tenant.policy is None else tenant.policy.cache
        base = f"shared:{shared}" if shared else ""
        return f"{base or name}/{session}" if session else base

    # --- what is asked for ---

    def session_refused(self, name: Tenant) -> Failure | None:
        """Why a tenant may not open another session, if it may not."""
        tenant = self._tenants[name]
        policy = tenant.policy
        if policy is None:
            return None
        if policy.removed:
            return _refusal(f"tenant {name!r} is no more", None)
        if policy.sessions is not None and tenant.sessions >= policy.sessions:
            there = f"has {tenant.sessions} sessions open, as many as its quota allows"
            return _refusal(f"tenant {name!r} {there}", SOON)
        return None

    def calls_refused(self, name: Tenant, count: int, now: float) -> Failure | None:
        """Why a tenant may not submit `count` further calls, if it may not."""
        tenant = self._tenants[name]
        policy = tenant.policy
        if policy is None:
            return None
        if policy.removed:
            return _refusal(f"tenant {name!r} is no more", None)
        if policy.calls is not None and tenant.calls + count > policy.calls:
            more = f"has {tenant.calls} calls in flight and submits {count}; its quota allows {policy.calls}"
            return _refusal(f"tenant {name!r} {more}", SOON if count <= policy.calls else None)
        if policy.bytes is not None and tenant.bytes >= policy.bytes:
            there = f"stores {tenant.bytes} bytes in open sessions; its quota allows {policy.bytes}"
            return _refusal(f"tenant {name!r} {there}", SOON)
        if policy.tokens is not None:
            tenant.settle(now)
            if tenant.spent >= policy.tokens:
                wait = (tenant.spent - policy.tokens) * MINUTE / policy.tokens + SOON
                return _refusal(f"tenant {name!r} has used its {policy.tokens} tokens a minute", round(wait, 1))
        return None

    # --- what happens ---

    def opened(self, name: Tenant) -> Stake:
        """A session of the tenant's was opened."""
        self._tenants[name].sessions += 1
        return Stake()

    def counted(self, name: Tenant, stake: Stake, unfinished: int) -> None:
        """So many calls of a session are in flight now."""
        if unfinished != stake.calls:
            self._tenants[name].calls += unfinished - stake.calls
            stake.calls = unfinished

    def stored(self, name: Tenant, stake: Stake, size: int) -> Failure | None:
        """A session has stored so many bytes more. Returns why it has to be closed, if it has to."""
        tenant = self._tenants[name]
        stake.bytes += size
        tenant.bytes += size
        limit = None if tenant.policy is None else tenant.policy.bytes
        if limit is None or tenant.bytes <= 2 * limit:
            return None
        return _refusal(f"tenant {name!r} stores {tenant.bytes} bytes, more than twice what its quota allows", None)

    def used(self, name: Tenant, stake: Stake, call: CallId, usage: Usage, now: float, *, charge: bool) -> None:
        """A call has used tokens; `charge` them to the tenant's minute, unless they are long past."""
        tenant = self._tenants[name]
        before = stake.used.get(call)
        if before is None:
            tenant.used_by += 1
        stake.used[call] = usage if before is None else before + usage
        tenant.used.add(usage)
        if charge:
            tenant.settle(now)
            tenant.spent += usage.prompt_tokens + usage.output_tokens

    def closed(self, name: Tenant, stake: Stake) -> None:
        """A session takes nothing more. Idempotent."""
        if stake.counts:
            stake.counts = False
            self._tenants[name].sessions -= 1

    def forgotten(self, name: Tenant, stake: Stake) -> None:
        """A session is no more, nor what it stored; what it used will come back as a record."""
        self.closed(name, stake)
        self.counted(name, stake, 0)
        tenant = self._tenants[name]
        tenant.bytes -= stake.bytes
        tenant.used.add(stake.total, -1)
        tenant.used_by -= len(stake.used)
        stake.bytes, stake.used = 0, {}

    def recorded(self, name: Tenant, usage: Usage, calls: int) -> None:
        """There is a record of what a session that is no more has used."""
        tenant = self._tenants[name]
        tenant.used.add(usage)
        tenant.used_by += calls

    # --- questions ---

    def status(self, now: float, only: Tenant | None = None) -> tuple[TenantStatus, ...]:
        """Every tenant, or one."""
        return tuple(_status(t, now) for name, t in sorted(self._tenants.items()) if only in (None, name))

    def check(self) -> None:
        """Raise AssertionError if a count can't be."""
        for name, tenant in self._tenants.items():
            counts = (tenant.sessions, tenant.calls, tenant.bytes, tenant.spent, tenant.used_by)
            assert min(counts) >= 0, f"tenant {name!r} has less than nothing: {counts}"


def records(
    name: Tenant, session: SessionId, title: str, used: dict[CallId, Usage], functions: dict[CallId, str]
) -> tuple[SessionUsage, ...]:
    """What a session used, as records that each fit into a message."""
    calls = [CallUsage(call=call, function=functions.get(call, "")[:200], usage=usage) for call, usage in used.items()]
    parts = [tuple(calls[n : n + PART]) for n in range(0, len(calls), PART)]
    return tuple(
        SessionUsage(
            tenant=name, session=session, used=reduce(add, (c.usage for c in part)), calls=part, name=title[:200]
        )
        for part in parts
    )


_NONE = Usage()


def _refusal(message: str, retry_after: float | None) -> Failure:
    return Failure(
        code=ErrorCode.OVER_QUOTA, message=message, retryable=retry_after is not None, retry_after=retry_after
    )


def _status(tenant: _Tenant, now: float) -> TenantStatus:
    tenant.settle(now)
    return TenantStatus(
        tenant=tenant.name,
        sessions=tenant.sessions,
        calls=tenant.calls,
        bytes=tenant.bytes,
        tokens=round(tenant.spent),
        used=tenant.used.usage(),
        used_by=tenant.used_by,
        policy=tenant.policy,
    )
