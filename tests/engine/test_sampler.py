from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.engine.draw import uniform
from myna.engine.sampler import Row, sample
from myna.engine.sampling import SamplingParams
from myna.engine.structured.matcher import Mask

torch.set_num_threads(1)
NONE: frozenset[int] = frozenset()


def row(position: int = 0, seed: int = 0, banned: frozenset[int] = NONE, **params: object) -> Row:
    return Row(SamplingParams(**params), seed, position, {}, NONE, banned)  # type: ignore[arg-type]


def logits(rows: int, vocabulary: int = 300, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def frequencies(values: torch.Tensor, draws: int = 4000, **params: object) -> dict[int, float]:
    rows = [row(position, **params) for position in range(draws)]
    drawn = Counter(draw.token for draw in sample(values.repeat(draws, 1), rows))
    return {token: count / draws for token, count in drawn.items() if token is not None}


MIXED = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.1, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.0, "logit_bias": {7: 5.0}},
]


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(12)), size=st.integers(1, 12), vocabulary=st.sampled_from([300, 1024, 5000]))
def test_a_draw_is_the_same_whatever_runs_beside_it(order: list[int], size: int, vocabulary: int) -> None:
    values = logits(12, vocabulary)
    rows = [row(position=3 * i, seed=i, **MIXED[i % 6]) for i in range(12)]  # type: ignore[arg-type]
    alone = [sample(values[i : i + 1].clone(), [rows[i]])[0].token for i in range(12)]
    chosen = order[:size]
    together = [draw.token for draw in sample(values[chosen].clone(), [rows[i] for i in chosen])]
    assert together == [alone[i] for i in chosen]


def test_greedy_takes_the_most_probable_token() -> None:
    values = logits(5)
    assert [draw.token for draw in sample(values.clone(), [row(temperature=0)] * 5)] == values.argmax(-1).tolist()


def test_draws_follow_the_distribution() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    found = frequencies(values)
    for token, probability in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert found[token] == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / 4000))


@pytest.mark.parametrize("vocabulary", [511, 512, 513, 5000])
def test_every_place_of_a_long_row_is_drawn_as_often_as_its_share(vocabulary: int) -> None:
    likely = {0, 1, 510, vocabulary // 2, vocabulary - 1}
    values = torch.full((1, vocabulary), -math.inf)
    values[0, list(likely)] = 0.0
    found = frequencies(values)
    assert set(found) == likely
    for share in found.values():
        assert share == pytest.approx(1 / len(likely), abs=0.03)


def test_temperature_sharpens_as_it_should() -> None:
    values = torch.tensor([[0.2, 0.8]]).log()
    assert frequencies(values, temperature=0.5)[0] == pytest.approx(0.04 / 0.68, abs=0.02)


def test_a_tiny_temperature_is_greedy_and_no_overflow() -> None:
    values = logits(1)
    for temperature in (1e-30, 1e-300):
        assert sample(values.clone(), [row(temperature=temperature)])[0].token == int(values.argmax())


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {3, 2}),
        ({"top_k": 1}, {3}),
        ({"top_p": 0.39}, {3}),
        ({"top_p": 0.41}, {3, 2}),
        ({"top_p": 0.69}, {3, 2}),
        ({"top_p": 0.71}, {3, 2, 1}),
        ({"min_p": 0.7}, {3, 2}),
        ({"min_p": 0.5}, {3, 2, 1}),
        ({"top_k": 2, "top_p": 0.5}, {3}),
        ({"top_k": 100}, {0, 1, 2, 3}),
    ],
)
def test_cuts_keep_exactly_their_sets(params: dict[str, object], kept: set[int]) -> None:
    values = torch.tensor([[0.0999, 0.2001, 0.3, 0.4]], dtype=torch.float64).log().float()
    assert set(frequencies(values, draws=600, **params)) == kept


def test_top_p_beyond_the_first_candidates_sorts_the_whole_row() -> None:
    values = torch.zeros(1, 5000) + torch.linspace(0, 0.5, 5000)
    found = {draw.token for draw in sample(values.repeat(600, 1), [row(i, top_p=0.9) for i in range(600)])}
    probabilities = torch.softmax(values[0].double(), 0)
    lowest = next(i for i in range(5000) if float(probabilities[i:].sum()) < 0.9) - 1
    assert min(token for token in found if token is not None) >= lowest
    assert len(found) > 400


def test_penalties_and_bias_move_the_logits_as_documented() -> None:
    values = torch.tensor([[2.0, -2.0, 0.0, 1.0]])
    base = Row(SamplingParams(temperature=0, logprobs=4), 0, 0, {0: 3}, frozenset({0, 1}), NONE)

    def adjusted(**params: object) -> list[float]:
        changed = replace(base, sampling=SamplingParams(temperature=0, logprobs=4, **params))  # type: ignore[arg-type]
        best = dict(sample(values.clone(), [changed])[0].logprob.alternatives)  # type: ignore[union-attr]
        return [best[token] - best[2] for token in range(4)]

    assert adjusted() == pytest.approx([2, -2, 0, 1], abs=1e-5)
    assert adjusted(presence_penalty=0.5) == pytest.approx([1.5, -2, 0, 1], abs=1e-5)
    assert adjusted(frequency_penalty=0.5) == pytest.approx([0.5, -2, 0, 1], abs=1e-5)
    assert adjusted(repetition_penalty=2.0) == pytest.approx([1, -4, 0, 1], abs=1e-5)
    assert adjusted(logit_bias={3: 2.5}) == pytest.approx([2, -2, 0, 3.5], abs=1e-5)


def test_a_banned_token_is_never_drawn() -> None:
    values = torch.tensor([[10.0, 0.0, 0.0]])
    assert {sample(values.clone(), [row(i, banned=frozenset({0}))])[0].token for i in range(50)} == {1, 2}
    assert sample(values.clone(), [row(temperature=0, banned=frozenset({0}))])[0].token in (1, 2)


def test_logprobs_are_of_the_distribution_before_temperature_and_cuts() -> None:
    values = logits(2)
    rows = [row(temperature=3.0, top_k=1, logprobs=3), row(temperature=0)]
    first, second = sample(values.clone(), rows)
    every = torch.log_softmax(values[0], -1)
    assert second.logprob is None
    assert first.logprob is not None
    assert first.logprob.logprob == pytest.approx(float(every[first.token]), abs=1e-5)
    assert [token for token, _ in first.logprob.alternatives] == every.topk(3).indices.tolist()


def test_logits_that_are_no_numbers_fail_their_row_alone() -> None:
    values = logits(3)
    values[1, 4] = float("nan")
    drawn = sample(values, [row(), row(), row()])
    assert [draw.token is None for draw in drawn] == [False, True, False]


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = [uniform(seed, position) for seed in range(40) for position in range(100)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == 4000
    buckets = Counter(int(number * 10) for number in numbers)
    assert all(abs(buckets[bucket] - 400) < 100 for bucket in range(10))
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)


class Only:
    """A grammar that allows these tokens. `narrow`: whether it says that they are few."""

    def __init__(self, vocabulary: int, *tokens: int, narrow: bool = False) -> None:
        self._tokens = frozenset(tokens)
        self._narrow = narrow
        self._mask = np.zeros(-(-vocabulary // 32), np.uint32)
        for token in tokens:
            self._mask[token // 32] |= np.uint32(1 << token % 32)

    def allows(self, token: int) -> bool:
        return token in self._tokens

    def narrow(self) -> bool:
        return self._narrow

    def mask(self) -> Mask:
        return self._mask


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("params", MIXED)
def test_a_grammar_leaves_its_tokens_as_likely_to_each_other_as_they_were(
    params: dict[str, object], narrow: bool
) -> None:
    values = logits(1)[0]
    allowed = [5, 31, 32, 70, 299]
    rows = [replace(row(position, **params), constraint=Only(300, *allowed, narrow=narrow)) for position in range(3000)]
    drawn = Counter(draw.token for draw in sample(values.repeat(len(rows), 1), rows))
    assert set(drawn) <= set(allowed)
    alone = torch.full((300,), -math.inf)
    alone[allowed] = values[allowed]
    free = [replace(row(position, seed=1, **params)) for position in range(len(rows))]
    wanted = Counter(draw.token for draw in sample(alone.repeat(len(rows), 1), free))
    for token in allowed:
        noise = 4 * math.sqrt(2 * max(wanted[token], 1))
        assert drawn[token] == pytest.approx(wanted[token], abs=noise), "as if the others had no probability"


def test_where_a_grammar_leaves_nothing_nothing_is_drawn_and_neighbours_go_on() -> None:
    cases = ((0, False), (1.0, False), (1.0, True))
    rows = [replace(row(temperature=t), constraint=Only(300, narrow=narrow)) for t, narrow in cases]
    *none, free = sample(logits(4), [*rows, row(temperature=0)])
    assert [draw.token for draw in none] == [None] * 3
    assert free.token == int(logits(4)[3].argmax())


def test_what_a_free_row_draws_is_the_same_beside_rows_whose_grammars_allow_few() -> None:
    free = row(temperature=1.0, seed=3)
    beside = [replace(row(position, temperature=1.0), constraint=Only(300, 4, 9, narrow=True)) for position in range(3)]
    (alone,) = sample(logits(1), [free])
    *_, with_others = sample(logits(1).repeat(4, 1), [*beside, free])
    assert with_others == alone


def test_a_banned_token_comes_where_the_grammar_leaves_nothing_else() -> None:
    for temperature in (0, 1.0):
        forced = replace(row(banned=frozenset({7}), temperature=temperature), constraint=Only(300, 7))
        either = replace(row(banned=frozenset({7}), temperature=temperature), constraint=Only(300, 7, 8))
        assert [draw.token for draw in sample(logits(2), [forced, either])] == [7, 8]
