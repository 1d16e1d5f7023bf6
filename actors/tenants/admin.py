"""Changes on running servers: an account's new claims to the servers, a tenant's policy to the schedulers.

Everything is told again without harm, in any order: what the authority's table says is what holds in the end.
"""

from __future__ import annotations

import msgspec

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError
from myna.actors.messages import Tenant, TenantPolicy
from myna.actors.tenants.authority import Authority

_UPDATE = "$SYS.REQ.CLAIMS.UPDATE"


class NotTaken(BusError):
    """A server refused an account's claims."""


class _Result(msgspec.Struct):
    code: int = 0
    message: str = ""
    description: str = ""


class _Answer(msgspec.Struct):
    data: _Result | None = None
    error: _Result | None = None


async def tell_servers(bus: Bus, claims: str) -> None:
    """Give the servers an account's signed claims, over the administrator's `bus`. Those that know the account obey at once,
    and close the connections of users that are void. Raises `NotTaken`, `Unavailable`."""
    answer = msgspec.json.decode((await bus.request(_UPDATE, claims.encode())).data, type=_Answer)
    if answer.data is None or answer.data.code != 200:
        refusal = answer.error or answer.data or _Result()
        raise NotTaken(f"a server refused an account: {refusal.description or refusal.message or 'no reason given'}")


async def tell_schedulers(bus: Bus, policy: TenantPolicy) -> None:
    """Store a tenant's policy, over the operator's `bus`; schedulers follow. Raises `Unavailable`."""
    await bus.append(subjects.policy(Tenant(policy.tenant)), codec.encode(policy))


async def tell_all(authority: Authority, servers: Bus, schedulers: Bus) -> None:
    """Tell everything that the authority's table says, such as after it was changed while no server ran."""
    for claims in authority.account_claims().values():
        await tell_servers(servers, claims)
    for policy in authority.policies():
        await tell_schedulers(schedulers, policy)
