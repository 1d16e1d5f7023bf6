from __future__ import annotations

import pytest
import torch

from myna.engine.engine import Engine
from myna.engine.errors import (
    ContextBusy,
    ContextFreed,
    InvalidPrompt,
    InvalidSampling,
    PromptTooLong,
    RequestCancelled,
    StepFailed,
)
from myna.engine.interface import BatchLimits
from myna.engine.plan import StepPlan
from myna.engine.request import Fill, Finished, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.hash_model import HashModel, serve

torch.set_num_threads(1)
VOCABULARY = 64
GOOD = ask("good", [1, 2, 3, 4, 5], greedy(12, ignore_eos=True))


class FailingModel(HashModel):
    """Broken for the plans that hold a certain token."""

    def forward(self, plan: StepPlan) -> torch.Tensor:
        if 13 in plan.token_ids:
            raise RuntimeError("out of memory")
        logits = super().forward(plan)
        return torch.full_like(logits, float("nan")) if 14 in plan.token_ids else logits


def engine(model: type[HashModel] = HashModel, *, pages: int = 128, sequences: int = 16, step: int = 256) -> Engine:
    return serve(model(vocabulary=VOCABULARY, context_length=512), pages=pages, limits=BatchLimits(sequences, step))


def good_tokens() -> list[int]:
    machine = engine()
    machine.submit(GOOD)
    return drain(machine).tokens["good", 0]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask("bad", [3] * 150, greedy(1)), None),
        (ask("bad", [3] * 512, greedy(1)), PromptTooLong),
        (ask("bad", [3, VOCABULARY], greedy(1)), InvalidPrompt),
        (ask("bad", [3, -1], greedy(1)), InvalidPrompt),
        (ask("bad", [], greedy(1)), InvalidPrompt),
        (ask("bad", [3], greedy(1, stop_token_ids=(VOCABULARY,))), InvalidSampling),
        (ask("bad", [3], greedy(1), context=999), ContextFreed),
        (Request(RequestId("bad"), (Fill((3,)), Generate(0, greedy(1), ((VOCABULARY,),)))), InvalidPrompt),
    ],
)
def test_a_request_that_cannot_be_served_fails_alone(request_: Request, error: type[Exception] | None) -> None:
    machine = engine()
    machine.submit(GOOD)
    machine.submit(request_)
    said = drain(machine)
    assert said.tokens["good", 0] == good_tokens()
    assert (type(said.failed.get("bad")) if error else None) == error


def test_a_prompt_larger_than_the_pool_blocks_nobody() -> None:
    machine = engine(pages=10)
    machine.submit(ask("huge", [7] * 40, greedy(1)))
    machine.submit(GOOD)
    said = drain(machine)
    assert isinstance(said.failed["huge"], PromptTooLong)
    assert said.tokens["good", 0] == good_tokens()


def test_a_name_that_is_under_way_is_refused_and_free_again_afterwards() -> None:
    machine = engine()
    machine.submit(GOOD)
    with pytest.raises(ValueError, match="'good' is already under way"):
        machine.submit(GOOD)
    drain(machine)
    machine.submit(GOOD)
    assert drain(machine).done == ["good"]


def test_a_cancelled_request_frees_its_pages_and_the_others_go_on() -> None:
    machine = engine()
    machine.submit(ask("gone", [7] * 33, greedy(50, n=2, ignore_eos=True), cache_prefix=False))
    machine.submit(GOOD)
    said = Said()
    for _ in range(4):
        said.hear(machine.step())
    machine.cancel(RequestId("gone"))
    machine.cancel(RequestId("gone"))
    machine.cancel(RequestId("never"))
    drain(machine, said)
    assert isinstance(said.failed["gone"], RequestCancelled)
    assert said.tokens["good", 0] == good_tokens()
    assert not list(machine.contexts)


def test_a_busy_context_is_not_forked_and_freeing_it_fails_what_runs_in_it() -> None:
    machine = engine()
    context = machine.open_context()
    machine.fill(context, [1, 2, 3, 4, 5])
    fork = machine.fork(context)
    running = machine.generate(context, greedy(50, ignore_eos=True))
    waiting = machine.fill(context, [6])
    with pytest.raises(ContextBusy):
        machine.fork(context)
    said = Said()
    said.hear(machine.step())
    machine.free(context)
    drain(machine, said)
    assert {type(said.failed[name]) for name in (running, waiting)} == {ContextFreed}
    with pytest.raises(ContextFreed):
        machine.free(context)
    other = machine.generate(fork, greedy(12, ignore_eos=True))
    assert drain(machine).tokens[other, 0] == good_tokens()


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on() -> None:
    machine = engine(FailingModel)
    said = Said()
    for name, last in (("raises", 13), ("no numbers", 14)):
        machine.submit(ask(name, [1, last], greedy(3)))
        machine.submit(ask(f"beside {name}", [1, 2], greedy(3)))
        drain(machine, said)
        assert isinstance(said.failed[name], StepFailed)
    assert isinstance(said.failed["beside raises"], StepFailed)
    machine.submit(ask("after", [1, 2], greedy(3)))
    assert "after" in drain(machine, said).done


def test_every_request_ends_in_exactly_one_last_event() -> None:
    machine = engine(pages=30, sequences=4, step=16)
    for number in range(20):
        sampling = SamplingParams(max_tokens=1 + number, n=1 + number % 2)
        machine.submit(ask(f"r{number}", [7 + number] * (3 + 5 * (number % 7)), sampling))
    said = drain(machine)
    assert sorted(said.done) == sorted(f"r{number}" for number in range(20))
    assert all(isinstance(said.finished[f"r{number}", 0], Finished) for number in range(20))
