"""A worker's core at a desk: told what happens, and asked what it commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from myna.actors.messages import (
    Argument,
    Call,
    Chunk,
    Drain,
    Event,
    EventKind,
    FinishReason,
    Hello,
    Input,
    NativeCall,
    Outcome,
    Run,
    Stop,
    StreamMode,
    Transform,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.worker.backend import OutputEnded, Produced, RunKey
from myna.actors.worker.core import WorkerCore
from myna.actors.worker.events import Asked, Read, Refused, Reported, Stored, Tell, WorkerCommand, WorkerEvent

C = TypeVar("C")
LEASE = 7


def run_of(spec: Call, attempt: int = 1, *, lease: int = LEASE, resume: bool = False) -> Run:
    return Run(tenant="t", session="s", call=spec, attempt=attempt, lease=lease, resume=resume)


@dataclass
class Desk:
    """A core, what it commanded, and shorthand for what happens to it."""

    core: WorkerCore = field(default_factory=lambda: WorkerCore(WorkerId("w"), resumable=True))
    now: float = 1000.0
    out: list[WorkerCommand] = field(default_factory=list)
    key: RunKey = ("t", "s", "call-a", 1)  # type: ignore[assignment]

    def feed(self, event: WorkerEvent) -> list[WorkerCommand]:
        commands = self.core.handle(event)
        self.core.check()
        self.out += commands
        return commands

    def ask(self, message: Run | Stop | Drain | Hello) -> list[WorkerCommand]:
        return self.feed(Asked(message, self.now))

    def read(
        self,
        chunks: dict[str, list[Chunk]] | None = None,
        outcomes: dict[str, Outcome] | None = None,
        inputs: dict[str, Value] | None = None,
    ) -> list[WorkerCommand]:
        named = {VarId(v): tuple(c) for v, c in (chunks or {}).items()}
        already = {VarId(v): o for v, o in (outcomes or {}).items()}
        values = {VarId(v): i for v, i in (inputs or {}).items()}
        return self.feed(Read(self.key, values, named, already, None, self.now))

    def start(self, spec: Call, **options: Any) -> None:
        self.key = ("t", "s", spec.id, 1)  # type: ignore[assignment]
        self.ask(run_of(spec, **options))
        self.read()
        self.out.clear()

    def produce(self, text: str, *tokens: int, variable: str = "a") -> list[WorkerCommand]:
        return self.feed(Reported(Produced(self.key, VarId(variable), text, tokens), self.now))

    def end(self, variable: str = "a", **details: Any) -> list[WorkerCommand]:
        return self.feed(Reported(OutputEnded(self.key, VarId(variable), FinishReason.STOP, **details), self.now))

    def stored(self, n: int | None, variable: str = "a") -> list[WorkerCommand]:
        return self.feed(Stored(self.key, VarId(variable), n, self.now))

    def refused(self, n: int | None, variable: str = "a") -> list[WorkerCommand]:
        return self.feed(Refused(self.key, VarId(variable), n, self.now))

    def told(self) -> list[EventKind]:
        return [c.event.kind for c in self.out if isinstance(c, Tell)]

    def event(self) -> Event:
        return of(Tell, self.out)[-1].event


def of(kind: type[C], commands: list[WorkerCommand]) -> list[C]:
    return [c for c in commands if isinstance(c, kind)]


def chunk(text: str, *tokens: int, attempt: int = 0, last: bool = False) -> Chunk:
    return Chunk(attempt=attempt, text=text, tokens=tokens, last=last)


def native(stream: StreamMode = StreamMode.LIVE, *transforms: Transform) -> NativeCall:
    return NativeCall(
        id="n",
        function="f",
        variable="a",
        arguments=(Argument(name="q", input=Input(variables=("x",))),),
        stream=stream,
        transforms=transforms,
    )
