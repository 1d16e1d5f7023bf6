"""Bad input, a million frames of it: on every subject that an actor listens to, to the engine process, as templates and settings.

    python -m tests.benchmarks.fuzz [--frames 1000000] [--seed N] [--quick] [--json FILE]

Frames are noise, valid ones bent by some bytes, and valid data with a part replaced by something hostile. Real schedulers,
workers and SDK readers take them in on the bus in memory, while an application runs; every one must be understood or counted,
none may stop an actor, raise anything but what was promised, or make a log show what a message holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from structlog.testing import capture_logs

from myna.actors import codec, subjects
from myna.actors.messages import AnyMessage, Chunk, SessionId, Submit, Value, VarId
from myna.engine import frames as engine_frames
from myna.engine.errors import InvalidSampling
from myna.engine.sampling import SamplingParams
from myna.sdk import template
from myna.sdk.client import Client
from myna.sdk.errors import TemplateError
from tests.actors.stage import TENANT, Application, call, stage, until, words
from tests.actors.test_fuzz import ATOMS, Attack, Fuzzer, application
from tests.benchmarks.reporting import Row, show, write
from tests.network import MemoryNetwork

ROUND = 20_000
"""Frames that one cast of actors gets."""
SECRET = "SECRET-b7e151628aed"
"""In many frames, and in no log."""

_SECRETS = [
    codec.encode(Value(text=SECRET, json={"a": SECRET}, call="c")),
    codec.encode(Chunk(attempt=1, text=SECRET, tokens=(1, 2))),
    codec.encode(Submit(calls=(call(SECRET, "x"),))),
]


class Spy(Fuzzer):
    """A fuzzer whose frames often hold a secret."""

    def frame(self) -> bytes:
        if self.random.random() < 0.8:
            return super().frame()
        data = bytearray(self.random.choice(_SECRETS))
        data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)


class WiderAttack(Attack):
    """Also on what readers and agents' schedulers listen to."""

    def __init__(self, bus: Any, fuzzer: Fuzzer, session: str, variable: str) -> None:
        super().__init__(bus, fuzzer)
        self._session, self._variable = SessionId(session), VarId(variable)

    async def fire(self) -> None:
        aim = self.fuzzer.random.random()
        if aim < 0.1:
            n = self.fuzzer.random.randrange(50)
            await self.bus.publish(subjects.read_chunk(TENANT, self._session, self._variable, n), self.fuzzer.frame())
            self.sent += 1
        elif aim < 0.15:
            other = VarId(f"v{self.fuzzer.random.randrange(20)}")
            await self.bus.publish(subjects.read(TENANT, self._session, other), self.fuzzer.frame())
            self.sent += 1
        else:
            await super().fire()


async def bus_round(frames: int, seed: int) -> Counter[str]:
    """One cast, so many frames, and an application that must not notice."""
    found: Counter[str] = Counter()
    network = MemoryNetwork()
    with capture_logs() as logs:
        async with stage(network.bus) as play:
            scheduler, worker = await play.scheduler(), await play.worker("w")
            app = Application(await play.bus("app"), "healthy")
            await app.open()
            client = await Client(bus=await play.bus("reader")).open()
            async with client.session() as session:
                awaited = session.variable("awaited")
                reading = asyncio.ensure_future(_stream(awaited))
                attack = WiderAttack(await play.bus("attacker"), Spy(seed), session.id, awaited.id)
                for part in range(4):
                    await app.submit(*application(part))
                    for _ in range(frames // 4):
                        await attack.fire()
                    assert await app.text(f"p{part}-end") == words(f"p{part}-end")
                expected = attack.expected
                await until(lambda: scheduler.rejected >= expected.scheduler, "what the scheduler was sent")
                await until(lambda: worker.rejected >= expected.worker, "what the worker was sent")
                assert not any(task.done() for task in play._tasks.values()), "an actor stopped"
                scheduler._core.check()
                worker._core.check()
                await awaited.set("all is well")
                await reading
                found["bus"] = attack.sent
                found["rejected"] = scheduler.rejected + worker.rejected
    found["errors"] = sum(entry["log_level"] in ("error", "critical") for entry in logs)
    found["leaks"] = sum(SECRET in repr(entry) for entry in logs)
    return found


async def _stream(variable: Any) -> None:
    """A reader of a token stream that others write garbage into: it ends, in whatever way was promised."""
    try:
        async for _ in variable.stream():
            pass
    except Exception as error:
        if type(error).__name__ not in ("StreamBroken", "CallFailed"):
            raise


def borders(frames: int, seed: int) -> Counter[str]:
    """The decoders, templates and settings, which raise what they promise, and nothing else."""
    fuzzer, found = Spy(seed), Counter[str]()
    doors: tuple[tuple[str, Callable[[], None]], ...] = (
        ("messages", lambda: _try(lambda: codec.decode(fuzzer.frame(), AnyMessage), codec.WireError)),
        ("engine", lambda: _try(lambda: engine_frames.decode_command(fuzzer.frame()), engine_frames.FrameError)),
        ("templates", lambda: _try(lambda: template.parse(_prompt(fuzzer)), TemplateError)),
        ("sampling", lambda: _try(lambda: SamplingParams(**_settings(fuzzer)), InvalidSampling)),
    )
    for n in range(frames):
        name, door = doors[n % len(doors)]
        door()
        found[name] += 1
    return found


def _try(work: Callable[[], object], promised: type[Exception]) -> None:
    try:
        work()
    except promised as error:
        str(error)


_TOKENS = (
    "{{",
    "}}",
    "{{{{",
    "}}}}",
    "{{#user}}",
    "{{/user}}",
    "{{#",
    "{{/",
    "a",
    " ",
    "\n",
    "{{x}}",
    "{",
    "}",
    "\x00",
    "{{\u202e}}",
    SECRET,
)


def _prompt(fuzzer: Fuzzer) -> str:
    return "".join(fuzzer.random.choice(_TOKENS) for _ in range(fuzzer.random.randrange(12)))


_FIELDS = tuple(SamplingParams.__dataclass_fields__)


def _settings(fuzzer: Fuzzer) -> dict[str, Any]:
    chosen = fuzzer.random.sample(_FIELDS, fuzzer.random.randrange(1, 4))
    return {name: fuzzer.random.choice(ATOMS) for name in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    structlog.configure(cache_logger_on_first_use=False)
    frames = 40_000 if arguments.quick else arguments.frames
    began, found = time.monotonic(), Counter[str]()
    for n in range(-(-frames // (2 * ROUND))):
        found += asyncio.run(bus_round(ROUND, arguments.seed * 1000 + n))
        found += borders(ROUND, arguments.seed * 1000 + n)
        print(json.dumps(found), flush=True)
    total = sum(found[name] for name in ("bus", "messages", "engine", "templates", "sampling"))
    rows = [
        Row("fuzz", "frames", "", "higher", total, target=1_000_000),
        Row("fuzz", "errors in logs", "", "lower", found["errors"], target=0),
        Row("fuzz", "secrets in logs", "", "lower", found["leaks"], target=0),
        Row("fuzz", "rejected and counted", "", "higher", found["rejected"]),
        Row("fuzz", "seconds", "s", "lower", time.monotonic() - began),
    ]
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "fuzz", rows)
    sys.exit(int(bool(found["errors"] or found["leaks"])))


if __name__ == "__main__":
    main()
