"""The Triton kernel against the float64 reference, through Triton's interpreter or, where there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.compiling import AttentionCase, Compiled, compile_attention
from tests.kernels.kernel_runs import Run, error_of, parts_of
from tests.kernels.paged_trees import Node, Request, fan_out
from tests.kernels.processes import Perform

Measure = Callable[[Run], float]

TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 6e-3}
"""Relative norm of the error: about twice what a right kernel shows."""

TINY = {"small_rows": 4, "large_rows": 16, "keys": 16}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": 128},
    {"window": 128, "softcap": 50.0},
    {"window": 128, "sinks": True},
    {"window": 128, "softcap": 50.0, "sinks": True},
]
"""As layers have them: Llama's, Gemma 3's, Gemma 2's, gpt-oss's; and all at once."""

TREE = [Node(None, 37), Node(0, 20), Node(1, 5), Node(None, 16), Node(0, 64)]
DECODE = [Request(2, 3), Request(2, 17), Request(1, 1), Request(3, 16), Request(None, 9), *[Request(4, 2)] * 6]
MIXED = [Request(1, 40, new=13), Request(2, 1), Request(None, 19, new=19), Request(4, 5, new=5), Request(4, 7)]


@pytest.fixture(scope="module")
def measure(kernels: Perform) -> Measure:
    """Measures a run's error."""
    return lambda run: float(kernels(error_of, run))


@pytest.fixture(scope="module")
def count_parts(kernels: Perform) -> Callable[[Run], int]:
    """Counts the partial results that are merged into one."""
    return lambda run: int(kernels(parts_of, run))


def assert_right(measure: Measure, run: Run) -> None:
    capped = 3 if run.softcap and run.dtype == torch.float32 else 1  # scores up to the cap have absolute errors
    assert measure(run) < capped * TOLERANCE[run.dtype]


@pytest.mark.parametrize("requests", [DECODE, MIXED], ids=["decode", "prefill and decode"])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 23}, {"softcap": 3.0}, {"window": 50, "softcap": 2.0, "sinks": True}],
    ids=str,
)
def test_trees_of_ragged_nodes_are_right(measure: Measure, requests: list[Request], options: dict[str, float]) -> None:
    assert_right(measure, Run(TREE, requests, tiles=TINY, **options))  # type: ignore[arg-type]


def test_keys_loaded_by_the_copy_engine_are_right(measure: Measure) -> None:
    assert_right(measure, Run(TREE, MIXED, dtype=torch.float16, tiles={**TINY, "tma": True}))


@pytest.mark.parametrize("page_size", [1, 8, 64])
def test_pages_may_be_smaller_or_larger_than_a_tile(measure: Measure, page_size: int) -> None:
    assert_right(measure, Run(TREE, DECODE, page_size=page_size, tiles=TINY))


@pytest.mark.parametrize(("kv_heads", "group"), [(3, 1), (1, 3), (2, 8)], ids=["MHA", "odd group", "large group"])
def test_any_number_of_heads_is_right(measure: Measure, kv_heads: int, group: int) -> None:
    assert_right(measure, Run(TREE, MIXED[:2], kv_heads, group, tiles=TINY))


LONG = [Node(None, 150), Node(0, 70)]
LONG_REQUESTS = [*[Request(1, 30)] * 9, Request(0, 1), Request(None, 40, new=20)]


@pytest.mark.parametrize(
    ("head_dim", "dtype", "options"),
    [
        (64, torch.float16, {}),
        (64, torch.bfloat16, {"window": 33, "sinks": True}),
        (96, torch.bfloat16, {}),
        (96, torch.float32, {"softcap": 20.0}),
        (128, torch.float32, {}),
        (128, torch.float16, {"window": 60, "softcap": 20.0, "sinks": True}),
        (256, torch.float16, {}),
        (256, torch.bfloat16, {"window": 60, "softcap": 20.0}),
    ],
    ids=str,
)
def test_the_chosen_shapes_are_right(
    measure: Measure, head_dim: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    assert_right(measure, Run(LONG, LONG_REQUESTS, 1, 4, head_dim, 64, dtype, **options))


@pytest.mark.parametrize(
    ("head_dim", "kv_heads", "group", "page_size"), [(64, 2, 1, 64), (256, 1, 8, 64), (128, 1, 4, 16)], ids=str
)
def test_the_chosen_shapes_are_right_for_other_heads_and_pages(
    measure: Measure, head_dim: int, kv_heads: int, group: int, page_size: int
) -> None:
    assert_right(measure, Run(LONG, LONG_REQUESTS, kv_heads, group, head_dim, page_size, torch.float16, window=90))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(enumerate([torch.float32, torch.float16, torch.bfloat16])), ids=str)
@pytest.mark.parametrize("head_dim", list(enumerate([64, 80, 96, 128, 256])), ids=str)
def test_every_head_size_and_dtype_is_right_on_a_gpu(
    measure: Measure, head_dim: tuple[int, int], dtype: tuple[int, torch.dtype]
) -> None:
    """Options and numbers of heads take turns, so that each is tried with each dtype."""
    kv_heads, group = [(2, 4), (3, 1), (1, 8)][(head_dim[0] + dtype[0]) % 3]
    options = OPTIONS[(head_dim[0] + 2 * dtype[0]) % len(OPTIONS)]
    assert_right(measure, Run(LONG, LONG_REQUESTS, kv_heads, group, head_dim[1], 64, dtype[1], **options))


def test_nodes_without_keys_and_nodes_with_one_child_are_right(measure: Measure) -> None:
    nodes = [Node(None, 0), Node(0, 16), Node(1, 0), Node(2, 3)]
    assert_right(measure, Run(nodes, [Request(3, 1), Request(3, 2), Request(2, 1), Request(0, 5)], tiles=TINY))


def test_more_than_64_splits_are_merged_right(measure: Measure, count_parts: Callable[[Run], int]) -> None:
    requests = [*[Request(0, 5)] * 2, Request(None, 1200)]
    run = Run([Node(None, 1300)], requests, 1, 2, tiles=TINY, slots=300)
    assert count_parts(run) > 64
    assert_right(measure, run)


def test_more_than_16k_shared_tokens_are_right(measure: Measure) -> None:
    assert_right(measure, Run([Node(None, 16500)], [Request(0, 3)] * 3, 1, 2, 16, 64, tiles={"keys": 64}, slots=5))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    nodes: list[Node] = []
    for index in range(draw(st.integers(0, 4))):
        parent = draw(st.none() | st.integers(0, index - 1)) if index else None
        nodes.append(Node(parent, draw(st.integers(0, 40))))
    requests = []
    for _ in range(draw(st.integers(1, 5))):
        own = draw(st.integers(1, 30))
        node = draw(st.none() | st.integers(0, len(nodes) - 1)) if nodes else None
        requests.append(Request(node, own, draw(st.integers(1, own))))
    window = draw(st.none() | st.integers(1, 60))
    kv_heads, group, slots = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 9))
    return Run(nodes, requests, kv_heads, group, tiles=TINY, slots=slots, window=window)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=runs())
def test_random_trees_are_right(measure: Measure, run: Run) -> None:
    assert_right(measure, run)


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize(
    "shape", ["1,16_2048,256", "1,64_8192,128", "1,4,16,512_1024,256,128,32", "8,16,32,256_512,512,256,32"]
)
def test_the_trees_of_the_benchmarks_are_right_on_a_gpu(measure: Measure, shape: str, page_size: int) -> None:
    nodes, requests = fan_out(shape)
    assert_right(measure, Run(nodes, requests, 8, 4, 128, page_size, torch.bfloat16, slots=264))


@pytest.mark.gpu
def test_a_long_prompt_in_chunks_beside_decodes_is_right_on_a_gpu(measure: Measure) -> None:
    requests = [Request(0, 1800, new=1024), Request(None, 700, new=700), *[Request(0, 60)] * 40]
    for options in ({}, {"window": 512}, {"softcap": 30.0, "sinks": True}):
        run = Run([Node(None, 3000)], requests, 8, 4, 128, 64, torch.bfloat16, slots=264)
        assert_right(measure, replace(run, **options))  # type: ignore[arg-type]


Compile = Callable[[AttentionCase], dict[str, Compiled]]


@pytest.fixture(scope="module")
def compiled(hopper: Perform) -> Compile:
    """Compiles for sm_90."""

    def compiled(case: AttentionCase) -> dict[str, Compiled]:
        kernels: dict[str, Compiled] = hopper(compile_attention, case)
        return kernels

    return compiled


def assert_no_spills(kernels: dict[str, Compiled]) -> None:
    assert set(kernels) == {"tree_attention_kernel", "merge_kernel"}
    assert {name: kernel.stack_bytes for name, kernel in kernels.items() if kernel.stack_bytes} == {}


@pytest.mark.parametrize(
    ("head_dim", "options"),
    [(64, OPTIONS[3]), (96, OPTIONS[0]), (128, OPTIONS[0]), (128, OPTIONS[4]), *((256, each) for each in OPTIONS[1:4])],
    ids=str,
)
def test_compiled_kernels_load_by_tma_multiply_by_wgmma_and_do_not_spill(
    compiled: Compile, head_dim: int, options: dict[str, Any]
) -> None:
    kernels = compiled(AttentionCase(torch.bfloat16, head_dim, **options))
    assert_no_spills(kernels)
    kernel = kernels["tree_attention_kernel"]
    assert kernel.wgmma > 0
    assert kernel.tensor_loads >= 8  # keys and values, of large and small blocks, before the loop and in it
    assert 2 * kernel.shared_bytes <= 227 * 1024 - 2 * 1024 or head_dim == 256  # two programs on a multiprocessor


@pytest.mark.parametrize(("kv_heads", "group"), [(40, 1), (1, 32)], ids=["MHA", "MQA"])
def test_compiled_kernels_do_not_spill_for_any_number_of_heads(compiled: Compile, kv_heads: int, group: int) -> None:
    kernels = compiled(AttentionCase(torch.float16, 128, kv_heads, group, requests=512))
    assert_no_spills(kernels)
    assert kernels["tree_attention_kernel"].wgmma > 0


@pytest.mark.parametrize(
    "case", [AttentionCase(torch.bfloat16, 128, page_size=16), AttentionCase(torch.float32, 256)], ids=str
)
def test_compiled_kernels_without_the_copy_engine_copy_asynchronously(compiled: Compile, case: AttentionCase) -> None:
    kernels = compiled(case)
    assert_no_spills(kernels)
    kernel = kernels["tree_attention_kernel"]
    assert kernel.async_copies >= 16
    assert kernel.wgmma > 0 or case.dtype == torch.float32  # no tensor core multiplies float32 exactly
