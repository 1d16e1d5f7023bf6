from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.engine.admission import admit
from myna.engine.compiled import CompiledDecoder, lay_out
from myna.engine.decoder_weights import Sizes
from myna.engine.model import Model
from myna.engine.plan import Span, StepPlan
from myna.kernels.compiled.elements import elements_for
from myna.kernels.compiled.records import MOST_KEYS, MOST_ROWS
from tests.engine import tiny_models

PAGE_SIZE = 16
WIDE = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
THREE = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}
LONE = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64}
SIZES = Sizes(hidden=64, inner=96, heads=6, kv_heads=2, head_dim=32, vocabulary=160, scaling=1.0)
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if elements_for(dtype) is not None]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}


@pytest.mark.avx512
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "changes"), [("llama", THREE), ("qwen2", LONE), ("qwen3", {})])
@pytest.mark.parametrize(("rows", "shared"), [(1, 0), (5, 40), (21, 300)])
def test_the_compiled_step_gives_the_logits_and_the_keys_of_torch(
    architecture: str, changes: dict[str, Any], dtype: torch.dtype, rows: int, shared: int
) -> None:
    model = _model(architecture, dtype, **changes)
    plan = _decoding(model, rows, shared)
    expected, pools = _without_shortcut(model, plan)
    found = model.forward(plan)
    assert _error(found, expected) < TOLERANCE[dtype]
    assert max(_error(pool, other) for pool, other in zip(_pools(model), pools, strict=True)) < TOLERANCE[dtype]


@pytest.mark.avx512
def test_the_largest_logit_is_found_on_the_way() -> None:
    model = _model("llama", DTYPES[0])
    logits, greedy = _decoder(model).forward(_decoding(model, 20, 0))
    assert greedy is not None
    assert torch.equal(greedy[0], logits.amax(dim=-1))
    assert torch.equal(greedy[1], logits.argmax(dim=-1))


@pytest.mark.avx512
def test_a_vocabulary_that_fills_no_block_leaves_the_largest_logit_to_others() -> None:
    model = _model("llama", DTYPES[0], vocab_size=150)
    plan = _decoding(model, 3, 0)
    logits, greedy = _decoder(model).forward(plan)
    assert greedy is None
    assert logits.shape == (3, 150)
    assert _error(logits, _without_shortcut(model, plan)[0]) < TOLERANCE[DTYPES[0]]


@pytest.mark.avx512
def test_what_is_no_number_in_one_row_shows_there_and_nowhere_else() -> None:
    model = _model("llama", DTYPES[0])
    plan = _decoding(model, 3, 0)
    _pools(model)[0][:, plan.write_slots[1] - 1] = torch.nan
    _, greedy = _decoder(model).forward(plan)
    assert greedy is not None
    assert greedy[0].isfinite().tolist() == [True, False, True]


@pytest.mark.avx512
def test_logits_come_in_the_order_that_was_asked_for() -> None:
    model = _model("llama", DTYPES[0])
    plan = _decoding(model, 20, 0)
    whole = model.forward(plan)
    some = StepPlan(plan.token_ids, plan.positions, plan.write_slots, plan.spans, [17, 2])
    assert torch.equal(model.forward(some), whole[[17, 2]])


@pytest.mark.avx512
def test_only_steps_of_decoding_rows_in_whole_tiles_of_keys_are_taken() -> None:
    model = _model("llama", DTYPES[0])
    decoder = _decoder(model)
    assert decoder.takes(_decoding(model, MOST_ROWS, 0))
    assert not decoder.takes(_decoding(model, MOST_ROWS + 1, 0))
    assert not decoder.takes(StepPlan([1, 2], [0, 1], [0, 1], [Span((0,), 0, 2, [0, 1], own=True)], [1]))
    model.allocate(8, 4)
    assert not decoder.takes(StepPlan([1], [0], [0], [Span((0,), 0, 1, [0], own=True)], [0]))


@pytest.mark.avx512
@pytest.mark.parametrize("architecture", ["mistral", "gemma", "granite", "gpt2"])
def test_another_structure_keeps_its_own_way(architecture: str) -> None:
    assert admit(tiny_models.build(architecture), architecture).shortcut is None  # type: ignore[union-attr]


def test_sizes_that_fill_no_tile_keep_their_own_way() -> None:
    assert admit(tiny_models.build("llama"), "llama").shortcut is None  # type: ignore[union-attr]


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=9),
    shared=st.integers(0, 3000),
    page_size=st.sampled_from([16, 48, 64, 1024]),
    threads=st.integers(1, 9),
)
def test_every_row_attends_to_every_key_once_in_chunks_of_whole_pages(
    lengths: list[int], shared: int, page_size: int, threads: int
) -> None:
    spans = _spans(lengths, shared, page_size)
    layout = lay_out(spans, len(lengths), page_size, SIZES, threads)
    seen: list[list[tuple[int, int]]] = [[] for _ in lengths]
    taken: set[int] = set()
    for first, keys, begin, count, column in layout.chunks:
        assert 0 < keys <= MOST_KEYS
        pages = layout.pages[first : first + -(-keys // page_size)]
        stride = -(-count * SIZES.group // 16) * 16
        columns = set(range(column, column + SIZES.kv_heads * stride))
        assert not taken & columns
        taken |= columns
        for i, row in enumerate(layout.rows[begin : begin + count]):
            seen[row] += [(page, min(page_size, keys - j * page_size)) for j, page in enumerate(pages)]
            assert (column + i * SIZES.group, stride) in layout.partials[slice(*layout.bounds[row : row + 2])]
    assert max(taken) < layout.columns
    assert sum(b - a for a, b in pairwise(layout.bounds)) == len(layout.partials)
    for row, found in enumerate(seen):
        expected = [
            (page, min(page_size, span.length - j * page_size))
            for span in spans
            if row in span.queries
            for j, page in enumerate(span.pages[: -(-span.length // page_size)])
        ]
        assert sorted(found) == sorted(expected)


def _model(architecture: str, dtype: torch.dtype, **changes: Any) -> Model:
    model = admit(tiny_models.build(architecture, **{**WIDE, **changes}).to(dtype), architecture)
    assert isinstance(model, Model)
    assert isinstance(model.shortcut, CompiledDecoder)
    model.allocate(256, PAGE_SIZE)
    generator = torch.Generator().manual_seed(0)
    for pool in _pools(model):
        pool.copy_(torch.randn(pool.shape, generator=generator))
    return model


def _decoder(model: Model) -> CompiledDecoder:
    assert isinstance(model.shortcut, CompiledDecoder)
    return model.shortcut


def _pools(model: Model) -> list[torch.Tensor]:
    return list(model.attention.pools)  # type: ignore[attr-defined]


def _decoding(model: Model, rows: int, shared: int) -> StepPlan:
    """A step of sequences with 1 to 40 tokens of their own after a shared prefix, over keys that are already there."""
    lengths = [1 + 13 * row % 40 for row in range(rows)]
    spans = _spans(lengths, shared, PAGE_SIZE)
    own = [span for span in spans if span.own]
    slots = [
        span.pages[(n - 1) // PAGE_SIZE] * PAGE_SIZE + (n - 1) % PAGE_SIZE for span, n in zip(own, lengths, strict=True)
    ]
    tokens = torch.randint(150, (rows,), generator=torch.Generator().manual_seed(1)).tolist()
    return StepPlan(tokens, [shared + n - 1 for n in lengths], slots, spans, range(rows))


def _spans(lengths: list[int], shared: int, page_size: int) -> list[Span]:
    """Own spans on pages in no order, and one that all share."""
    needed = [-(-length // page_size) for length in [shared, *lengths]]
    pages = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(2)).tolist()
    parts = [tuple(pages.pop() for _ in range(count)) for count in needed]
    spans = [Span(parts[0], 0, shared, range(len(lengths)), own=False)] if shared else []
    return spans + [
        Span(part, shared, length, [row], own=True)
        for row, (part, length) in enumerate(zip(parts[1:], lengths, strict=True))
    ]


def _without_shortcut(model: Model, plan: StepPlan) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What torch makes of a step: logits, and the pools afterwards. The pools are as before when this returns."""
    before = [pool.clone() for pool in _pools(model)]
    shortcut, model.shortcut = model.shortcut, None
    logits = model.forward(plan)
    model.shortcut = shortcut
    after = [pool.clone() for pool in _pools(model)]
    for pool, old in zip(_pools(model), before, strict=True):
        pool.copy_(old)
    return logits, after


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
