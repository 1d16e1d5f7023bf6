"""One schedule: an application of some calls, faults at random moments, and what must hold in the end, all from one seed.

What must hold: every variable that somebody waits for ends, once, in the value that the stream has; the value is made of the
values that its inputs have; what a reader streams is the value; the chunks joined are the value; closed sessions leave nothing
behind; no actor's core has failed or contradicts itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import structlog

from myna import Output
from myna.actors import subjects
from myna.actors.bus import Unavailable
from myna.actors.messages import Failure, StreamMode, Value
from myna.sdk import ids
from myna.sdk.client import Client
from myna.sdk.errors import CallFailed, StreamBroken
from myna.sdk.session import Session
from myna.sdk.variable import Variable
from tests.faults.cast import MODEL, Role, Stage, digest, step
from tests.faults.network import Weather
from tests.faults.simulation import Process, Stuck

FAULTY = 12.0
"""Seconds of a schedule in which things fail, at most."""
PATIENCE = 150.0
"""Seconds that everything may take to end well, once nothing fails any more."""


@dataclass
class Made:
    """A variable of an application: the variables that went into it, and what its readers got."""

    inputs: list[str]
    tokens: int
    mode: StreamMode
    read: list[str] = field(default_factory=list)
    failed: Failure | None = None
    by_hand: str | None = None
    """What the application itself gave it."""


@dataclass
class Application:
    """One session's variables, in the order of their making."""

    session: str = ""
    made: dict[str, Made] = field(default_factory=dict)
    pieces: dict[str, list[str]] = field(default_factory=dict)
    finished: bool = False


@dataclass
class Report:
    """How a schedule went. `trace` is a digest of all that the streams took and when: the same seed gives the same."""

    seed: int
    problems: list[str]
    script: list[str]
    trace: str
    seconds: float
    runs: int = 0


# --- the application --------------------------------------------------------------------------------------------------


async def apply(app: Application, session: Session, chance: random.Random) -> None:
    """Submit calls, each over some of those before it, and read every result in one way or another."""
    variables: list[Variable] = []
    readers: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as tasks:
        for n in range(chance.randint(1, 7)):
            if chance.random() < 0.2:
                variables.append(await _given(app, session, n))
                continue
            inputs = chance.sample(variables, min(len(variables), chance.choice((0, 1, 1, 2, 3))))
            tokens = chance.choice((1, 3, 8, 20))
            mode = StreamMode.BUFFERED if chance.random() < 0.2 else StreamMode.LIVE
            variable: Variable = step(inputs or f"root {n}", word=_output(tokens, mode), session=session)
            variables.append(variable)
            app.made[variable.id] = Made([v.id for v in inputs], tokens, mode)
            readers.append(tasks.create_task(_read(app, variable, streamed=chance.random() < 0.5)))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random())


async def _given(app: Application, session: Session, n: int) -> Variable:
    """A variable set by hand, and read back."""
    variable = session.variable()
    made = app.made[variable.id] = Made([], 0, StreamMode.BUFFERED, by_hand=f"given {n}")
    await variable.set(made.by_hand)
    made.read.append(await variable.get())
    return variable


@cache
def _output(tokens: int, mode: StreamMode) -> Output:
    return Output(max_tokens=tokens, stream=mode)


async def _read(app: Application, variable: Variable, *, streamed: bool) -> None:
    made = app.made[variable.id]
    try:
        text = await _stream(variable) if streamed else None
        if text is None:
            text = await variable.get()
    except CallFailed as error:
        made.failed = error.failure
    else:
        made.read.append(text)


async def _stream(variable: Variable) -> str | None:
    """A variable's text, streamed; None if the stream is torn, as it may be when servers have lost chunks."""
    try:
        return "".join([piece async for piece in variable.stream()])
    except StreamBroken:
        return None


class Play:
    """One schedule from its seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(f"play {seed}")
        self.stage = Stage(seed)
        self.script: list[str] = []
        self.applications: list[Application] = []
        self._roles: list[Role] = []

    def perform(self) -> Report:
        """Everything, to the end."""
        stage, problems = self.stage, []
        with _quiet(self.seed) as logged:
            try:
                self._set_up()
                self._write_script()
                self._run()
                problems += self._verdict()
            except Stuck as stuck:
                problems.append(f"{stuck}; {self._state()}")
            problems += stage.simulation.faults + logged
            problems += self._contradictions()
            stage.simulation.end()
        trace = hashlib.blake2b("\n".join(stage.notes.lines).encode(), digest_size=8).hexdigest()
        return Report(self.seed, problems, self.script, trace, stage.simulation.now - 1000.0)

    # --- set-up ---

    def _set_up(self) -> None:
        chance, stage = self.chance, self.stage
        bad = chance.choice((0.0, 0.0, 0.02, 0.1))
        stage.network.weather = Weather(
            lost=bad * chance.random(),
            doubled=chance.choice((0.0, 0.0, 0.05, 0.3)),
            late=chance.choice((0.0, 0.05, 0.3)),
            lateness=chance.choice((0.05, 0.5, 2.0)),
            behind=chance.choice((0.0, 0.0, 0.05, 1.0)),
        )
        breaks = chance.choice((0.0, 0.0, 0.01))
        for n in range(chance.choice((1, 1, 2))):
            stage.scheduler(f"scheduler-{n}")
        self.forgetful = chance.random() < 0.15
        """Whether the engines can't go on from where another stopped, as those of other makers can't."""
        for n in range(chance.randint(1, 3)):
            stage.worker(f"worker-{n}", chance.randint(1, 4), breaks, resumable=not self.forgetful)
        for n in range(chance.choice((1, 1, 2))):
            self._application(n)
        if chance.random() < 0.5:
            self._bystander()

    def _application(self, n: int) -> None:
        app = Application()
        self.applications.append(app)
        chance = random.Random(f"application {self.seed} {n}")

        async def main(role: Role, process: Process) -> None:
            client = Client(bus=role.bus, tenant="default")
            role.bus.on_reconnect = client.reconnected
            try:
                async with client.session(lazy=chance.random() < 0.2, ttl=30.0) as session:
                    app.session = session.id
                    await apply(app, session, chance)
            except Unavailable:
                if app.session:
                    raise
                # It could not even begin in its time, was told so, and nothing of it exists.
            finally:
                app.finished = True

        self._roles.append(Role(self.stage, f"application-{n}", main, again=False))

    def _bystander(self) -> None:
        """Somebody in another process who reads the first application's variables, late."""
        app = self.applications[0]

        async def main(role: Role, process: Process) -> None:
            client = Client(bus=role.bus, tenant="default")
            role.bus.on_reconnect = client.reconnected
            while not app.made:  # processes share no events
                if app.finished:
                    return
                await asyncio.sleep(0.5)
            async with client.attach(app.session) as session:
                for name in list(app.made):
                    await self._look(app, session.lookup(name))

        self._roles.append(Role(self.stage, "bystander", main, again=False))

    async def _look(self, app: Application, variable: Variable) -> None:
        try:
            pieces = [piece async for piece in variable.stream()]
        except Exception as error:  # the session may be closed before it came to that
            if type(error).__name__ not in ("SessionClosed", "StreamBroken", "Cancelled", "CallFailed"):
                raise
            return
        app.made[variable.id].read.append("".join(pieces))

    # --- faults ---

    def _write_script(self) -> None:
        chance = self.chance
        for _ in range(chance.choice((0, 1, 2, 4, 8))):
            at = chance.random() * FAULTY
            targets = (self.stage.workers, self.stage.workers, self.stage.schedulers, self._roles)
            role = chance.choice(chance.choice(targets))
            self._write(at, role, chance.choice((0.1, 1.0, 4.0, 8.0)) * (0.5 + chance.random()))

    def _write(self, at: float, role: Role, seconds: float) -> None:
        chance, network = self.chance, self.stage.network
        client = role in self._roles
        kinds = ["cut", "freeze", "pause", "leap", "servers", "lag"]
        kinds += ["kill"] if client else ["kill", "kill", "kill"]
        if role in self.stage.workers:
            kinds += ["drain"]
        kind = chance.choice(kinds)
        lagging = chance.choice(subjects.STREAMS).name
        amnesia = chance.random() < 0.2

        def happen() -> None:
            if self.stage.healthy:
                return
            match kind:
                case "cut" | "freeze":
                    role.bus.cut(seconds, noticed=kind == "cut")
                case "pause":
                    role.pause(seconds)
                case "leap":
                    role.leap(seconds)
                case "kill":
                    role.kill(None if client else min(seconds, 3.0))
                case "drain":
                    if role.actor is not None and role.process.alive and role.actor.ready.is_set():
                        role.process.loop.call_soon(role.actor.drain)
                case "servers":
                    network.crash(min(seconds, 6.0), amnesia=amnesia)
                case "lag":
                    network.lagging[lagging] = self.stage.simulation.now + seconds

        what = f"{at:6.2f} {kind} {role.name if kind not in ('servers', 'lag') else ''} for {seconds:.1f} s"
        self.script.append(what)
        self.stage.simulation.after(at, happen)

    def _run(self) -> None:
        simulation = self.stage.simulation
        simulation.after(FAULTY, self.stage.heal)
        simulation.run(self._finished, FAULTY + PATIENCE)
        self.stage.heal()
        simulation.run(self._swept, 90.0)

    def _finished(self) -> bool:
        owner, *others = self._roles
        if (
            not owner.process.alive
        ):  # what it never submitted nobody will compute, and a bystander holds the session open
            for role in others:
                if role.name == "bystander":
                    role.kill(None)
        return all(role.process.ended or not role.process.alive for role in self._roles)

    def _swept(self) -> bool:
        """Whether nothing is stored of any session."""
        broker = self.stage.network.broker
        return all(
            not broker._streams[s.name].messages for s in (subjects.LOG, subjects.VALUES) if s.name in broker._streams
        )

    # --- the verdict ---

    def _verdict(self) -> list[str]:
        problems: list[str] = []
        for role in self._roles:
            main = role.process.main
            assert main is not None
            error = None if main.cancelled() else main.exception()
            if error is not None and role.process.alive:
                problems.append(f"{role.name} failed: {_flat(error)}")
        for role, app in zip(self._roles, self.applications, strict=False):
            problems += self._judge(app, whole=role.process.alive)
        return problems

    def _judge(self, app: Application, *, whole: bool) -> Iterator[str]:
        """What is wrong with an application's variables; not `whole`: it was killed, and nobody waits for the rest of them."""
        for name, made in app.made.items():
            if not (whole or made.read):
                continue
            if made.failed is not None:
                if not self._may_fail(app, made):
                    yield f"{name} failed: {made.failed}"
                continue
            outcomes = self.stage.notes.outcomes.get((app.session, name), [])
            streamed = self._streamed(app, name)
            if len(outcomes) == 1 and isinstance(outcomes[0], Value):
                text = outcomes[0].text
            else:
                yield f"{name} ended in {outcomes}"
                continue
            if streamed not in (None, text):
                yield f"the chunks of {name} are {streamed!r}, but its value is {text!r}"
            for read in made.read:
                if made.by_hand is None and [int(w.split(":")[0]) for w in read.split()] != list(range(made.tokens)):
                    yield f"a reader of {name} got {read!r}, with repeats or gaps"
                if read != text:
                    yield f"a reader of {name} got {read!r}, but its value is {text!r}"
            yield from self._judge_text(app, name, made, text)

    def _may_fail(self, app: Application, made: Made) -> bool:
        """Whether a failure is what was promised: readers had seen a part of it, or of what it needs, and nobody could go on."""
        assert made.failed is not None
        needs = [made, *(app.made[name] for name in made.inputs)]
        lost = self.stage.network.amnesia is not None and "does not belong together" in made.failed.message
        torn = self.forgetful and any(m.mode is StreamMode.LIVE or (m.failed and m is not made) for m in needs)
        return made.failed.retryable and (lost or torn)

    def _streamed(self, app: Application, name: str) -> str | None:
        """What the chunks of a variable say, if all are there and none was ever written twice."""
        chunks = self.stage.notes.chunks.get((app.session, name), {})
        if self.stage.network.amnesia is not None:
            return None  # some were lost with the servers' memory, and others written in their place
        assert all(len(written) == 1 for written in chunks.values()), "a chunk was accepted twice"
        texts = [chunks[n][0].text for n in sorted(chunks)]
        return "".join(texts) if chunks and chunks[max(chunks)][0].last else None

    def _judge_text(self, app: Application, name: str, made: Made, text: str) -> Iterator[str]:
        if made.by_hand is not None:
            if text != made.by_hand:
                yield f"{name} was set to {made.by_hand!r}, and is {text!r}"
            return
        inputs = [self.stage.notes.outcomes[app.session, i][0] for i in made.inputs]
        expected = digest([i.text for i in inputs if isinstance(i, Value)])
        words = [w.split(":") for w in text.split()]
        if [int(w[0]) for w in words] != list(range(made.tokens)):
            yield f"{name} repeats or leaves out tokens: {text!r}"
        if any(w[2] != expected for w in words):
            yield f"{name} was made of other inputs than the values of {made.inputs}: {text!r}"

    def _contradictions(self) -> Iterator[str]:
        for role in (*self.stage.schedulers, *self.stage.workers):
            core = getattr(role.actor, "_core", None)
            if core is not None and role.process.alive:
                try:
                    core.check()
                except AssertionError as error:
                    yield f"{role.name} contradicts itself: {error}"

    def _state(self) -> str:
        """What waits, for a schedule that does not end."""
        stuck = [role.name for role in self._roles if not role.process.ended]
        streams = {
            name: [m.subject for m in s.messages.values()][:6] for name, s in self.stage.network.broker._streams.items()
        }
        sees = []
        for role in self.stage.schedulers:
            core = getattr(role.actor, "_core", None)
            if core is not None and role.process.alive:
                calls = [
                    (c.id[-6:], str(c.state), c.worker) for s in core.sessions.values() for c in s.graph.calls.values()
                ]
                sees.append((role.name, core.lease, list(core.fleet.workers), calls))
        held = [
            (r.name, r.process.alive, r.actor and [x.call[-6:] for x in r.actor._core.running])
            for r in self.stage.workers
            if hasattr(r.actor, "_core")
        ]
        return f"{stuck} still wait; stored {streams}; schedulers {sees}; workers {held}"


def _flat(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_flat(e) for e in error.exceptions)
    return f"{type(error).__name__}: {error}"


@contextmanager
def _quiet(seed: int) -> Iterator[list[str]]:
    """Ids from the seed; of the logs, only what says that an actor has a defect."""
    bad: list[str] = []
    chance = random.Random(f"ids {seed}")

    def note(logger: Any, method: str, event: dict[str, Any]) -> Any:
        text = f"{event.get('event')} {event.get('what', '')} {event.get('exc_info', '')}"
        if "core failed" in text or "session_failed" in text or "handler" in text:
            bad.append(text)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        with patch.object(ids, "new", lambda name: f"{name}-{chance.getrandbits(48):012x}"):
            yield bad
    finally:
        structlog.configure(**before)


def perform(seed: int) -> Report:
    """One schedule."""
    return Play(seed).perform()


__all__ = ["MODEL", "Play", "Report", "perform"]
