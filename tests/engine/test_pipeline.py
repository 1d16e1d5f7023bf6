"""Steps that begin before the one before is read: the same tokens, nothing read too early, surplus tokens dropped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.engine.engine import Engine
from myna.engine.interface import BatchLimits
from myna.engine.request import FinishReason, RequestId
from myna.engine.sampling import SamplingParams
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.hash_model import HashModel, serve

torch.set_num_threads(1)


def engine(ahead: int, *, pages: int = 64, sequences: int = 4, step: int = 16) -> tuple[Engine, HashModel]:
    model = HashModel(ahead=ahead)
    return serve(model, pages=pages, limits=BatchLimits(sequences, step)), model


def test_a_step_begins_before_the_one_before_is_read() -> None:
    machine, model = engine(ahead=1)
    machine.submit(ask("r", [1, 2, 3], greedy(5, ignore_eos=True)))
    under_way = []
    said = Said()
    while machine.has_work:
        said.hear(machine.step())
        under_way.append(model.begun - model.read)
    assert under_way == [1, 1, 1, 1, 1, 0], "the last token is known to be the last: nothing runs beside its reading"
    assert model.begun == 5
    assert len(said.tokens["r", 0]) == 5


def test_an_end_that_is_seen_late_costs_one_step_and_says_nothing_more() -> None:
    machine, _ = engine(ahead=1)
    plain, _ = engine(ahead=0)
    said = []
    for each in (machine, plain):
        each.submit(ask("r", [1, 2, 3], greedy(40)))
        said.append(drain(each))
    assert said[0].finished["r", 0].reason is FinishReason.STOP
    assert said[0].tokens == said[1].tokens
    assert said[0].finished == said[1].finished
    assert machine.stats().steps == plain.stats().steps + 1
    assert machine.pool.free + machine.tree.evictable_pages == machine.pool.pages


def test_a_penalty_waits_for_the_tokens_that_it_counts() -> None:
    machine, model = engine(ahead=1)
    machine.submit(ask("r", [1, 2, 3], SamplingParams(seed=1, presence_penalty=1.5, max_tokens=9, ignore_eos=True)))
    while machine.has_work:
        before = model.begun
        machine.step()
        assert model.read >= before, "a step was planned while draws that it depends on were under way"


def test_the_draws_of_a_cancelled_request_are_not_another_ones_of_the_same_name() -> None:
    machine, _ = engine(ahead=1)
    machine.submit(ask("r", [1, 2, 3], greedy(20, ignore_eos=True)))
    machine.step()
    machine.step()
    machine.cancel(RequestId("r"))
    machine.step()
    machine.submit(ask("r", [9, 9], greedy(3, ignore_eos=True)))
    other, _ = engine(ahead=0)
    other.submit(ask("r", [9, 9], greedy(3, ignore_eos=True)))
    assert drain(machine).tokens == drain(other).tokens


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    options = draw(
        st.fixed_dictionaries(
            {"temperature": st.sampled_from([0.0, 0.7, 3.0]), "max_tokens": st.integers(1, 12), "n": st.integers(1, 3)},
            optional={
                "top_k": st.integers(1, 4),
                "repetition_penalty": st.just(1.3),
                "frequency_penalty": st.just(0.8),
                "stop": st.sampled_from([("w3",), ("w5 w1", "w2")]),
                "stop_token_ids": st.lists(st.integers(1, 15), max_size=2).map(tuple),
                "logprobs": st.integers(0, 2),
                "ignore_eos": st.just(True),
                "logit_bias": st.just({4: 2.0}),
            },
        )
    )
    least = draw(st.integers(0, options["max_tokens"]))
    return SamplingParams(seed=draw(st.integers(0, 9)), min_tokens=least, **options)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=14), samplings()), min_size=1, max_size=5
    ),
    pages=st.integers(8, 24),
    step=st.integers(1, 16),
    data=st.data(),
)
def test_whatever_is_asked_for_comes_out_as_it_would_alone_without_pipelining(
    asked: list[tuple[list[int], SamplingParams]], pages: int, step: int, data: st.DataObject
) -> None:
    machine, _ = engine(ahead=1, pages=pages, step=step)
    said = Said()
    for number, (prompt, sampling) in enumerate(asked):
        machine.submit(ask(f"r{number}", prompt, sampling))
        for _ in range(data.draw(st.integers(0, 3))):
            said.hear(machine.step())
    drain(machine, said)
    for number, (prompt, sampling) in enumerate(asked):
        alone, _ = engine(ahead=0, pages=machine.pool.pages)
        alone.submit(ask(f"r{number}", prompt, sampling))
        wanted = drain(alone)
        assert not said.failed
        for index in range(sampling.n):
            key = f"r{number}", index
            assert said.tokens[key] == wanted.tokens[key]
            assert said.text[key] == wanted.text[key]
            assert said.finished[key].reason == wanted.finished[key].reason
            assert logprobs(said, key) == pytest.approx(logprobs(wanted, key))


def logprobs(said: Said, key: tuple[str, int]) -> list[float]:
    deltas = [delta for delta in said.deltas if (delta.request_id, delta.output) == key]
    return [each.logprob for delta in deltas for each in delta.logprobs]
