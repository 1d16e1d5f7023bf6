"""Our own gateway as an endpoint: a cluster serves another (here, itself under another name)."""

from __future__ import annotations

import pytest

from myna.actors.endpoints.backend import EndpointBackend
from myna.actors.endpoints.budget import Ledger
from myna.actors.endpoints.settings import Endpoint
from tests.actors.gateway.conftest import furnished
from tests.actors.stage import Application
from tests.actors.stage import call as call_of
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats


async def test_a_call_goes_through_a_gateway_to_the_engine_behind_it(nats: NatsNetwork) -> None:
    async with furnished(nats) as house:
        gateway = await house.open()
        mirror = Endpoint(name="mirror", url=f"{gateway.url}/v1", models={"mirrored": "noop"})
        await house.cast.worker("mirror", EndpointBackend(mirror, Ledger()))
        application = Application(await nats.bus(), "s1")
        await application.open()
        await application.submit(call_of("a", models=("mirrored",)), call_of("b", "a", models=("noop",)))
        assert await application.text("a") == "answer0 answer1"
        assert await application.text("b") == "b0 b1"
