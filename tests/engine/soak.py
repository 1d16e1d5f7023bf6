"""A long random life of an engine: programs, forks, cancellations, pins and pressure, with nothing allowed to leak.

Greedy outputs are remembered and asked for again at the end, alone and uncached: whatever ran beside them, was preempted or
evicted under them, they have to be the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from myna.engine.context import ContextId
from myna.engine.engine import Engine
from myna.engine.errors import ContextBusy, ContextFreed, RequestCancelled
from myna.engine.request import Fill, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from tests.engine.driving import Said, ask, drain, greedy


@dataclass(frozen=True)
class Habits:
    """Sizes of a soak: `longest` tokens of one piece of a prompt, `output` of an output, `alive` requests at most, `check`
    every so many steps, and how many outputs are asked for again (`again`)."""

    longest: int = 24
    output: int = 24
    alive: int = 24
    check: int = 8
    again: int = 30


@dataclass
class Soak:
    """One soak of one engine."""

    engine: Engine
    seed: int
    habits: Habits = field(default_factory=Habits)
    said: Said = field(default_factory=Said)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._pieces = [self._text(self.habits.longest) for _ in range(5)]
        self._alive: set[RequestId] = set()
        self._contexts: list[ContextId] = []
        self._pins: list[RequestId] = []
        self._greedy: dict[str, tuple[int, ...]] = {}
        self._named = 0

    def live(self, steps: int) -> None:
        """So many steps of life."""
        actions = [self._submit] * 5 + [self._cancel, self._open, self._fork, self._fill, self._generate, self._free]
        actions += [self._retain, self._unpin]
        for step in range(steps):
            if len(self._alive) < self.habits.alive:
                action = self._random.choice(actions)
                action()
            self._hear()
            if step % self.habits.check == 0:
                self.engine.check()

    def end(self) -> None:
        """Let everything go: nothing may be left, and what was said has to be said again. Raises AssertionError."""
        drain(self.engine, self.said)
        for context in self._contexts:
            self.engine.free(context)
        for pin in self._pins:
            self.engine.unpin(pin)
        drain(self.engine, self.said)
        engine = self.engine
        assert not list(engine.contexts), "a context outlived its owner"
        assert engine.pool.free + engine.tree.evictable_pages == engine.pool.pages, "a page leaked"
        strange = [
            error for error in self.said.failed.values() if not isinstance(error, RequestCancelled | ContextFreed)
        ]
        assert not strange, strange
        self._ask_again()

    def _ask_again(self) -> None:
        whole = [name for name in self._greedy if (name, 0) in self.said.finished]
        for name in self._random.sample(whole, min(self.habits.again, len(whole))):
            before = self.said.tokens[name, 0]
            prompt = self._greedy[name]
            self.engine.submit(ask(f"again {name}", prompt, greedy(len(before), ignore_eos=True), cache_prefix=False))
            again = drain(self.engine)
            assert again.tokens[f"again {name}", 0] == before, f"{name} said something else among others"
            self._count("asked again")

    def _hear(self) -> None:
        events = self.engine.step()
        self.said.hear(events)
        for event in events:
            if not self.engine.knows(event.request_id):
                self._alive.discard(event.request_id)

    def _submit(self) -> None:
        name = self._name("r")
        prompt = self._prompt()
        plain = self._random.random() < 0.5
        if plain:
            self._greedy[name] = prompt
        sampling = greedy(self._output(), ignore_eos=True) if plain else self._sampling()
        steps: list[Fill | Generate] = [Fill(prompt), Generate(0, sampling)]
        if sampling.n == 1 and self._random.random() < 0.3:
            steps += [Fill(self._text(5)), Generate(1, self._sampling())]
        request = Request(
            name, tuple(steps), priority=self._random.choice([0, 0, 0, 1]),
            namespace=self._random.choice(["", "", "other"]), cache_prefix=self._random.random() < 0.9,
        )  # fmt: skip
        self.engine.submit(request)
        self._alive.add(name)

    def _cancel(self) -> None:
        if self._alive:
            name = self._random.choice(sorted(self._alive))
            self.engine.cancel(name)
            self._greedy.pop(name, None)
            self._count("cancelled")

    def _open(self) -> None:
        if len(self._contexts) < 6:
            self._contexts.append(self.engine.open_context(namespace=self._random.choice(["", "other"])))

    def _fork(self) -> None:
        if self._contexts and len(self._contexts) < 6:
            try:
                self._contexts.append(self.engine.fork(self._random.choice(self._contexts)))
            except ContextBusy:
                return
            self._count("forked")

    def _fill(self) -> None:
        if self._contexts:
            self._alive.add(self.engine.fill(self._random.choice(self._contexts), self._text(self.habits.longest)))

    def _generate(self) -> None:
        if self._contexts:
            context = self._random.choice(self._contexts)
            if self.engine.contexts.get(context).tokens:
                self._alive.add(self.engine.generate(context, self._sampling()))

    def _free(self) -> None:
        if self._contexts:
            self.engine.free(self._contexts.pop(self._random.randrange(len(self._contexts))))

    def _retain(self) -> None:
        name = self._name("pin")
        self.engine.retain(name, self._random.choice(self._pieces))
        self._alive.add(name)
        self._pins.append(name)

    def _unpin(self) -> None:
        if self._pins:
            self.engine.unpin(self._pins.pop(self._random.randrange(len(self._pins))))

    def _sampling(self) -> SamplingParams:
        draw = self._random
        options: dict[str, object] = {"max_tokens": self._output(), "seed": draw.choice([None, draw.randrange(1000)])}
        options |= draw.choice(
            [
                {"temperature": 0.0},
                {"temperature": 1.0, "n": draw.randint(1, 3)},
                {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
                {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
                {"temperature": 1.0, "min_p": 0.05, "logprobs": 3},
                {"temperature": 1.0, "stop_token_ids": tuple(self._text(8))},
            ]
        )
        return SamplingParams(**options)  # type: ignore[arg-type]

    def _prompt(self) -> tuple[int, ...]:
        """Pieces that others begin with too, and a tail of its own."""
        shared = [token for _ in range(self._random.randint(0, 3)) for token in self._random.choice(self._pieces)]
        return (*shared, *self._text(self._length()))

    def _text(self, tokens: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(3, self.engine.spec.vocab_size) for _ in range(tokens))

    def _length(self) -> int:
        return self._random.randint(1, self.habits.longest)

    def _output(self) -> int:
        return self._random.randint(1, self.habits.output)

    def _name(self, kind: str) -> RequestId:
        self._named += 1
        return RequestId(f"{kind}{self._named}")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def assert_lively(soak: Soak, what: Sequence[str] = ("cancelled", "forked", "asked again")) -> None:
    """A soak in which nothing happened proves nothing."""
    stats = soak.engine.stats()
    assert all(soak.counts.get(each, 0) > 0 for each in what), soak.counts
    assert min(stats.preemptions, stats.hit_tokens, stats.evicted_tokens) > 0, stats
