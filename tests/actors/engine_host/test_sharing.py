"""Whose prefixes a call shares, by scheduler, worker and a real engine: its tenant's own, unless the operator says otherwise."""

from __future__ import annotations

from myna.actors import codec, config, subjects
from myna.actors.messages import PROTOCOL, Message, ModelCall, Open, Output, Sampling, Tenant, TenantPolicy, Text, Value
from tests.actors.engine_host.test_backend import engine, settings
from tests.actors.stage import Application, Stage, stage, until
from tests.network import MemoryNetwork

__all__ = ["settings"]

ALICE, BOB, CAROL = Tenant("alice"), Tenant("bob"), Tenant("carol")
PROMPT = "the quick brown fox jumps over the lazy dog, and once more the quick brown fox"


async def cached(cast: Stage, tenant: Tenant, session: str, prompt: str = PROMPT, *, own: str = "") -> int:
    """How many of the prompt's tokens the engine had already, when a tenant asks in a new session, with a cache `own` of its."""
    app = Application(await cast.bus(tenant), session, tenant)
    await app.log(Open(protocol=PROTOCOL, cache=own))
    output = Output(variables=("v",), sampling=Sampling(max_tokens=2, ignore_eos=True))
    await app.submit(ModelCall(id="call-v", messages=(Message(segments=(Text(text=prompt), output)),)))
    value = await app.outcome("v")
    assert isinstance(value, Value)
    return value.usage.cached_tokens


async def allow(cast: Stage, cache: str, *tenants: Tenant) -> None:
    """The operator lets tenants share a cache."""
    bus = await cast.bus("operator")
    for tenant in tenants:
        policy = TenantPolicy(tenant=tenant, cache=cache)
        await bus.append(subjects.policy(tenant), codec.encode(policy))

    async def known() -> bool:
        policies = {t.tenant: t.policy for t in (await cast.status()).tenants}
        return all((p := policies.get(tenant)) is not None and p.cache == cache for tenant in tenants)

    await until(known, "the scheduler follows the policies")


async def test_prefixes_are_a_tenants_own_unless_the_operator_lets_it_share(settings: config.Settings) -> None:
    async with stage(MemoryNetwork().bus) as cast:
        await cast.scheduler()
        await engine(cast, settings)
        assert await cached(cast, ALICE, "one") == 0
        assert await cached(cast, ALICE, "two") > 0
        assert await cached(cast, BOB, "three") == 0, "another tenant's prompt must not show in the timing"
        await allow(cast, "team", ALICE, BOB)
        assert await cached(cast, ALICE, "four") == 0, "what was asked before is not shared after the fact"
        assert await cached(cast, BOB, "five") > 0
        assert await cached(cast, CAROL, "six") == 0
        await allow(cast, "", BOB)
        assert await cached(cast, BOB, "seven") > 0, "its own, from before"
        assert await cached(cast, BOB, "eight", f"{PROMPT} again") > 0
        await allow(cast, ALICE, CAROL)
        assert await cached(cast, CAROL, "nine") == 0, "a shared cache named like a tenant is not that tenant's"
        assert await cached(cast, ALICE, "ten", own="user-1") == 0, "a session may have a cache of its own"
        assert await cached(cast, ALICE, "eleven", own="user-1") > 0
        assert await cached(cast, ALICE, "twelve", own="user-2") == 0
