"""The workloads as applications, written once with the SDK. Who runs them, and whether it waits between calls, is the arm's.

Every size is a number of tokens and a parameter. Outputs have fixed lengths: they are drawn greedily, past any end of text.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import myna
from myna.sdk.examples._callers import Application, Calls, Result
from myna.sdk.format import verbatim
from myna.sdk.function import Function
from tests.benchmarks.experiment.words import Words

TASK = 40
"""Tokens of an instruction that says no more than what is to be done."""


def _role(name: str) -> Function:
    """A function of its own name, for schedulers learn by it: an instruction, what it is about, and the answer."""

    def declared(head: Any, body: myna.Input(joiner=""), answer: myna.Output()) -> None:  # type: ignore[valid-type]
        """{{head}}{{body}}{{answer}}"""

    return myna.function(name=name, formatter=verbatim)(declared)


def _output(tokens: int) -> myna.Output:
    return myna.Output(max_tokens=tokens, ignore_eos=True, temperature=0.0)


def _ask(calls: Calls, label: str, role: Function, head: str, body: Sequence[Result], tokens: int) -> Result:
    return calls.call(label, role, head=head, body=list(body), answer=_output(tokens))


REFINE, MAP, REDUCE, HELP, CHAT = (_role(name) for name in ("refine", "map", "reduce", "help", "chat"))
ARCHITECT, CODE, REVIEW, REVISE = (_role(name) for name in ("architect", "code", "review", "revise"))
ACT, THINK, SCORE, TRY, JUDGE = (_role(name) for name in ("act", "think", "score", "try", "judge"))
WRITE, READ = (_role(name) for name in ("write", "read"))


@dataclass(frozen=True)
class Chain:
    """A document summarised piece by piece, each summary going into the next."""

    pieces: int
    piece: int = 1024
    output: int = 50

    def __str__(self) -> str:
        return f"{self.pieces} pieces of {self.piece}, output {self.output}"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            head, before = words.text("refine", TASK), words.text("before", self.output)
            for n in range(self.pieces):
                part = words.text(f"piece {n}", self.piece)
                before = _ask(calls, f"piece {n + 1}", REFINE, head, [part, before], self.output)
            return [before]

        return run


@dataclass(frozen=True)
class MapReduce:
    """A document summarised in pieces side by side, and then in one."""

    pieces: int
    piece: int = 1024
    output: int = 50

    def __str__(self) -> str:
        return f"{self.pieces} pieces of {self.piece}, output {self.output}"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            head, end = words.text("map", TASK), words.text("reduce", TASK)
            parts = [words.text(f"piece {n}", self.piece) for n in range(self.pieces)]
            mapped = [_ask(calls, f"map {n}", MAP, head, [part], self.output) for n, part in enumerate(parts, 1)]
            return [_ask(calls, "reduce", REDUCE, end, mapped, self.output)]

        return run


@dataclass(frozen=True)
class Copilot:
    """Many users' questions at once under one very long prompt."""

    users: int
    shared: int = 5107
    question: int = TASK
    outputs: tuple[int, int] = (183, 800)

    def __str__(self) -> str:
        return f"{self.users} requests, {self.shared} shared, outputs {self.outputs[0]}-{self.outputs[1]}"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            head, draw = words.text("copilot", self.shared), random.Random(f"copilot {self.users}")
            lengths = [draw.randint(*self.outputs) for _ in range(self.users)]
            return [
                _ask(calls, f"user {n}", HELP, head, [words.text(f"question {n}", self.question)], length)
                for n, length in enumerate(lengths, 1)
            ]

        return run


@dataclass(frozen=True)
class Team:
    """A software team: an architect, a coder for each file, then rounds of review and revision that see all the code."""

    files: int
    rounds: int = 3
    task: int = 150
    head: int = 300
    plan: int = 300
    code: int = 400
    review: int = 100

    def __str__(self) -> str:
        return f"{self.files} files of {self.code}, {self.rounds} rounds"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            task = words.text("task", self.task)
            heads = {role: words.text(role.name, self.head) for role in (ARCHITECT, CODE, REVIEW, REVISE)}
            names = [words.text(f"file {n}", 8) for n in range(self.files)]
            plan = _ask(calls, "plan", ARCHITECT, heads[ARCHITECT], [task], self.plan)
            code = [
                _ask(calls, f"code {n}", CODE, heads[CODE], [task, plan, name], self.code)
                for n, name in enumerate(names, 1)
            ]
            for turn in range(1, self.rounds + 1):
                seen = [task, plan, *code]
                reviews = [
                    _ask(calls, f"review {turn}.{n}", REVIEW, heads[REVIEW], [*seen, name], self.review)
                    for n, name in enumerate(names, 1)
                ]
                code = [
                    _ask(calls, f"revise {turn}.{n}", REVISE, heads[REVISE], [*seen, name, review], self.code)
                    for n, (name, review) in enumerate(zip(names, reviews, strict=True), 1)
                ]
            return code

        return run


@dataclass(frozen=True)
class Chat:
    """One question and its answer."""

    prompt: int
    output: int

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            return [_ask(calls, "chat", CHAT, words.text("chat", self.prompt), [], self.output)]

        return run


@myna.agent(name="experiment_tool", concurrency=256)
async def tool(action: str, seconds: float, text: str) -> str:
    """A tool that an agent waits for: it takes `seconds`, and gives `text`."""
    await asyncio.sleep(seconds)
    return text


@dataclass(frozen=True)
class CodingAgent:
    """An agent that acts on a long context, waits for a tool, reads its result, and acts again."""

    turns: int
    context: int
    action: int = 40
    result: int = 200
    pause: float = 2.0

    def __str__(self) -> str:
        turn = f"{self.action} + {self.result} tokens"
        return f"{self.turns} turns of {turn} on {self.context}, tools of {self.pause:g} s"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            head, draw = words.text("repository", self.context), random.Random(f"{words.seed} pauses")
            done: list[Result] = [words.text("issue", TASK)]
            for turn in range(1, self.turns + 1):
                done.append(_ask(calls, f"act {turn}", ACT, head, done, self.action))
                if turn < self.turns:
                    seconds, text = draw.uniform(0.5, 1.5) * self.pause, words.text(f"result {turn}", self.result)
                    done.append(calls.call(f"tool {turn}", tool, action=done[-1], seconds=seconds, text=text))
            return done[-1:]

        return run


@myna.agent(name="experiment_best", concurrency=256)
def best(thoughts: list[str], scores: list[str], place: int) -> str:
    """The thought whose score is in the given place."""
    order = sorted(range(len(scores)), key=lambda n: (scores[n], n))
    return thoughts[order[place]]


@dataclass(frozen=True)
class Thoughts:
    """Tree-of-thought search: each thought is continued in several ways, these are scored, and all but the best are pruned."""

    depth: int
    branches: int
    kept: int
    shared: int = 1000
    thought: int = 60
    score: int = 4

    def __str__(self) -> str:
        return f"depth {self.depth}, {self.branches} branches, {self.kept} kept, {self.shared} shared"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            head, marks = words.text("problem", self.shared), [words.text(f"way {n}", 6) for n in range(self.branches)]
            ask = words.text("score", 20)
            paths: list[list[Result]] = [[]]
            for level in range(1, self.depth + 1):
                steps = [[*path, mark] for path in paths for mark in marks]
                thoughts = [_ask(calls, f"think {level}", THINK, head, step, self.thought) for step in steps]
                scores = [
                    _ask(calls, f"score {level}", SCORE, head, [*step, thought, ask], self.score)
                    for step, thought in zip(steps, thoughts, strict=True)
                ]
                found = [
                    calls.call(f"best {level}", best, thoughts=thoughts, scores=scores, place=n)
                    for n in range(self.kept)
                ]
                paths = [[one] for one in found]
            return [path[-1] for path in paths]

        return run


@dataclass(frozen=True)
class BestOf:
    """Several answers to one long prompt, and a judge who reads it and all of them."""

    answers: int
    shared: int = 6000
    answer: int = 200
    verdict: int = 30

    def __str__(self) -> str:
        return f"{self.answers} answers of {self.answer}, {self.shared} shared"

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            head = words.text("prompt", self.shared)
            tries = [
                _ask(calls, f"try {n}", TRY, head, [words.text(f"try {n}", 10)], self.answer)
                for n in range(1, self.answers + 1)
            ]
            return [_ask(calls, "judge", JUDGE, head, [words.text("judge", TASK), *tries], self.verdict)]

        return run


@dataclass(frozen=True)
class Handed:
    """A text is written, and another call reads it and answers briefly."""

    tokens: int
    answer: int = 4

    def application(self, words: Words) -> Application:
        """See the class."""

        def run(calls: Calls) -> Sequence[Result]:
            written = _ask(calls, "write", WRITE, words.text("write", TASK), [], self.tokens)
            return [_ask(calls, "read", READ, words.text("read", TASK), [written], self.answer)]

        return run
