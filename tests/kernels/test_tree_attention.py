"""The Triton kernel against the float64 reference, through Triton's interpreter or, where there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.kernel_runs import Compiled, Run, compile_for_hopper, error_of, process
from tests.kernels.paged_trees import Node, Request, fan_out

Measure = Callable[[Run], float]

TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 6e-3}
"""Relative norm of the error: about twice what a right kernel shows."""

TINY = {"small_rows": 4, "large_rows": 16, "keys": 16}
TREE = [Node(None, 37), Node(0, 20), Node(1, 5), Node(None, 16), Node(0, 64)]
DECODE = [Request(2, 3), Request(2, 17), Request(1, 1), Request(3, 16), Request(None, 9), *[Request(4, 2)] * 6]
MIXED = [Request(1, 40, new=13), Request(2, 1), Request(None, 19, new=19), Request(4, 5, new=5), Request(4, 7)]


@pytest.fixture(scope="module")
def measure() -> Iterator[Measure]:
    """Measures a run's error, in a process with the interpreter switched on where there is no GPU."""
    with process(TRITON_INTERPRET="0" if torch.cuda.is_available() else "1") as pool:
        yield lambda run: pool.submit(error_of, run).result()


def assert_right(measure: Measure, run: Run) -> None:
    assert measure(run) < TOLERANCE[run.dtype]


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


def assert_chosen_shape_is_right(measure: Measure, head_dim: int, dtype: torch.dtype) -> None:
    nodes = [Node(None, 150), Node(0, 70)]
    requests = [*[Request(1, 30)] * 9, Request(0, 1), Request(None, 40, new=20)]
    assert_right(measure, Run(nodes, requests, 1, 4, head_dim, 64, dtype))


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(64, torch.float16), (96, torch.bfloat16), (128, torch.float32), (256, torch.float16)],
    ids=str,
)
def test_the_chosen_shapes_are_right(measure: Measure, head_dim: int, dtype: torch.dtype) -> None:
    assert_chosen_shape_is_right(measure, head_dim, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_the_chosen_shapes_are_right_on_a_gpu(measure: Measure, head_dim: int, dtype: torch.dtype) -> None:
    assert_chosen_shape_is_right(measure, head_dim, dtype)


def test_nodes_without_keys_and_nodes_with_one_child_are_right(measure: Measure) -> None:
    nodes = [Node(None, 0), Node(0, 16), Node(1, 0), Node(2, 3)]
    assert_right(measure, Run(nodes, [Request(3, 1), Request(3, 2), Request(2, 1), Request(0, 5)], tiles=TINY))


def test_more_than_64_splits_are_merged_right(measure: Measure) -> None:
    run = Run([Node(None, 1300)], [Request(0, 5)] * 5, 1, 2, tiles=TINY, slots=80)
    assert_right(measure, replace(run, requests=[*run.requests, Request(None, 590)]))


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Compiled]]:
    """Compiles for sm_90, in a process that doesn't interpret."""
    cache = str(tmp_path_factory.mktemp("triton"))
    with process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache, TRITON_DEFAULT_FP_FUSION="1") as pool:
        yield lambda *sizes, **options: pool.submit(compile_for_hopper, *sizes, **options).result()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "options"),
    [(torch.bfloat16, 128, ()), (torch.float16, 64, ("softcap", "sinks", "window")), (torch.bfloat16, 256, ())],
    ids=str,
)
def test_compiled_kernels_load_by_tma_multiply_by_wgmma_and_do_not_spill(
    compiled: Callable[..., Compiled], dtype: torch.dtype, head_dim: int, options: tuple[str, ...]
) -> None:
    chosen = {name: name in options for name in ("window", "softcap", "sinks")}
    kernel = compiled(dtype, head_dim, 4, 64, **chosen)
    assert kernel.stack_bytes == 0
    assert kernel.wgmma > 0
    assert kernel.tensor_loads >= 8  # keys and values, of large and small blocks, before the loop and in it
    assert 2 * kernel.shared_bytes <= 227 * 1024 - 2 * 1024 or head_dim == 256  # two programs on a multiprocessor


def test_compiled_kernels_for_small_pages_copy_asynchronously(compiled: Callable[..., Compiled]) -> None:
    kernel = compiled(torch.bfloat16, 128, 4, 16, window=False, softcap=False, sinks=False)
    assert kernel.stack_bytes == 0
    assert kernel.wgmma > 0
    assert kernel.async_copies > 16
