"""The promises of `myna.actors.bus`, asked of both buses."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import (
    AlreadyAssigned,
    Bus,
    BusError,
    Delivery,
    LeaseLost,
    LeaseState,
    SlowConsumer,
    Stored,
    Unavailable,
)
from myna.actors.bus.mailbox import HandlerFailed, Limits
from myna.actors.messages import SessionId, Tenant, VarId
from tests.network import Collected, Network

T, S = Tenant("acme"), SessionId("s1")
LOG = subjects.log(T, S)


def write(name: str) -> str:
    return subjects.write(T, S, VarId(name))


def read(name: str) -> str:
    return subjects.read(T, S, VarId(name))


# --- plain messages ---


async def test_a_subscriber_gets_what_is_published_after_subscribe_returned(bus: Bus, network: Network) -> None:
    got = Collected[Delivery]()
    other = await network.bus()
    await bus.subscribe("a.b", got)
    await other.publish("a.b", b"one", headers={"Kind": "first"}, reply="answer.here")
    await got.until(1)
    assert got.items == [Delivery("a.b", b"one", {"Kind": "first"}, "answer.here")]


async def test_messages_of_one_sender_come_in_order_and_one_at_a_time(bus: Bus) -> None:
    running, most, seen = 0, 0, Collected[int]()

    async def handle(message: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        await seen(int(message.data))

    await bus.subscribe("numbers", handle)
    for i in range(500):
        await bus.publish("numbers", str(i).encode())
    await seen.until(500)
    assert seen.items == list(range(500))
    assert most == 1


async def test_every_short_pattern_hears_what_it_should(bus: Bus) -> None:
    """All patterns and subjects of up to three tokens, so that the memory bus matches as the server does."""
    fixed = [list(p) for n in range(4) for p in itertools.product("ab*", repeat=n)]
    patterns = [".".join(p) for p in [p for p in fixed if p] + [[*p, ">"] for p in fixed]]
    everything = [".".join(s) for n in (1, 2, 3) for s in itertools.product("ab", repeat=n)]
    heard = {pattern: Collected[Delivery]() for pattern in patterns}
    for pattern, got in heard.items():
        await bus.subscribe(f"root.{pattern}", got)
    last = Collected[Delivery]()
    await bus.subscribe("last", last)
    for subject in everything:
        await bus.publish(f"root.{subject}", b"")
    await bus.publish("last", b"")
    await last.until(1)
    for pattern, got in heard.items():
        expression = re.compile(pattern.replace(".", r"\.").replace("*", "[ab]").replace(">", ".+"))
        expected = [s for s in everything if expression.fullmatch(s)]
        await got.until(len(expected))
        assert [d.subject.removeprefix("root.") for d in got.items] == expected, pattern


async def test_a_closed_subscription_handles_nothing_more_even_what_waited(bus: Bus, network: Network) -> None:
    entered, release, handled = asyncio.Event(), asyncio.Event(), 0

    async def handle(_: Delivery) -> None:
        nonlocal handled
        entered.set()
        await release.wait()
        handled += 1

    subscription = await bus.subscribe("x", handle)
    for _ in range(3):
        await bus.publish("x", b"")
    await entered.wait()
    await network.settle(bus)
    await subscription.close()
    await subscription.close()
    release.set()
    await bus.publish("x", b"")
    await network.settle(bus)
    assert handled == 0


async def test_a_handler_may_close_its_own_subscription(bus: Bus, network: Network) -> None:
    closed, handled = asyncio.Event(), 0

    async def handle(_: Delivery) -> None:
        nonlocal handled
        handled += 1
        await subscription.close()
        closed.set()

    subscription = await bus.subscribe("x", handle)
    await bus.publish("x", b"")
    await bus.publish("x", b"")
    await asyncio.wait_for(closed.wait(), 5)
    await network.settle(bus)
    assert handled == 1


async def test_a_handler_that_raises_is_reported_and_the_next_message_is_handled(bus: Bus) -> None:
    got = Collected[Delivery]()

    async def handle(message: Delivery) -> None:
        if message.data == b"bad":
            raise RuntimeError("no")
        await got(message)

    await bus.subscribe("x", handle, on_error=got.error)
    await bus.publish("x", b"bad")
    await bus.publish("x", b"good")
    await got.until(1, errors=1)
    assert isinstance(got.errors[0], HandlerFailed)
    assert isinstance(got.errors[0].__cause__, RuntimeError)


@pytest.mark.parametrize("limits", [Limits(messages=10), Limits(size=100)], ids=["messages", "bytes"])
async def test_an_overflowing_mailbox_is_reported_once_and_the_next_overflow_again(
    network: Network, limits: Limits
) -> None:
    bus = await network.bus(limits=limits)
    sender = await network.bus()
    gate, got = asyncio.Event(), Collected[Delivery]()

    async def handle(message: Delivery) -> None:
        await gate.wait()
        await got(message)

    await bus.subscribe("x", handle, on_error=got.error)
    for _ in range(2):
        before = len(got.errors)
        for _ in range(30):
            await sender.publish("x", b"0123456789")
        await got.until(errors=before + 1)
        await network.settle(sender)
        assert len(got.errors) == before + 1
        assert isinstance(got.errors[-1], SlowConsumer)
        handled = len(got.items)
        gate.set()
        await got.until(handled + 10)
        gate.clear()
        await network.settle(sender)


async def test_one_message_fits_any_mailbox(network: Network) -> None:
    bus = await network.bus(limits=Limits(messages=1, size=10))
    got = Collected[Delivery]()
    await bus.subscribe("x", got)
    await bus.publish("x", bytes(1000))
    await got.until(1)


async def test_a_request_gets_its_own_answer(bus: Bus, network: Network) -> None:
    server = await network.bus()

    async def answer(question: Delivery) -> None:
        assert question.reply is not None
        await server.publish(question.reply, question.data.upper(), headers={"H": "v"})

    await server.subscribe("ask", answer)
    answers = await asyncio.gather(*(bus.request("ask", f"q{i}".encode()) for i in range(50)))
    assert [a.data for a in answers] == [f"Q{i}".encode() for i in range(50)]
    assert answers[0].headers == {"H": "v"}


async def test_a_request_that_nobody_hears_fails_at_once(bus: Bus) -> None:
    async with asyncio.timeout(2):
        with pytest.raises(Unavailable, match="nobody listens"):
            await bus.request("ask", b"", timeout=60)


async def test_a_request_without_answer_fails_after_its_timeout(bus: Bus) -> None:
    await bus.subscribe("ask", Collected[Delivery]())
    with pytest.raises(Unavailable, match="no answer"):
        await bus.request("ask", b"", timeout=0.05)


@pytest.mark.parametrize("subject", ["", "a b", "a..b", ".a", "a.", "a\r\nPUB b 0", "a\tb"])
async def test_what_is_no_subject_is_refused(bus: Bus, subject: str) -> None:
    with pytest.raises(ValueError, match="subject"):
        await bus.publish(subject, b"")
    with pytest.raises(ValueError, match="subject"):
        await bus.subscribe(subject, Collected[Delivery]())


@pytest.mark.parametrize("subject", ["a.*", ">", "*.b"])
async def test_nobody_publishes_on_wildcards(bus: Bus, subject: str) -> None:
    with pytest.raises(ValueError, match="wildcards"):
        await bus.publish(subject, b"")


@pytest.mark.parametrize("headers", [{"a\r\nb": "v"}, {"": "v"}, {"a:b": "v"}, {"a": "v\r\nInjected: yes"}])
async def test_headers_cannot_smuggle_in_lines(bus: Bus, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        await bus.publish("a", b"", headers=headers)


# --- streams ---


@pytest.fixture
async def streams(bus: Bus) -> Bus:
    await bus.ensure(subjects.STREAMS)
    return bus


async def test_what_is_appended_is_got_at_once(streams: Bus, network: Network) -> None:
    receipt = await streams.append(write("v"), b"value", headers={"Myna-Status": "value"})
    stored = await (await network.bus()).get(subjects.VALUES, write("v"))
    assert stored is not None
    assert (stored.subject, stored.data, stored.size) == (write("v"), b"value", 5)
    assert stored.headers == {"Myna-Status": "value"}
    assert stored.sequence == receipt.sequence
    assert receipt.stream == subjects.VALUES.name
    assert not receipt.duplicate


async def test_a_fresh_get_tells_the_same_as_a_direct_one(streams: Bus) -> None:
    await streams.append(write("v"), b"value", message_id="m", headers={"Myna-Status": "value"})
    await streams.append(write("empty"), b"")
    for name in ("v", "empty"):
        fresh = await streams.get(subjects.VALUES, write(name), fresh=True)
        assert fresh is not None
        assert fresh == await streams.get(subjects.VALUES, write(name))


@pytest.mark.parametrize("fresh", [False, True])
async def test_what_was_never_written_is_none(streams: Bus, fresh: bool) -> None:
    assert await streams.get(subjects.VALUES, write("v"), fresh=fresh) is None


async def test_a_stream_tells_how_much_it_holds(streams: Bus) -> None:
    assert (await streams.measure(subjects.VALUES)).messages == 0
    for n in range(3):
        await streams.append(write(f"v{n}"), bytes(1000))
    held = await streams.measure(subjects.VALUES)
    assert held.messages == 3
    assert held.size >= 3000
    await streams.purge(subjects.VALUES, subjects.of_session(T, S))
    assert (await streams.measure(subjects.VALUES)).messages == 0


async def test_an_empty_body_is_kept(streams: Bus) -> None:
    await streams.append(write("v"), b"")
    stored = await streams.get(subjects.VALUES, write("v"))
    assert stored is not None
    assert stored.data == b""


async def test_a_second_value_is_refused_and_no_reader_sees_it(streams: Bus, network: Network) -> None:
    reader, zombie = await network.bus(), await network.bus()
    got = Collected[Delivery]()
    await reader.subscribe(read("v"), got)
    await streams.append(write("v"), b"first", message_id="attempt-2", headers={"A": "1"})
    for attempt in range(5):
        with pytest.raises(AlreadyAssigned) as caught:
            await zombie.append(write("v"), b"zombie", message_id=f"zombie-{attempt}")
        assert caught.value.subject == write("v")
    await zombie.publish(write("v"), b"zombie, unacknowledged")
    await streams.append(write("w"), b"other")
    await network.settle(reader)
    assert [(d.subject, d.data) for d in got.items] == [(read("v"), b"first")]
    assert got.items[0].headers == {"A": "1", "Nats-Msg-Id": "attempt-2"}
    stored = await reader.get(subjects.VALUES, write("v"))
    assert stored is not None
    assert stored.data == b"first"


async def test_chunks_are_republished_by_variable_and_number(streams: Bus) -> None:
    got = Collected[Delivery]()
    await streams.subscribe(subjects.read_chunks(T, S, VarId("v")), got)
    for n in range(3):
        await streams.append(subjects.write_chunk(T, S, VarId("v"), n), str(n).encode())
    with pytest.raises(AlreadyAssigned):
        await streams.append(subjects.write_chunk(T, S, VarId("v"), 1), b"again")
    await got.until(3)
    assert [(d.subject, d.data) for d in got.items] == [
        (subjects.read_chunk(T, S, VarId("v"), n), str(n).encode()) for n in range(3)
    ]


async def test_racing_writers_have_one_winner(streams: Bus, network: Network) -> None:
    buses = [await network.bus() for _ in range(4)]
    results = await asyncio.gather(
        *(b.append(write("v"), str(i).encode(), message_id=f"m{i}") for i, b in enumerate(buses * 5)),
        return_exceptions=True,
    )
    refused = [r for r in results if isinstance(r, AlreadyAssigned)]
    winners = {r.sequence for r in results if not isinstance(r, BaseException)}
    assert len(winners) == 1
    assert len(refused) == len(results) - 1


@pytest.mark.parametrize(("subject", "republished"), [(write("v"), 1), (LOG, 0)], ids=["single", "log"])
async def test_the_same_message_id_is_a_duplicate_and_republished_once(
    streams: Bus, network: Network, subject: str, republished: int
) -> None:
    got, stored = Collected[Delivery](), Collected[Stored]()
    await streams.subscribe(read("v"), got)
    first = await streams.append(subject, b"one", message_id="m1")
    for _ in range(3):
        again = await streams.append(subject, b"one", message_id="m1")
        assert again.duplicate
        assert again.sequence == first.sequence
    await network.settle(streams)
    assert len(got.items) == republished
    stream = subjects.LOG if subject == LOG else subjects.VALUES
    await streams.follow(stream, stored, caught_up=stored.caught_up)
    await stored.until(1, caught_up=1)
    assert len(stored.items) == 1


async def test_a_message_id_is_forgotten_after_the_duplicate_window(bus: Bus, network: Network) -> None:
    stream = subjects.Stream("SHORT", ("short.*",), single=True, memory=True, duplicate_window=0.3)
    await bus.ensure([stream])
    await bus.append("short.a", b"1", message_id="m")
    await network.pass_time(0.9)
    with pytest.raises(AlreadyAssigned):
        await bus.append("short.a", b"1", message_id="m")


async def test_messages_leave_a_stream_at_their_age(bus: Bus, network: Network) -> None:
    await bus.ensure([subjects.Stream("AGED", ("aged.*",), single=True, max_age=0.3, duplicate_window=0.3)])
    await bus.append("aged.a", b"1")
    await network.pass_time(0.9)
    assert await bus.get(subjects.Stream("AGED", ("aged.*",)), "aged.a") is None
    await bus.append("aged.a", b"2")


async def test_the_log_takes_many_messages_a_subject(streams: Bus) -> None:
    receipts = [await streams.append(LOG, str(i).encode()) for i in range(5)]
    assert [r.sequence for r in receipts] == [1, 2, 3, 4, 5]


async def test_a_subject_of_no_stream_is_unavailable(streams: Bus) -> None:
    with pytest.raises(Unavailable, match="no stream"):
        await streams.append("elsewhere.x", b"")
    with pytest.raises(Unavailable, match="no stream"):
        await streams.append("elsewhere.x", b"", message_id="m", timeout=0.5)
    with pytest.raises(Unavailable, match="no stream"):
        await streams.get(subjects.Stream("NOWHERE", ("nowhere",)), "nowhere", timeout=0.5)
    with pytest.raises(Unavailable):
        await streams.get(subjects.Stream("NOWHERE", ("nowhere",)), "nowhere", timeout=0.5, fresh=True)


async def test_the_largest_body_passes_and_one_byte_more_is_refused_with_both_sizes(streams: Bus) -> None:
    got = Collected[Delivery]()
    await streams.subscribe(read("big"), got)
    body = bytes(codec.MAX_BODY)
    await streams.append(write("big"), body, message_id="big", headers={"H": "x" * 1000})
    await got.until(1)
    assert len(got.items[0].data) == codec.MAX_BODY
    for send in (streams.append, streams.publish, streams.request):
        with pytest.raises(codec.TooLarge, match=f"{codec.MAX_BODY + 1} bytes.*{codec.MAX_BODY} bytes"):
            await send(write("bigger"), body + b"x")
    assert streams.connected


async def test_ensure_is_idempotent_concurrent_and_updates(bus: Bus, network: Network) -> None:
    other = await network.bus()
    await asyncio.gather(*(b.ensure(subjects.STREAMS) for b in (bus, other) * 3))
    await bus.append(LOG, b"kept")
    wider = subjects.Stream(subjects.LOG.name, (*subjects.LOG.subjects, "more.log"))
    await bus.ensure([wider])
    assert (await bus.append("more.log", b"new")).sequence == 2


# --- following ---


async def test_a_follower_gets_all_in_order_then_is_told_then_gets_what_is_new(streams: Bus, network: Network) -> None:
    for i in range(300):
        await streams.append(LOG, str(i).encode(), headers={"N": str(i)})
    got = Collected[Stored]()
    await (await network.bus()).follow(subjects.LOG, got, caught_up=got.caught_up)
    await got.until(300, caught_up=1)
    for i in range(300, 320):
        await streams.append(LOG, str(i).encode(), headers={"N": str(i)})
    await got.until(320)
    assert [int(m.data) for m in got.items] == list(range(320))
    assert [m.sequence for m in got.items] == list(range(1, 321))
    assert [m.headers for m in got.items] == [{"N": str(i)} for i in range(320)]
    assert got.caught_up_at == [300]
    assert all(m.size == len(m.data) and m.subject == LOG for m in got.items)


async def test_a_follower_of_an_empty_stream_is_caught_up(streams: Bus) -> None:
    got = Collected[Stored]()
    await streams.follow(subjects.LOG, got, caught_up=got.caught_up)
    await got.until(caught_up=1)
    await streams.append(LOG, b"x")
    await got.until(1)
    assert got.caught_up_at == [0]


@pytest.mark.parametrize("after", [1, 5, 9, 10])
async def test_a_follower_begins_after_a_sequence(streams: Bus, after: int) -> None:
    for i in range(1, 11):
        await streams.append(LOG, str(i).encode())
    got = Collected[Stored]()
    await streams.follow(subjects.LOG, got, after=after, caught_up=got.caught_up)
    await got.until(10 - after, caught_up=1)
    await streams.append(LOG, b"11")
    await got.until(11 - after)
    assert [m.sequence for m in got.items] == list(range(after + 1, 12))


async def test_a_follower_may_want_headers_only_and_some_subjects(streams: Bus) -> None:
    other = subjects.write(Tenant("other"), S, VarId("v"))
    await streams.append(write("v"), b"12345", headers={"Myna-Status": "value"})
    await streams.append(other, b"no")
    got = Collected[Stored]()
    await streams.follow(subjects.VALUES, got, subject=f"myna.{T}.>", headers_only=True, caught_up=got.caught_up)
    await got.until(1, caught_up=1)
    await streams.append(write("w"), b"")
    await got.until(2)
    assert [(m.subject, m.data, m.size, m.headers) for m in got.items] == [
        (write("v"), b"", 5, {"Myna-Status": "value"}),
        (write("w"), b"", 0, {}),
    ]


async def test_a_purge_deletes_and_counts_and_does_not_disturb_a_follower(streams: Bus) -> None:
    session_2 = subjects.log(T, SessionId("s2"))
    for i in range(10):
        await streams.append(LOG if i % 2 else session_2, str(i).encode())
    got = Collected[Stored]()
    await streams.follow(subjects.LOG, got, caught_up=got.caught_up)
    await got.until(10, caught_up=1)
    assert await streams.purge(subjects.LOG, subjects.of_session(T, S)) == 5
    assert await streams.get(subjects.LOG, LOG) is None
    await streams.append(session_2, b"10")
    await got.until(11)
    assert [int(m.data) for m in got.items] == list(range(11))
    late = Collected[Stored]()
    await streams.follow(subjects.LOG, late, caught_up=late.caught_up)
    await late.until(6, caught_up=1)
    assert [int(m.data) for m in late.items] == [0, 2, 4, 6, 8, 10]


async def test_a_purge_may_leave_the_newest_which_a_follower_goes_on_from(streams: Bus) -> None:
    for i in range(5):
        await streams.append(LOG, str(i).encode())
    got = Collected[Stored]()
    await streams.follow(subjects.LOG, got, caught_up=got.caught_up)
    await got.until(5, caught_up=1)
    assert await streams.purge(subjects.LOG, ">", keep=2) == 3
    assert await streams.purge(subjects.LOG, ">", keep=2) == 0
    await streams.append(LOG, b"5")
    await got.until(6)
    late = Collected[Stored]()
    await streams.follow(subjects.LOG, late, caught_up=late.caught_up)
    await late.until(3, caught_up=1)
    assert [int(m.data) for m in late.items] == [3, 4, 5]


async def test_a_purged_variable_can_be_written_anew(streams: Bus) -> None:
    await streams.append(write("v"), b"old")
    assert await streams.purge(subjects.VALUES, subjects.of_session(T, S)) == 1
    await streams.append(write("v"), b"new")
    stored = await streams.get(subjects.VALUES, write("v"))
    assert stored is not None
    assert stored.data == b"new"


async def test_a_slow_follower_loses_nothing(network: Network) -> None:
    bus = await network.bus(limits=Limits(messages=4, size=1000))
    await bus.ensure(subjects.STREAMS)
    gate, got = asyncio.Event(), Collected[Stored]()

    async def handle(message: Stored) -> None:
        await gate.wait()
        await got(message)

    await bus.follow(subjects.LOG, handle, on_error=got.error)
    for i in range(200):
        await bus.append(LOG, str(i).encode() + bytes(20_000))
    gate.set()
    await got.until(200)
    assert [m.sequence for m in got.items] == list(range(1, 201))
    assert not got.errors


async def test_a_closed_follow_handles_nothing_more(streams: Bus, network: Network) -> None:
    got = Collected[Stored]()
    follow = await streams.follow(subjects.LOG, got)
    await streams.append(LOG, b"1")
    await got.until(1)
    await follow.close()
    await follow.close()
    await streams.append(LOG, b"2")
    await network.settle(streams)
    assert len(got.items) == 1


async def test_an_unknown_stream_can_not_be_followed(bus: Bus) -> None:
    with pytest.raises(BusError, match="NOWHERE"):
        await bus.follow(subjects.Stream("NOWHERE", ("nowhere",)), Collected[Stored]())


# --- leases ---


async def test_a_lease_has_one_holder(bus: Bus, network: Network) -> None:
    other = await network.bus()
    revision = await bus.acquire("leader", b"a", ttl=5)
    with pytest.raises(LeaseLost):
        await other.acquire("leader", b"b", ttl=5)
    assert await other.lease("leader") == LeaseState(b"a", revision)
    renewed = await bus.renew("leader", b"a", revision)
    assert renewed > revision
    with pytest.raises(LeaseLost):
        await other.renew("leader", b"b", revision)
    assert await other.lease("leader") == LeaseState(b"a", renewed)


async def test_racing_for_a_lease_has_one_winner(network: Network) -> None:
    buses = [await network.bus() for _ in range(5)]
    results = await asyncio.gather(
        *(b.acquire("leader", str(i).encode(), ttl=5) for i, b in enumerate(buses)), return_exceptions=True
    )
    winners = [i for i, r in enumerate(results) if isinstance(r, int)]
    assert len(winners) == 1
    assert all(isinstance(r, int | LeaseLost) for r in results)
    state = await buses[0].lease("leader")
    assert state is not None
    assert state.holder == str(winners[0]).encode()


async def test_a_released_lease_is_free_and_a_stale_release_changes_nothing(bus: Bus) -> None:
    first = await bus.acquire("leader", b"a", ttl=5)
    await bus.release("leader", first)
    assert await bus.lease("leader") is None
    second = await bus.acquire("leader", b"b", ttl=5)
    assert second > first
    await bus.release("leader", first)
    assert await bus.lease("leader") == LeaseState(b"b", second)


async def test_a_lease_expires_and_its_revisions_grow(bus: Bus, network: Network) -> None:
    first = await bus.acquire("leader", b"a", ttl=0.5)
    await network.pass_time(0.9)
    assert await bus.lease("leader") is None
    with pytest.raises(LeaseLost):
        await bus.renew("leader", b"a", first)
    assert await bus.acquire("leader", b"b", ttl=0.5) > first


async def test_nobody_holds_a_lease_that_was_never_taken(bus: Bus) -> None:
    await bus.ensure([])
    assert await bus.lease("leader") is None
    await bus.acquire("other", b"x", ttl=5)
    assert await bus.lease("leader") is None


# --- life ---


async def test_a_closed_bus_refuses_everything_and_closes_again(network: Network) -> None:
    bus = await network.bus()
    got = Collected[Delivery]()
    await bus.subscribe("x", got)
    assert bus.connected
    await bus.close()
    await bus.close()
    assert not bus.connected
    for call in (
        bus.publish("x", b""),
        bus.subscribe("x", got),
        bus.request("x", b""),
        bus.append(LOG, b""),
        bus.get(subjects.LOG, LOG),
        bus.lease("leader"),
    ):
        with pytest.raises(Unavailable, match="closed"):
            await call


async def test_a_handler_may_close_its_bus(network: Network) -> None:
    bus, closed = await network.bus(), asyncio.Event()

    async def handle(_: Delivery) -> None:
        await bus.close()
        closed.set()

    await bus.subscribe("x", handle)
    await bus.subscribe("y", Collected[Delivery]())
    await bus.publish("x", b"")
    await asyncio.wait_for(closed.wait(), 5)
    assert not bus.connected


async def test_closing_ends_an_append_that_is_tried_again(network: Network) -> None:
    bus = await network.bus()
    appending = asyncio.ensure_future(bus.append("of.no.stream", b"", message_id="m", timeout=60))
    await asyncio.sleep(0)
    await bus.close()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await appending


async def test_what_was_published_before_close_arrives(network: Network) -> None:
    sender, receiver = await network.bus(), await network.bus()
    got = Collected[Delivery]()
    await receiver.subscribe("x", got)
    for i in range(100):
        await sender.publish("x", str(i).encode())
    await sender.close()
    await got.until(100)
