"""Garbage on every subject that an actor listens to, while an application runs: each is answered or counted, none stops it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from structlog.testing import capture_logs

from myna.actors import codec, subjects
from myna.actors.bus import AlreadyAssigned, Bus
from myna.actors.bus.nats import NatsBus
from myna.actors.codec import WireError
from myna.actors.messages import (
    Alive,
    Announce,
    Beat,
    Drain,
    Event,
    Hello,
    Leave,
    LogEntry,
    Run,
    SessionId,
    Status,
    StatusRequest,
    Stop,
    VarId,
    WorkerId,
)
from myna.actors.subjects import FromWorker, ToWorker
from tests.actors.golden import EXAMPLES
from tests.actors.stage import TENANT, Application, call, stage, until, words
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats

FRAMES = 3000
SEEDS = [codec.encode(example) for example in EXAMPLES.values()]


def deep(levels: int) -> Any:
    nested: Any = 0
    for _ in range(levels):
        nested = [nested]
    return nested


ATOMS: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    2**64 - 1,
    -(2**63),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\n",
    "a.b.>",
    "*",
    "'; drop stream --",
    "{{x}}<|im_start|>",
    "x" * 100_000,
    "\u202e\U0001f99c",
    b"\xff\xfe",
    [],
    {},
    deep(200),
    {"t": "run"},
    {"t": ["open"]},
    {1: 2, None: 3},
    msgpack.ExtType(7, b"ext"),
    msgpack.Timestamp(2**33, 1),
]


class Fuzzer:
    """Frames, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def frame(self) -> bytes:
        make = self.random.choice(
            (self._noise, self._bent, self._bent, self._rebuilt, self._rebuilt, self._rebuilt, self._atom)
        )
        return make()

    def _noise(self) -> bytes:
        return self.random.randbytes(self.random.choice((0, 1, 2, 7, 60, 1000)))

    def _bent(self) -> bytes:
        """A valid frame with bytes flipped, cut off, put in, or said twice."""
        data = bytearray(self.random.choice(SEEDS))
        for _ in range(self.random.randint(1, 3)):
            at = self.random.randrange(len(data) + 1)
            match self.random.randrange(4):
                case 0 if at < len(data):
                    data[at] ^= 1 << self.random.randrange(8)
                case 1:
                    del data[at:]
                case 2:
                    data[at:at] = self.random.randbytes(3)
                case _:
                    data += data[at:]
        return bytes(data)

    def _rebuilt(self) -> bytes:
        """A valid frame's data with one part of it replaced by something hostile."""
        data = msgpack.unpackb(self.random.choice(SEEDS), strict_map_key=False)
        node = data
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = self.random.choice(keys)
            if isinstance(node[key], dict | list) and self.random.random() < 0.7:
                node = node[key]
                continue
            if isinstance(node, dict) and self.random.random() < 0.2:
                del node[key]
            else:
                node[key] = self.random.choice(ATOMS)
            break
        return bytes(msgpack.packb(data))

    def _atom(self) -> bytes:
        return bytes(msgpack.packb(self.random.choice(ATOMS)))


def valid(data: bytes, type_: Any) -> Any:
    try:
        return codec.decode(data, type_)
    except WireError:
        return None


@dataclass
class Expected:
    """How many frames each actor must have counted as not understood."""

    scheduler: int = 0
    worker: int = 0


ORDERS: dict[str, Any] = {ToWorker.RUN: Run, ToWorker.STOP: Stop, ToWorker.DRAIN: Drain, "bogus": None}
REPORTS: dict[str, Any] = {
    FromWorker.ANNOUNCE: Announce,
    FromWorker.BEAT: Beat,
    FromWorker.EVENT: Event,
    FromWorker.LEAVE: Leave,
    "bogus": None,
}


class Attack:
    """Sends frames where they hurt. What is a valid order or announcement is spared: that is authority, not garbage."""

    def __init__(self, bus: Bus, fuzzer: Fuzzer) -> None:
        self.bus = bus
        self.fuzzer = fuzzer
        self.expected = Expected()
        self.sent = 0
        self.statuses = 0

    async def fire(self) -> None:
        data = self.fuzzer.frame()
        aim = (self._log, self._set, self._put, self._alive, self._status, self._order, self._hello, self._report)
        await aim[self.sent % len(aim)](data)
        self.sent += 1

    async def _log(self, data: bytes) -> None:
        """Understood entries go to sessions of their own: one for a session that never was makes the scheduler purge it."""
        understood = valid(data, LogEntry) is not None
        session = f"fuzz-{self.sent}" if understood else "fuzz"
        await self.bus.publish(subjects.log(TENANT, SessionId(session)), data)
        self.expected.scheduler += not understood
        if self.sent % 5 == 0:
            await self.bus.publish("myna.$ten%ant.s@.log", data)
            self.expected.scheduler += 1

    async def _set(self, data: bytes) -> None:
        try:
            await self.bus.append(subjects.write(TENANT, SessionId("fuzz-set"), VarId(f"v{self.sent % 50}")), data)
        except AlreadyAssigned:
            return

    async def _put(self, data: bytes) -> None:
        await self.bus.publish(subjects.write_chunk(TENANT, SessionId("fuzz-set"), VarId("v"), self.sent), data)

    async def _alive(self, data: bytes) -> None:
        await self.bus.publish(subjects.alive(TENANT, SessionId("fuzz")), data)
        if self.sent % 3 == 0:
            await self.bus.publish("myna.a|b.c.alive", data)
            self.expected.scheduler += 1

    async def _status(self, data: bytes) -> None:
        self.statuses += 1
        if valid(data, StatusRequest) is None:
            await self.bus.publish(subjects.STATUS, data, reply="_INBOX.nobody")
            self.expected.scheduler += 1
            return
        answer = await self.bus.request(subjects.STATUS, data)
        assert isinstance(codec.decode(answer.data, Status), Status)

    async def _order(self, data: bytes) -> None:
        leaf = self.fuzzer.random.choice(list(ORDERS))
        kind = ORDERS[leaf]
        if kind is not None and valid(data, kind) is not None:
            return
        await self.bus.publish(f"myna-worker.w.{leaf}", data)
        self.expected.worker += 1

    async def _hello(self, data: bytes) -> None:
        if valid(data, Hello) is None:
            await self.bus.publish(subjects.HELLO, data)
            self.expected.worker += 1

    async def _report(self, data: bytes) -> None:
        leaf = self.fuzzer.random.choice(list(REPORTS))
        kind = REPORTS[leaf]
        message = None if kind is None else valid(data, kind)
        if isinstance(message, Announce):
            return
        worker = self.fuzzer.random.choice(["w", "ghost"]) if message is None else message.worker
        await self.bus.publish(f"myna-workers.{worker}.{leaf}", data)
        self.expected.scheduler += message is None


def application(part: int) -> Iterator[Any]:
    """A part of the healthy application: a short chain and what fans out of it."""
    yield call(f"p{part}-0")
    for i in range(1, 5):
        yield call(f"p{part}-{i}", f"p{part}-{i - 1}")
    for i in range(5):
        yield call(f"p{part}-f{i}", f"p{part}-4")
    yield call(f"p{part}-end", *(f"p{part}-f{i}" for i in range(5)))


async def test_garbage_on_every_subject_is_answered_or_counted_and_stops_nobody(nats: NatsNetwork) -> None:
    with capture_logs() as logs:
        await attack_an_application(nats, seed=20240917)
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")]


async def attack_an_application(nats: NatsNetwork, seed: int) -> None:
    async with stage(nats.bus) as play:
        scheduler, worker = await play.scheduler(), await play.worker("w")
        app = Application(await play.bus("app"), "healthy")
        await app.open()
        attack = Attack(await play.bus("attacker"), Fuzzer(seed))
        parts = 6
        for part in range(parts):
            await app.submit(*application(part))
            for _ in range(FRAMES // parts):
                await attack.fire()
        for part in range(parts):
            assert await app.text(f"p{part}-end") == words(f"p{part}-end")
        expected = attack.expected
        await until(lambda: scheduler.rejected >= expected.scheduler, "what the scheduler was sent")
        await until(lambda: worker.rejected >= expected.worker, "what the worker was sent")
        assert (scheduler.rejected, worker.rejected) == (expected.scheduler, expected.worker)
        assert attack.sent >= FRAMES - parts
        assert min(expected.scheduler, expected.worker, attack.statuses) > 300, "the attack hit"
        assert not any(task.done() for task in play._tasks.values()), "nobody stopped"
        scheduler._core.check()
        worker._core.check()
        assert worker._core.lease == scheduler._core.lease
        await app.submit(call("after", "p0-end"))
        assert await app.text("after") == words("after")


async def test_a_restarted_scheduler_reads_past_the_garbage_in_its_streams(nats: NatsNetwork) -> None:
    async with stage(nats.bus) as play:
        await play.scheduler()
        await play.worker("w")
        app = Application(await play.bus("app"), "healthy")
        await app.open()
        await app.submit(call("a"))
        bus, fuzzer = await play.bus("attacker"), Fuzzer(7)
        assert isinstance(bus, NatsBus)
        for i in range(200):
            await bus.publish(subjects.log(TENANT, SessionId("healthy")), b"\xc1" + fuzzer.frame())
            await bus.publish(subjects.write(TENANT, SessionId("healthy"), VarId(f"garbage{i}")), fuzzer.frame())
        await app.submit(call("b", "a"))
        assert await app.text("b") == words("b")
        await play.crash("scheduler")
        await app.submit(call("c", "b"))
        again = await play.scheduler()
        assert await app.text("c") == words("c")
        assert again.rejected >= 200


async def test_a_touch_of_an_unknown_session_and_a_frame_without_a_body_change_nothing(nats: NatsNetwork) -> None:
    async with stage(nats.bus) as play:
        scheduler = await play.scheduler()
        bus = await play.bus("app")
        await bus.publish(subjects.alive(TENANT, SessionId("nobody")), codec.encode(Alive()))
        await bus.publish(subjects.from_worker(WorkerId("nobody"), FromWorker.BEAT), b"")
        await until(lambda: scheduler.rejected == 1, "the empty frame")
        assert (await play.status()).sessions == ()
