"""Engines show themselves over a real server, to those who may look."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import NotAllowed
from myna.actors.messages import Sight, WorkerId
from myna.actors.tenants.rights import Role
from myna.actors.watch.watcher import Watcher
from myna.actors.worker.shell import Worker
from tests.actors.stage import Application, GatedBackend, call, stage, until
from tests.actors.tenants.realm import Realm, realm
from tests.network import Network, nats, nats_server, network

__all__ = ["nats", "nats_server", "network", "realm"]


async def test_a_watcher_sees_calls_go_on_and_end_and_what_is_no_sight_is_passed_over(network: Network) -> None:
    backend = GatedBackend(("a", 1))
    async with stage(network.bus) as cast:
        await cast.scheduler()
        watcher = Watcher(await cast.bus("watcher"))
        await watcher.start()
        await (await cast.bus("liar")).publish("myna-sight.w", b"\xc1 no sight")
        await cast.worker("w", backend)
        app = Application(await cast.bus("app"), "s")
        await app.open()
        await app.submit(call("a", tokens=3))
        await until(lambda: watcher.history.call(("default", "s", "call-a")) is not None, "the call is shown")
        shown = watcher.history.call(("default", "s", "call-a"))
        assert shown is not None
        assert (shown.function, shown.produced, shown.phase) == ("a", 1, "decode")
        backend.gates["a", 1].set()
        await until(lambda: bool(watcher.history.engines()[0].spans), "its times are shown")
        (view,) = watcher.history.engines()
        (span,) = view.spans
        assert (span.call, span.function) == ("call-a", "a")
        assert span.received <= span.began <= span.first <= span.ended <= view.at
        assert watcher.rejected == 1
        await watcher.stop()
        await watcher.stop()


@pytest.mark.nats
async def test_engines_may_show_themselves_to_gateways_and_operators_and_tenants_see_nothing(realm: Realm) -> None:
    seen: dict[Role, Watcher] = {}
    for role in (Role.GATEWAY, Role.OPERATOR):
        seen[role] = Watcher(await realm.role(role))
        await seen[role].start()
    tenant = await realm.tenant("alice")
    with contextlib.suppress(NotAllowed):

        async def take(_: object) -> None:
            raise AssertionError("a tenant hears an engine")

        await tenant.subscribe(subjects.SIGHTS, take)
    forged = codec.encode(
        Sight(worker="forged", incarnation="i", at=0.0, kind="engine", serves=(), capacity=1)  # type: ignore[arg-type]
    )
    with contextlib.suppress(NotAllowed):
        await tenant.publish("myna-sight.forged", forged)
    engine = Worker(await realm.role(Role.ENGINE), WorkerId("engine-1"), GatedBackend())
    running = asyncio.ensure_future(engine.run())
    for watcher in seen.values():
        await asyncio.wait_for(watcher.heard.wait(), 20)
        assert [e.worker for e in watcher.history.engines()] == ["engine-1"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
