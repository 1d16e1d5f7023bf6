"""The engine as it serves on a GPU, held against transformers on the same GPU: graphs, chunks, shared prefixes, batches."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

from myna.engine.admission import admit
from myna.engine.engine import Engine, EngineConfig
from myna.engine.errors import ModelRefused, StepFailed
from myna.engine.interface import BatchLimits
from myna.engine.sampler import Row, sample
from myna.engine.sampling import SamplingParams
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.scoring import Spoken, apart, errors, errors_between, own_logprobs, speak
from tests.engine.small_models import SMALL, VOCAB_SIZE, build
from tests.engine.soak import Habits, Soak, assert_lively
from tests.engine.tiny_tokenizers import words

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OUT = 12
STEPS_OF_AN_HOUR = 18_000
"""Steps of a soak, about a minute: with prompts and outputs a tenth of real ones, as many requests as in a busy hour."""

EXACT = 2e-3
"""Largest error of a float32 logit, in standard deviations of its row."""

AS_EAGER = 1.25
"""In half precision rounding is the error: ours may be this much larger than transformers' own against float32."""

BATCHED = {torch.float32: 2e-3, torch.bfloat16: 0.3}
"""By how much a request's logits may differ alone and beside others: the promise that we make.

In standard deviations of the twenty likeliest tokens' logits, at the worst of them. A bfloat16 logit has 8 bits: one step
of it is 0.03 to 0.06 of that.

A router of experts is another matter in half precision: a near tie sends a token to another expert, whoever rounds.
"""


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (count,), generator=generator).tolist()


SHARED = tokens(300, 99)
PROMPTS = [
    *(SHARED + tokens(count, count) for count in (7, 20, 1, 65)),
    SHARED,
    tokens(700, 5),
    tokens(1, 6),
    tokens(130, 7),
]


@cache
def network(name: str, dtype: torch.dtype) -> Any:
    """The original with its eager attention."""
    own = build(name, dtype, DEVICE)
    own.set_attn_implementation("eager")
    return own


@cache
def truth(name: str, dtype: torch.dtype) -> Any:
    """The original in float32, its weights rounded to `dtype`."""
    own = build(name, dtype, DEVICE).float()
    own.set_attn_implementation("eager")
    return own


def engine(name: str, dtype: torch.dtype, *, graphs: bool = True, step: int = 256) -> Engine:
    limits = BatchLimits(16, step)
    config = EngineConfig(kv_tokens=8192, limits=limits, checks=True, graphs=graphs)
    return Engine(admit(build(name, dtype, DEVICE), name), words(VOCAB_SIZE), config)


@pytest.mark.parametrize("name", SMALL)
def test_float32_logits_are_those_of_transformers(name: str) -> None:
    spoken = speak(engine(name, torch.float32), PROMPTS, OUT)
    found = [
        error for each in spoken for error in errors(each.logprobs, own_logprobs(network(name, torch.float32), each))
    ]
    print(f"{name}: float32 logits off by {max(found):.1e}")
    assert max(found) < EXACT


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_logits_are_as_near_to_the_truth_as_those_of_transformers(name: str) -> None:
    dtype = torch.bfloat16
    spoken = speak(engine(name, dtype), PROMPTS, OUT)
    exact, eager = truth(name, dtype), network(name, dtype)
    ours = [statistics.median(errors(each.logprobs, own_logprobs(exact, each))) for each in spoken]
    theirs = [statistics.median(errors_between(eager, exact, each)) for each in spoken]
    print(f"{name}: bfloat16 logits off by {max(ours):.1e}, transformers' by {max(theirs):.1e}")
    assert statistics.median(ours) < AS_EAGER * statistics.median(theirs)
    assert max(ours) < 2 * max(theirs)


@pytest.mark.parametrize("name", ["llama, heads of 128", "qwen3", "gemma3_text"])
def test_graphs_change_nothing(name: str) -> None:
    def said(graphs: bool) -> list[Spoken]:
        machine = engine(name, torch.bfloat16, graphs=graphs)
        frames: Any = machine._pipeline._model._frames  # type: ignore[attr-defined]
        assert [frame._graph is not None for frame in frames.values()] == [graphs] * len(frames)
        assert frames or not graphs, "nothing was captured"
        return speak(machine, PROMPTS, OUT) + speak(machine, PROMPTS[:3], 2 * OUT)

    assert said(True) == said(False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama, heads of 128", torch.float32),
        ("llama, heads of 128", torch.bfloat16),
        ("gemma3_text", torch.bfloat16),
        ("gpt_oss", torch.float32),
    ],
    ids=str,
)
def test_a_request_alone_gets_the_logits_that_it_gets_beside_others(name: str, dtype: torch.dtype) -> None:
    together = speak(engine(name, dtype), PROMPTS, OUT)
    machine = engine(name, dtype, step=8192)
    alone = [speak(machine, [prompt], OUT)[0] for prompt in PROMPTS]
    worst = max(apart(one, other) for one, other in zip(alone, together, strict=True))
    print(f"{name}, {dtype}: alone and batched are {worst:.1e} apart")
    assert worst < BATCHED[dtype]


def test_seeded_tokens_are_the_same_alone_and_beside_others() -> None:
    machine = engine("llama, heads of 128", torch.float32)
    options: list[dict[str, object]] = [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.02}, {"repetition_penalty": 1.3}]

    def said(numbers: list[int]) -> Said:
        for number in numbers:
            sampling = SamplingParams(seed=number, max_tokens=OUT, ignore_eos=True, **options[number % 5])  # type: ignore[arg-type]
            machine.submit(ask(f"{number}", PROMPTS[number], sampling))
        return drain(machine)

    together = said([0, 1, 2, 3, 4])
    for number in range(5):
        assert said([number]).tokens[f"{number}", 0] == together.tokens[f"{number}", 0]


CUTS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.1, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.0, "logit_bias": {7: 5.0}},
    {"temperature": 1.0, "repetition_penalty": 1.5},
]


def rows(count: int) -> list[Row]:
    """Rows of all kinds, with seeds and positions of their own."""
    return [
        Row(SamplingParams(**CUTS[at % len(CUTS)]), at, 3 * at, {5: 2}, frozenset({5, 9}), frozenset())  # type: ignore[arg-type]
        for at in range(count)
    ]


def drawn(logits: torch.Tensor, of: list[Row]) -> list[int | None]:
    return [draw.token for draw in sample(logits.clone(), of)]


def test_draws_on_a_gpu_are_those_on_a_cpu_alone_and_batched() -> None:
    wanted = rows(420)
    logits = torch.randn(420, 5000, generator=torch.Generator().manual_seed(1)) * 3
    here = drawn(logits, wanted)
    there = drawn(logits.to(DEVICE), wanted)
    assert (
        sum(one != other for one, other in zip(here, there, strict=True)) <= 1
    )  # exp may round otherwise, near an edge
    alone = [drawn(logits[at : at + 1].to(DEVICE), wanted[at : at + 1])[0] for at in range(0, 420, 5)]
    assert alone == there[::5]


def test_draws_on_a_gpu_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.05, 0.15, 0.3, 0.5])
    count = 20_000
    of = [Row(SamplingParams(), 1, at, {}, frozenset(), frozenset()) for at in range(count)]
    found = Counter(drawn(probabilities.log().repeat(count, 1).to(DEVICE), of))
    for token, probability in enumerate(probabilities.tolist()):
        assert found[token] / count == pytest.approx(
            probability, abs=4 * (probability * (1 - probability) / count) ** 0.5
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_a_long_random_life_leaks_nothing_and_changes_no_output(graphs: bool) -> None:
    name = "llama, heads of 128"
    config = EngineConfig(kv_tokens=64 * 40, limits=BatchLimits(24, 512), graphs=graphs)
    machine = Engine(admit(build(name, torch.float32, DEVICE), name), words(VOCAB_SIZE), config)
    soak = Soak(machine, seed=random.SystemRandom().randrange(10**6), habits=Habits(longest=150, output=400, alive=40))
    print(f"seed {soak.seed}")
    soak.live(STEPS_OF_AN_HOUR // (1 if graphs else 20))
    soak.end()
    print(f"{machine.stats()}, {soak.counts}")
    assert_lively(soak)


def test_a_pool_that_cannot_fit_is_refused_in_words() -> None:
    name = "llama, heads of 64"
    with pytest.raises(ModelRefused, match="memory"):
        Engine(admit(build(name, torch.bfloat16, DEVICE), name), words(VOCAB_SIZE), EngineConfig(kv_bytes=2**38))


def test_a_head_size_that_no_kernel_takes_is_refused_by_name() -> None:
    network = build("llama, heads of 64", torch.bfloat16, DEVICE, head_dim=20)
    with pytest.raises(ModelRefused, match="head size 20"):
        admit(network, "odd heads")


def test_memory_that_runs_out_in_a_step_fails_its_requests_and_the_engine_goes_on() -> None:
    machine = engine("llama, heads of 128", torch.float32, step=4096)
    before = [each.tokens for each in speak(machine, PROMPTS[:2], OUT)]
    held = _all_free_memory()
    machine.submit(ask("large", tokens(3500, 8), greedy(2), cache_prefix=False))
    said = drain(machine)
    del held
    torch.cuda.empty_cache()
    assert isinstance(said.failed["large"], StepFailed)
    assert "memory" in str(said.failed["large"])
    assert [each.tokens for each in speak(machine, PROMPTS[:2], OUT)] == before


def _all_free_memory() -> list[torch.Tensor]:
    """Tensors that leave next to nothing."""
    held: list[torch.Tensor] = []
    torch.cuda.empty_cache()
    size = torch.cuda.mem_get_info(DEVICE)[0]
    while size > 2**20:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        except torch.cuda.OutOfMemoryError:
            size //= 2
    return held
