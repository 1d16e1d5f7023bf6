"""What only a real server can do to a bus: die, freeze, forbid, forget."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import Delivery, LeaseLost, NotAllowed, Stored, Unavailable, jetstream
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.server import Server, ServerConfig
from tests.network import Collected, NatsNetwork, started

pytestmark = pytest.mark.nats

T, S = Tenant("acme"), SessionId("s1")
LOG = subjects.log(T, S)


def write(name: str) -> str:
    return subjects.write(T, S, VarId(name))


def read(name: str) -> str:
    return subjects.read(T, S, VarId(name))


async def api(bus: NatsBus, name: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = await bus.request(f"$JS.API.{name}", json.dumps(request).encode() if request else b"")
    result: dict[str, Any] = json.loads(answer.data)
    return result


# --- a server that dies ---


async def test_a_follow_survives_killed_servers_without_loss_or_repetition(nats: NatsNetwork) -> None:
    bus, writer = await nats.bus(), await nats.bus()
    await bus.ensure(subjects.STREAMS)
    got = Collected[Stored]()
    await bus.follow(subjects.LOG, got, caught_up=got.caught_up, on_error=got.error)
    total = 0
    for _ in range(3):
        for _ in range(50):
            await writer.append(LOG, str(total).encode(), message_id=f"m{total}")
            total += 1
        await nats.server.kill()
        await nats.server.restart()
    await got.until(total)
    await writer.append(LOG, str(total).encode())
    await got.until(total + 1)
    assert [int(m.data) for m in got.items] == list(range(total + 1))
    assert not got.errors
    assert got.caught_up_at == [0]


async def test_appends_with_a_message_id_survive_a_killed_server(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    stored = asyncio.Event()

    async def worker(first: int) -> None:
        for i in range(first, 400, 8):
            await bus.append(write(f"v{i}"), str(i).encode(), message_id=f"m{i}", timeout=30)
            if i > 100:
                stored.set()

    async with asyncio.TaskGroup() as group:
        for first in range(8):
            group.create_task(worker(first))
        await stored.wait()
        await nats.server.kill()
        await nats.server.restart()
    for i in range(400):
        value = await bus.get(subjects.VALUES, write(f"v{i}"))
        assert value is not None
        assert value.data == str(i).encode()
    assert (await api(bus, f"STREAM.INFO.{subjects.VALUES.name}"))["state"]["messages"] == 400


async def test_a_message_id_is_known_after_a_killed_server(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    first = await bus.append(write("v"), b"1", message_id="m")
    await nats.server.kill()
    await nats.server.restart()
    again = await bus.append(write("v"), b"1", message_id="m")
    assert again.duplicate
    assert again.sequence == first.sequence


async def test_a_server_through_which_nothing_can_be_stored_is_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is cut off from its cluster: it is there, answers pings, and has no stream that takes anything."""
    monkeypatch.setattr(jetstream, "_CUT_OFF", 0.3)
    servers = [await Server.start(ServerConfig(tmp_path / name, password="p")) for name in "ab"]
    try:
        bus = await NatsBus.connect([server.url for server in servers], user="myna", password="p")
        used = bus._link.connected_url
        (other,) = (server for server in servers if used is not None and server.port != used.port)
        elsewhere = await NatsBus.connect(other.url, user="myna", password="p")
        await elsewhere.ensure(subjects.STREAMS)
        await bus.append(write("v"), b"1", message_id="m", timeout=20)
        stored = await elsewhere.get(subjects.VALUES, write("v"))
        assert stored is not None
        assert stored.data == b"1"
        await bus.close()
        await elsewhere.close()
    finally:
        for server in servers:
            await server.stop()


async def test_an_append_without_message_id_is_not_repeated(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    nats.server.pause()
    append = asyncio.ensure_future(bus.append(LOG, b"x", timeout=30))
    await asyncio.sleep(0)
    await nats.server.kill()
    with pytest.raises(Unavailable, match="lost"):
        await asyncio.wait_for(append, 5)


async def test_subscriptions_come_back_and_the_owner_is_told(nats: NatsNetwork) -> None:
    downs, ups, got = asyncio.Event(), asyncio.Event(), Collected[Delivery]()
    bus = await nats.bus(on_disconnect=downs.set, on_reconnect=ups.set)
    await bus.subscribe("x", got)
    await nats.server.kill()
    await asyncio.wait_for(downs.wait(), 10)
    assert not bus.connected
    await bus.publish("x", b"buffered")
    await nats.server.restart()
    await asyncio.wait_for(ups.wait(), 10)
    assert bus.connected
    await bus.publish("x", b"direct")
    await got.until(2)
    assert [d.data for d in got.items] == [b"buffered", b"direct"]


async def test_a_subscription_made_without_a_connection_waits_for_it(nats: NatsNetwork) -> None:
    bus, got = await nats.bus(), Collected[Delivery]()
    await nats.server.kill()
    subscribing = asyncio.ensure_future(bus.subscribe("x", got))
    await nats.server.restart()
    await asyncio.wait_for(subscribing, 10)
    await (await nats.bus()).publish("x", b"heard")
    await got.until(1)


# --- a server that freezes ---


async def test_a_cancellation_that_meets_the_servers_answer_is_not_swallowed(nats: NatsNetwork) -> None:
    """`asyncio.wait_for` swallows it before Python 3.12, and who cancelled waits for ever."""
    bus = await nats.bus()
    subscribing = asyncio.create_task(bus.subscribe("x", Collected[Delivery]()))
    await asyncio.sleep(0)
    (pong,) = bus._link._awaited_pongs
    pong.set_result(None)
    subscribing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await subscribing


async def test_a_frozen_server_makes_every_call_fail_in_time(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    nats.server.pause()
    loop = asyncio.get_running_loop()
    start = loop.time()
    calls = [
        bus.append(write("v"), b"x", message_id="m", timeout=2),
        bus.append(LOG, b"x", timeout=2),
        bus.get(subjects.VALUES, write("v"), timeout=2),
        bus.request("anybody", b"", timeout=2),
        bus.subscribe("x", Collected[Delivery]()),
        bus.lease("leader"),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(r, Unavailable) for r in results), results
    assert loop.time() - start < 8
    assert not bus.connected
    nats.server.resume()
    await bus.append(write("v"), b"x", message_id="m", timeout=20)


async def test_a_frozen_server_with_a_full_socket_is_noticed_and_closing_is_bounded(nats: NatsNetwork) -> None:
    down = asyncio.Event()
    bus = await nats.bus(on_disconnect=down.set)
    nats.server.pause()
    for _ in range(2):
        await bus.publish("x", bytes(codec.MAX_BODY))
    await asyncio.wait_for(down.wait(), 10)
    await asyncio.wait_for(bus.close(), 5)


async def test_closing_on_a_frozen_server_is_bounded(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    await bus.subscribe("x", Collected[Delivery]())
    await bus.follow(subjects.LOG, Collected[Stored]())
    nats.server.pause()
    await bus.publish("x", bytes(codec.MAX_BODY))
    await asyncio.wait_for(bus.close(), 5)


async def test_what_can_not_be_sent_is_refused_at_a_limit(nats: NatsNetwork) -> None:
    down = asyncio.Event()
    bus = await nats.bus(on_disconnect=down.set)
    await nats.server.kill()
    await asyncio.wait_for(down.wait(), 10)
    for _ in range(3):
        await bus.publish("x", bytes(codec.MAX_BODY))
    with pytest.raises(Unavailable, match="limit"):
        await bus.publish("x", b"one more")


# --- connecting ---


async def test_a_wrong_password_is_told_at_once(nats: NatsNetwork) -> None:
    async with asyncio.timeout(3):
        with pytest.raises(NotAllowed, match="refuses"):
            await nats.bus(password="wrong", timeout=30)


@pytest.mark.parametrize("drop", [b"", b"-ERR 'Authorization Violation'\r\n"])
async def test_who_is_let_in_and_thrown_out_at_once_is_told_that_it_is_refused(drop: bytes) -> None:
    """A server that has missed a rotation lets old credentials in, hears of it, and may drop the connection without a word."""
    visits = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.write(b'INFO {"server_id":"s","version":"2.12.0","headers":true,"max_payload":1048576}\r\n')
        await reader.readuntil(b"PING\r\n")
        if visits == 1:
            writer.write(b"PONG\r\n")
            await reader.readuntil(b"SUB ")
        writer.write(drop if visits == 1 else b"-ERR 'Authorization Violation'\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(5):
        with pytest.raises(NotAllowed, match="refuses"):
            await NatsBus.connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=30)


async def test_without_a_server_connecting_fails_in_time_and_keeps_the_password_secret(nats: NatsNetwork) -> None:
    await nats.server.kill()
    with pytest.raises(Unavailable, match="no connection to nats://127") as caught:
        await NatsBus.connect(nats.server.url.replace("//", "//me:secret@"), timeout=0.5)
    assert "secret" not in str(caught.value)


async def test_a_frozen_server_can_not_hold_a_connecting_bus(nats: NatsNetwork) -> None:
    nats.server.pause()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await nats.bus(timeout=0.5)


# --- permissions ---

TENANT = """
users: [
  {user: myna, password: boss}
  {user: acme, password: acme, permissions: {
     publish: ["myna.acme.*.log", "myna.acme.*.set.*", "$JS.API.DIRECT.GET.MYNA_VALUES.myna.acme.>"]
     subscribe: ["myna.acme.*.var.*", "_INBOX_acme.>"]}}
]
"""


async def test_a_tenant_needs_no_more_than_its_subjects_and_direct_get(tmp_path: Path) -> None:
    server = await Server.start(ServerConfig(tmp_path / "nats", users=TENANT, password="boss"))
    async for nats in started(server):
        boss = await nats.bus()
        await boss.ensure(subjects.STREAMS)
        errors = Collected[Delivery]()
        tenant = await nats.bus(user="acme", password="acme", inbox_prefix="_INBOX_acme", on_error=errors.error)
        got = Collected[Delivery]()
        await tenant.subscribe(read("v"), got)
        await tenant.append(write("v"), b"mine")
        await got.until(1)
        stored = await tenant.get(subjects.VALUES, write("v"))
        assert stored is not None
        assert stored.data == b"mine"
        assert await tenant.get(subjects.VALUES, write("v"), fresh=True) == stored, (
            "by direct get: leaders are not his to ask"
        )
        other = Tenant("Other")
        async with asyncio.timeout(5):
            with pytest.raises(NotAllowed, match="publish"):
                await tenant.append(subjects.write(other, S, VarId("v")), b"forged", message_id="m")
            with pytest.raises(NotAllowed, match="publish"):
                await tenant.get(subjects.VALUES, subjects.write(other, S, VarId("v")))
            with pytest.raises(NotAllowed, match="subscription"):
                await tenant.subscribe(subjects.read(other, S, VarId("v")), got)
            with pytest.raises(NotAllowed):
                await tenant.follow(subjects.VALUES, Collected[Stored]())
            await tenant.publish(read("v"), b"forged")
            await errors.until(errors=1)
        assert isinstance(errors.errors[0], NotAllowed)
        assert tenant.connected
        assert len(got.items) == 1


# --- limits ---


async def test_two_thousand_readers_of_one_stream(nats: NatsNetwork) -> None:
    bus, writer = await nats.bus(), await nats.bus()
    await bus.ensure(subjects.STREAMS)
    early = {f"early{i}" for i in range(1000)}
    names = sorted(early | {f"late{i}" for i in range(1000)})
    for name in early:
        await writer.append(write(name), name.encode())
    reading = asyncio.Event()
    waiting = 0

    async def reader(name: str) -> str:
        """Law 8: subscribe, then get."""
        nonlocal waiting
        got = Collected[Delivery]()
        subscription = await bus.subscribe(read(name), got)
        stored = await bus.get(subjects.VALUES, write(name))
        if stored is None:
            waiting += 1
            if waiting == 1000:
                reading.set()
            await got.until(1)
        await subscription.close()
        return (stored.data if stored is not None else got.items[0].data).decode()

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(reader(name)) for name in names]
        await reading.wait()
        for name in names:
            if name not in early:
                await writer.append(write(name), name.encode())
    assert [r.result() for r in readers] == names
    assert (await api(bus, f"STREAM.INFO.{subjects.VALUES.name}"))["state"]["consumer_count"] == 0


async def test_a_follower_that_is_slow_is_slowed_down_not_overrun(nats: NatsNetwork) -> None:
    """48 MiB are more than the server sends ahead of flow control's answers."""
    bus, writer = await nats.bus(), await nats.bus()
    await bus.ensure(subjects.STREAMS)
    body = bytes(128 * 1024)
    await asyncio.gather(*(writer.append(LOG, body) for _ in range(384)))
    got, gate = Collected[int](), asyncio.Event()

    async def handle(message: Stored) -> None:
        await gate.wait()
        await got(message.sequence)

    await bus.follow(subjects.LOG, handle, caught_up=got.caught_up, on_error=got.error)
    await nats.settle(bus)
    gate.set()
    await got.until(384, caught_up=1)
    assert got.items == list(range(1, 385))
    assert not got.errors


async def test_a_follow_goes_on_when_its_consumer_is_deleted(nats: NatsNetwork) -> None:
    bus, got = await nats.bus(), Collected[Stored]()
    await bus.ensure(subjects.STREAMS)
    await bus.append(LOG, b"1")
    await bus.follow(subjects.LOG, got)
    await got.until(1)
    names = (await api(bus, f"CONSUMER.NAMES.{subjects.LOG.name}"))["consumers"]
    for name in names:
        assert (await api(bus, f"CONSUMER.DELETE.{subjects.LOG.name}.{name}"))["success"]
    await bus.append(LOG, b"2")
    await got.until(2)
    assert [m.data for m in got.items] == [b"1", b"2"]


async def test_a_closed_follow_leaves_no_consumer(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    follow = await bus.follow(subjects.LOG, Collected[Stored]())
    assert (await api(bus, f"CONSUMER.NAMES.{subjects.LOG.name}"))["total"] == 1
    await follow.close()
    assert (await api(bus, f"CONSUMER.NAMES.{subjects.LOG.name}"))["total"] == 0


async def test_a_server_with_a_smaller_limit_is_respected(tmp_path: Path) -> None:
    async for nats in started(await Server.start(ServerConfig(tmp_path / "nats", max_payload=1000))):
        bus = await nats.bus()
        with pytest.raises(codec.TooLarge, match=r"1001 bytes.*1000 bytes"):
            await bus.publish("x", bytes(1001))
        await bus.publish("x", bytes(1000))
        await nats.settle(bus)
        assert bus.connected


async def test_streams_are_configured_as_the_laws_say(nats: NatsNetwork) -> None:
    bus = await nats.bus()
    await bus.ensure(subjects.STREAMS)
    config = (await api(bus, f"STREAM.INFO.{subjects.VALUES.name}"))["config"]
    assert config["max_msgs_per_subject"] == 1
    assert config["discard"] == "new"
    assert config["discard_new_per_subject"] is True
    assert config["allow_direct"] is True
    assert config["storage"] == "file"
    assert config["max_consumers"] > 0
    assert config["republish"]["src"] == "myna.*.*.set.*"
    assert not config.get("allow_rollup_hdrs")
    log = (await api(bus, f"STREAM.INFO.{subjects.LOG.name}"))["config"]
    assert log["max_msgs_per_subject"] == -1


async def test_a_lost_acknowledgement_of_a_renewal_is_asked_for_again(nats: NatsNetwork) -> None:
    """The renewal is sent to a frozen server, which stores it when it goes on: the second try is a duplicate, not a loss."""
    bus = await nats.bus()
    revision = await bus.acquire("leader", b"a", ttl=30)
    nats.server.pause()
    renewing = asyncio.ensure_future(bus.renew("leader", b"a", revision))
    for _ in range(3):
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(2.8, nats.server.resume)
    assert await renewing == revision + 1
    assert await bus.renew("leader", b"a", revision + 1) == revision + 2


async def test_a_lease_is_not_lost_to_ones_own_renewal_that_was_never_acknowledged(
    nats: NatsNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("myna.actors.bus.leases._TIMEOUT", 0.3)
    bus, other = await nats.bus(), await nats.bus()
    revision = await bus.acquire("leader", b"a", ttl=30)
    nats.server.pause()
    with pytest.raises(Unavailable):
        await bus.renew("leader", b"a", revision)
    nats.server.resume()
    monkeypatch.undo()
    renewed = await bus.renew("leader", b"a", revision)
    assert renewed > revision
    taken = await other.renew("leader", b"b", renewed)
    with pytest.raises(LeaseLost):
        await bus.renew("leader", b"a", renewed)
    assert await other.renew("leader", b"b", taken) == taken + 1
