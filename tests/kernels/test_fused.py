from __future__ import annotations

import pytest
import torch

from tests.kernels.compiling import compile_few_rows, compile_fused, compile_gated
from tests.kernels.fused_runs import (
    few_rows_error,
    gated_error,
    gated_of_many_rows_error,
    largest_is_right,
    norm_error,
    norm_of_parts_error,
    normed_heads_error,
    rotary_error,
    swiglu_error,
)
from tests.kernels.processes import Perform

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "with residual"])
@pytest.mark.parametrize(("size", "one_plus"), [(64, False), (96, True), (1000, False)])
def test_the_norm_is_right(
    kernels: Perform, dtype: torch.dtype, size: int, with_residual: bool, one_plus: bool
) -> None:
    assert kernels(norm_error, dtype, size, with_residual, one_plus) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "page_size"), [(64, 16), (96, 4)])
def test_keys_are_turned_and_stored_and_queries_turned_in_place(
    kernels: Perform, dtype: torch.dtype, size: int, page_size: int
) -> None:
    assert kernels(rotary_error, dtype, size, page_size) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 1300])
def test_swiglu_is_right(kernels: Perform, dtype: torch.dtype, size: int) -> None:
    assert kernels(swiglu_error, dtype, size) < TOLERANCE[dtype]


def test_compiled_for_hopper_no_fused_kernel_spills(hopper: Perform) -> None:
    kernels = hopper(compile_fused, torch.bfloat16)
    assert {name: kernel.stack_bytes for name, kernel in kernels.items()} == dict.fromkeys(kernels, 0)
    assert len(kernels) == 4


@pytest.mark.parametrize("rows", [1, 64])
def test_compiled_for_hopper_products_of_few_rows_use_wgmma_copy_asynchronously_and_do_not_spill(
    hopper: Perform, rows: int
) -> None:
    kernels = hopper(compile_few_rows, rows)
    assert [kernel.stack_bytes for kernel in kernels] == [0, 0, 0]
    assert all(kernel.async_copies >= 8 for kernel in kernels), "weights must stream while tensor cores work"
    assert all(kernel.wgmma > 0 for kernel in kernels)


def test_another_number_of_rows_compiles_nothing_anew(hopper: Perform) -> None:
    few = [{kernel.hash for kernel in hopper(compile_few_rows, rows)} for rows in (64, 49, 33)]
    assert few[0] == few[1] == few[2]
    assert hopper(compile_gated, 1024).hash == hopper(compile_gated, 1001).hash


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_are_normed_before_they_are_turned(kernels: Perform, dtype: torch.dtype) -> None:
    assert kernels(normed_heads_error, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_a_product_are_summed_by_the_norm(kernels: Perform, dtype: torch.dtype) -> None:
    assert kernels(norm_of_parts_error, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("rows", [1, 19, 64])
@pytest.mark.parametrize(("bias", "summed"), [(False, True), (True, False), (False, False)])
def test_products_of_few_rows_are_right(
    kernels: Perform, dtype: torch.dtype, rows: int, bias: bool, summed: bool
) -> None:
    assert kernels(few_rows_error, dtype, rows, bias, summed) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("rows", [1, 33])
def test_gated_products_of_few_rows_are_right(kernels: Perform, dtype: torch.dtype, rows: int) -> None:
    assert kernels(gated_error, dtype, rows) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("rows", [1, 300, *([2200] if torch.cuda.is_available() else [])])
def test_gated_products_of_many_rows_are_right(kernels: Perform, dtype: torch.dtype, rows: int) -> None:
    assert kernels(gated_of_many_rows_error, dtype, rows) < TOLERANCE[dtype]


def test_compiled_for_hopper_the_gated_product_uses_wgmma_loads_by_tma_and_does_not_spill(
    hopper: Perform,
) -> None:
    kernel = hopper(compile_gated, 1024)
    assert kernel.stack_bytes == 0
    assert kernel.wgmma >= 8, "four steps of 16 numbers, for gates and for ups"
    assert kernel.tensor_loads >= 3 * 4, "three tiles, of four steps at once"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(3, 100), (5, 9001)])
def test_the_largest_logit_is_the_first_of_equals(
    kernels: Perform, dtype: torch.dtype, rows: int, columns: int
) -> None:
    assert kernels(largest_is_right, dtype, rows, columns)
