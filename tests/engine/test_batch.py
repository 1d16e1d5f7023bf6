from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from myna.engine.context import ContextId
from myna.engine.engine import Engine
from myna.engine.errors import ContextBusy, PromptTooLong, RequestCancelled
from myna.engine.interface import BatchLimits
from myna.engine.request import Fill, Generate, Request, RequestId, Step
from myna.engine.sampling import SamplingParams
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.hash_model import CONTEXT, EOS, VOCABULARY, HashModel, predict, serve

torch.set_num_threads(1)


def engine(*, pages: int = 32, sequences: int = 4, step: int = 16, page: int = 4, ahead: int = 0) -> Engine:
    return serve(HashModel(ahead=ahead), pages=pages, page=page, limits=BatchLimits(sequences, step))


def expected(prompt: list[int], tokens: int, capacity: int) -> list[int]:
    made: list[int] = []
    while len(made) < tokens:
        token = predict([*prompt, *made], VOCABULARY)
        if token == EOS:
            break
        made.append(token)
        if len(prompt) + len(made) >= capacity:
            break
    return made


def test_decodes_and_chunks_of_prompts_share_steps() -> None:
    machine = engine(step=6)
    machine.submit(ask("first", [1, 2], greedy(20, ignore_eos=True)))
    said = Said()
    said.hear(machine.step())
    machine.submit(ask("second", [3] * 20, greedy(1)))
    before = len(said.tokens["first", 0])
    steps = 0
    while "second" not in said.done:
        said.hear(machine.step())
        steps += 1
    assert steps == 4
    assert len(said.tokens["first", 0]) == before + steps


def test_the_latest_of_the_least_important_gives_way_first() -> None:
    machine = engine(pages=12, step=64)
    for name, priority in (("important", 1), ("early", 0), ("late", 0)):
        machine.submit(ask(name, [5, 6, 7, ord(name[0]) % 16] * 2, greedy(20, ignore_eos=True), priority=priority))
    said = drain(machine)
    assert machine.stats().preemptions > 0
    assert said.done == ["important", "early", "late"]
    for name in said.done:
        prompt = [5, 6, 7, ord(name[0]) % 16] * 2
        made = said.tokens[name, 0]
        assert made == [predict([*prompt, *made[:i]], VOCABULARY) for i in range(20)]


def test_of_the_same_priority_the_order_that_was_given_goes_before_arrival() -> None:
    machine = engine(sequences=1)
    for name, order, priority in (("third", 5.0, 0), ("second", -1.0, 0), ("first", 9.0, 1)):
        machine.submit(replace(ask(name, [1, 2, ord(name[0]) % 16], greedy(2), priority=priority), order=order))
    assert drain(machine).done == ["first", "second", "third"]


def test_a_large_prompt_is_not_overtaken_for_ever() -> None:
    machine = engine(pages=16)
    said = Said()
    for number in range(4):
        machine.submit(ask(f"before{number}", [number + 1] * 8, greedy(8, ignore_eos=True)))
    machine.submit(ask("large", [9] * 50, greedy(2)))
    for number in range(10):
        machine.submit(ask(f"after{number}", [number + 1, 3], greedy(8, ignore_eos=True)))
    drain(machine, said)
    assert said.done.index("large") < said.done.index("after9")


def test_prompts_go_on_under_a_full_batch_of_decodes() -> None:
    machine = engine(sequences=4, step=2)
    for number in range(3):
        machine.submit(ask(f"d{number}", [number + 1], greedy(40, ignore_eos=True)))
    machine.submit(ask("late", [7] * 6, greedy(1)))
    said = drain(machine)
    assert said.done[0] == "late"


def test_what_waits_for_a_prefix_goes_on_when_its_leader_is_cancelled() -> None:
    machine = engine(step=4)
    shared = [1, 2, 3, 4] * 5
    machine.submit(ask("leader", [*shared, 5], greedy(3)))
    machine.submit(ask("follower", [*shared, 6], greedy(3)))
    said = Said()
    said.hear(machine.step())
    said.hear(machine.step())
    assert machine.stats().running == 1
    machine.cancel(RequestId("leader"))
    drain(machine, said)
    assert said.tokens["follower", 0] == expected([*shared, 6], 3, CONTEXT)


@pytest.mark.parametrize(("price", "steps"), [(0, 2), (15, 2), (16, 1)])
def test_nobody_waits_for_another_to_compute_what_costs_less_than_a_step(price: int, steps: int) -> None:
    machine = serve(HashModel(), limits=BatchLimits(4, 64, step_price=price))
    for name in (1, 2, 3):  # they share two pages of four tokens: two of them would save eight each
        machine.submit(ask(f"{name}", [5] * 8 + [name], greedy(1)))
    said, taken = Said(), 0
    while len(said.done) < 3:
        said.hear(machine.step())
        taken += 1
    assert taken == steps


def test_limits_that_allow_no_progress_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        BatchLimits(max_sequences=0)
    with pytest.raises(ValueError, match="at least one sequence"):
        BatchLimits(step_tokens=0)


PROMPT = st.one_of(
    st.lists(st.integers(1, 3), min_size=1, max_size=30),
    st.integers(1, 30).map(lambda length: [1, 2, 3, 2] * (length // 4) + [4]),
)


class EngineMachine(RuleBasedStateMachine):
    """Requests of every kind come, go and are cancelled over a small pool; whoever isn't cancelled gets its tokens."""

    @initialize(
        pages=st.integers(4, 24), sequences=st.integers(1, 5), step=st.integers(1, 24), page=st.sampled_from([1, 2, 4]),
        ahead=st.integers(0, 1),
    )  # fmt: skip
    def start(self, pages: int, sequences: int, step: int, page: int, ahead: int) -> None:
        self.engine = engine(pages=pages, sequences=sequences, step=step, page=page, ahead=ahead)
        self.said = Said()
        self.asked: dict[str, tuple[list[int], int, int]] = {}
        self.programs: dict[str, tuple[Step, ...]] = {}
        self.cancelled: set[str] = set()
        self.open: list[ContextId] = []
        self.pins: list[str] = []
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"r{self.names}"

    @rule(
        prompt=PROMPT,
        tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        priority=st.integers(0, 1),
        namespace=st.sampled_from(["", "x"]),
        cached=st.booleans(),
    )
    def submit(self, prompt: list[int], tokens: int, n: int, priority: int, namespace: str, cached: bool) -> None:
        name = self.name()
        self.asked[name] = prompt, tokens, n
        sampling = greedy(tokens, n=n)
        self.engine.submit(ask(name, prompt, sampling, priority=priority, namespace=namespace, cache_prefix=cached))

    @rule(first=PROMPT, second=PROMPT, tokens=st.integers(1, 6))
    def submit_program(self, first: list[int], second: list[int], tokens: int) -> None:
        name = self.name()
        sampling = greedy(tokens)
        self.programs[name] = (Fill(tuple(first)), Generate(0, sampling), Fill(tuple(second)), Generate(1, sampling))
        self.engine.submit(Request(RequestId(name), self.programs[name]))

    @rule(prompt=PROMPT)
    def retain(self, prompt: list[int]) -> None:
        name = self.name()
        self.pins.append(name)
        self.engine.retain(RequestId(name), prompt)

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pins:
            self.engine.unpin(RequestId(data.draw(st.sampled_from(self.pins))))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.asked:
            name = data.draw(st.sampled_from(sorted(self.asked)))
            self.cancelled.add(name)
            self.engine.cancel(RequestId(name))

    @rule(prompt=PROMPT, cached=st.booleans())
    def open_context(self, prompt: list[int], cached: bool) -> None:
        context = self.engine.open_context(cache_prefix=cached)
        self.open.append(context)
        self.engine.fill(context, prompt)

    @rule(data=st.data())
    def use_context(self, data: st.DataObject) -> None:
        if self.open:
            context = data.draw(st.sampled_from(self.open))
            self.engine.generate(context, greedy(data.draw(st.integers(1, 5)), n=data.draw(st.integers(1, 2))))

    @rule(data=st.data())
    def fork_context(self, data: st.DataObject) -> None:
        if self.open:
            with contextlib.suppress(ContextBusy):
                self.open.append(self.engine.fork(data.draw(st.sampled_from(self.open))))

    @rule(data=st.data())
    def free_context(self, data: st.DataObject) -> None:
        if self.open:
            context = data.draw(st.sampled_from(self.open))
            self.open.remove(context)
            self.engine.free(context)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.said.hear(self.engine.step())

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        drain(self.engine, self.said)
        self._verify_requests()
        self._verify_programs()
        for context in self.open:
            self.engine.free(context)
        for name in self.pins:
            self.engine.unpin(RequestId(name))
        self.engine.tree.evict(self.engine.pool.pages)
        self.engine.check()
        assert self.engine.pool.free == self.engine.pool.pages, "pages are lost"

    def _verify_requests(self) -> None:
        capacity = self.engine.capacity
        for name, (prompt, tokens, n) in self.asked.items():
            error = self.said.failed.get(name)
            if len(prompt) + 1 > capacity:
                assert isinstance(error, PromptTooLong | RequestCancelled)
            elif isinstance(error, RequestCancelled):
                assert name in self.cancelled
            else:
                assert error is None
                assert [self.said.tokens[name, index] for index in range(n)] == [expected(prompt, tokens, capacity)] * n

    def _verify_programs(self) -> None:
        capacity = self.engine.capacity
        for name, steps in self.programs.items():
            so_far: list[int] = []
            for step in steps:
                if isinstance(step, Fill):
                    so_far += step.token_ids
                elif len(so_far) + 1 > capacity:
                    assert isinstance(self.said.failed[name], PromptTooLong)
                    break
                else:
                    assert isinstance(step, Generate)
                    if name in self.said.failed and (name, step.index) not in self.said.finished:
                        break  # the fill that follows had no room, which was known when the request came
                    made = expected(so_far, step.sampling.max_tokens or 0, capacity)
                    assert self.said.tokens[name, step.index] == made
                    so_far += made
            else:
                assert name in self.said.done


EngineMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestEngineMachine = EngineMachine.TestCase


def test_sampled_outputs_do_not_depend_on_the_batch() -> None:
    def run(machine: Engine, beside: int) -> list[int]:
        for number in range(beside):
            machine.submit(ask(f"b{number}", [number + 1] * 9, SamplingParams(max_tokens=9)))
        machine.submit(ask("r", [3, 1, 2], SamplingParams(seed=5, max_tokens=20, ignore_eos=True)))
        return drain(machine).tokens["r", 0]

    alone = run(engine(), 0)
    assert len(set(alone)) > 3
    assert run(engine(), 6) == run(engine(pages=9, step=5), 3) == alone
