from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from myna.engine import loading
from myna.engine.admission import admit
from myna.engine.model import Model
from myna.engine.plan import Span, StepPlan
from tests.engine import tiny_models
from tests.engine.plans import PAGE_SIZE, Sequences

VOCAB = tiny_models.VOCAB_SIZE


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def pair(architecture: str) -> tuple[Any, Model]:
    """The original, untouched, and the admitted model with the same weights."""
    return tiny_models.build(architecture), admit(tiny_models.build(architecture), architecture)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def own_logits(original: Any, tokens: Sequence[int]) -> torch.Tensor:
    return original(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("architecture", tiny_models.ADMITTED)
def test_packed_prompts_give_each_ones_own_logits(architecture: str) -> None:
    original, model = pair(architecture)
    prompts = [prompt(length, length) for length in (23, 1, 14)]
    logits = Sequences.of(model).step(prompts)
    assert_close(logits, torch.cat([own_logits(original, tokens) for tokens in prompts]))


@pytest.mark.parametrize("architecture", tiny_models.ADMITTED)
def test_chunks_beside_decoding_neighbours_give_the_whole_prompts_logits(architecture: str) -> None:
    original, model = pair(architecture)
    long, short = prompt(30, 1), prompt(12, 2)
    running = Sequences.of(model)
    first = running.step([long[:11], short[:9]])
    second = running.step([long[11:29], short[9:10]])
    third = running.step([long[29:], short[10:11]])
    rows_of_long = torch.cat([first[:11], second[:18], third[:1]])
    rows_of_short = torch.cat([first[11:], second[18:], third[1:]])
    assert_close(rows_of_long, own_logits(original, long))
    assert_close(rows_of_short, own_logits(original, short[:11]))


@pytest.mark.parametrize("architecture", tiny_models.ADMITTED)
def test_a_shared_prefix_gives_every_branch_its_own_logits(architecture: str) -> None:
    original, model = pair(architecture)
    prefix = prompt(21, 3)
    branches = [prompt(length, 10 + length) for length in (5, 1, 8)]
    running = Sequences.of(model)
    running.share(prefix, chunk=8)
    first = running.step([branches[0][:-1], [], []])
    assert len(first) == 4
    rest = running.step([branches[0][-1:], branches[1], branches[2]])
    expected = [own_logits(original, [*prefix, *branch])[len(prefix) :] for branch in branches]
    assert_close(torch.cat([first, rest]), torch.cat([expected[0], expected[1], expected[2]]))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 4), st.sampled_from([1, 1, 1, 2, 5]), min_size=1), min_size=4, max_size=24
    ),
    shared=st.booleans(),
)
def test_sequences_that_come_pause_and_go_keep_their_own_logits(
    architecture: str, steps: list[dict[int, int]], shared: bool
) -> None:
    original, model = pair(architecture)
    prefix = prompt(9, 8) if shared else []
    running = Sequences.of(model, pages=256)
    if shared:
        running.share(prefix)
    seen: dict[int, list[torch.Tensor]] = {index: [] for index in range(5)}
    for number, step in enumerate(steps):
        fresh = [prompt(step.get(index, 0), 100 * number + index) for index in range(5)]
        rows = running.step(fresh).split([len(tokens) for tokens in fresh])
        for index, logits in enumerate(rows):
            seen[index].append(logits)
    for index, tokens in enumerate(running.tokens):
        if tokens:
            assert_close(torch.cat(seen[index]), own_logits(original, [*prefix, *tokens])[len(prefix) :])


def test_a_step_that_failed_half_way_leaves_no_stale_block_behind() -> None:
    original, model = pair("llama")
    running = Sequences.of(model)
    running.step([prompt(6, 1), prompt(9, 2)])
    running.step([[5], [6]])
    attention: Any = model.attention
    pools = attention._pools
    attention._pools = [pools[0]]  # the second layer fails
    with pytest.raises(IndexError):
        running.step([[7], [8]])
    attention._pools = pools
    for tokens in running.tokens:
        tokens.pop()
    logits = running.step([[9], [10]])
    later = running.step([[11], [12]])
    for index, tokens in enumerate(running.tokens):
        assert_close(torch.stack([logits[index], later[index]]), own_logits(original, tokens)[-2:])


def test_only_wanted_rows_come_back_in_the_order_asked() -> None:
    _, model = pair("llama")
    running = Sequences.of(model)
    all_rows = running.step([prompt(9, 4)])
    again = Sequences.of(model)
    plan_tokens = prompt(9, 4)
    pages = again._take(9)
    slots = [pages[j // PAGE_SIZE] * PAGE_SIZE + j % PAGE_SIZE for j in range(9)]
    plan = StepPlan(plan_tokens, range(9), slots, [Span(pages, 0, 9, range(9), own=True)], [8, 2])
    assert_close(model.forward(plan), all_rows[[8, 2]])
    none = StepPlan(plan_tokens, range(9), slots, plan.spans, [])
    assert model.forward(none).shape == (0, VOCAB)


def test_a_copied_page_serves_a_fork() -> None:
    original, model = pair("qwen3")
    tokens = prompt(6, 5)
    running = Sequences.of(model)
    running.step([tokens])
    copy = running.free.pop()
    model.copy_page(running.pages[0][1], copy)
    running.tokens.append(list(tokens))
    running.pages.append([running.pages[0][0], copy])
    logits = running.step([[7], [9]])
    assert_close(logits, torch.stack([own_logits(original, [*tokens, token])[-1] for token in (7, 9)]))


def test_the_pool_is_zeroed_so_that_no_stale_number_survives() -> None:
    _, model = pair("llama")
    fresh = Sequences.of(model).step([prompt(10, 6)])
    used = Sequences.of(model)
    used.step([prompt(30, 7)])
    assert torch.equal(Sequences.of(model).step([prompt(10, 6)]), fresh)


def test_the_specification_says_what_the_engine_needs() -> None:
    _, model = pair("gemma2")
    spec = model.spec
    assert (spec.layers, spec.kv_heads, spec.head_dim) == (2, 2, 16)
    assert spec.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert spec.sliding_window is None  # only one of its layers has a window
    assert pair("mistral")[1].spec.sliding_window == tiny_models.WINDOW
    assert spec.context_length == tiny_models.CONTEXT_LENGTH
    assert spec.eos_token_ids == {tiny_models.EOS}
    assert spec.bos_token_id == tiny_models.BOS


@pytest.mark.model
def test_the_default_model_agrees_with_transformers_token_for_token() -> None:
    loaded = loading.load(dtype="float32")
    source = loading._find(loading.DEFAULT_MODEL, loading._default_cache())
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = loaded.tokenizer
    prompts = [tokenizer(text)["input_ids"] for text in ("The capital of France is", "def add(a, b):\n    return")]
    running = Sequences.of(loaded.model)
    logits = running.step(prompts)
    last = [len(prompts[0]) - 1, len(prompts[0]) + len(prompts[1]) - 1]
    found: list[list[int]] = [[], []]
    for _ in range(12):
        chosen = logits[last].argmax(-1).tolist()
        for tokens, token in zip(found, chosen, strict=True):
            tokens.append(token)
        logits, last = running.step([[token] for token in chosen]), [0, 1]
    for tokens, ids in zip(found, prompts, strict=True):
        expected = original.generate(torch.tensor([ids]), max_new_tokens=12, min_new_tokens=12, do_sample=False)
        assert tokens == expected[0, len(ids) :].tolist()
