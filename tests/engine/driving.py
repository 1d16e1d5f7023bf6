"""Drive an engine to the end of its work and sort what it said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from myna.engine.engine import Engine
from myna.engine.request import Delta, Done, Event, Failed, Fill, Finished, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams

Key = tuple[str, int]


@dataclass
class Said:
    tokens: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(list))
    text: dict[Key, str] = field(default_factory=lambda: defaultdict(str))
    finished: dict[Key, Finished] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    deltas: list[Delta] = field(default_factory=list)

    def hear(self, events: Iterable[Event]) -> None:
        for event in events:
            assert event.request_id not in self.done, "an event follows the last one"
            assert event.request_id not in self.failed, "an event follows the last one"
            match event:
                case Delta():
                    self.deltas.append(event)
                    self.tokens[event.request_id, event.output] += event.token_ids
                    self.text[event.request_id, event.output] += event.text
                case Finished():
                    self.finished[event.request_id, event.output] = event
                case Done():
                    self.done.append(event.request_id)
                case Failed():
                    self.failed[event.request_id] = event.error


def drain(engine: Engine, said: Said | None = None, *, most: int = 5000) -> Said:
    said = said or Said()
    for _ in range(most):
        if not engine.has_work:
            engine.check()
            return said
        said.hear(engine.step())
    raise AssertionError("the engine makes no progress")


def ask(name: str, prompt: Iterable[int], sampling: SamplingParams, **more: object) -> Request:
    return Request(RequestId(name), (Fill(tuple(prompt)), Generate(0, sampling)), **more)  # type: ignore[arg-type]


def greedy(tokens: int, **more: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, **more)  # type: ignore[arg-type]
