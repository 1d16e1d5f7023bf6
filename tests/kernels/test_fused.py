from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.kernels.fused_runs import norm_error, rotary_error, swiglu_error
from tests.kernels.kernel_runs import process

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., float]]:
    """Runs a measurement in a process with the interpreter switched on where there is no GPU."""
    with process(TRITON_INTERPRET="0" if torch.cuda.is_available() else "1") as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "with residual"])
@pytest.mark.parametrize(("size", "one_plus"), [(64, False), (96, True), (1000, False)])
def test_the_norm_is_right(
    run: Callable[..., float], dtype: torch.dtype, size: int, with_residual: bool, one_plus: bool
) -> None:
    assert run(norm_error, dtype, size, with_residual, one_plus) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "page_size"), [(64, 16), (96, 4)])
def test_keys_are_turned_and_stored_and_queries_turned_in_place(
    run: Callable[..., float], dtype: torch.dtype, size: int, page_size: int
) -> None:
    assert run(rotary_error, dtype, size, page_size) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 1300])
def test_swiglu_is_right(run: Callable[..., float], dtype: torch.dtype, size: int) -> None:
    assert run(swiglu_error, dtype, size) < TOLERANCE[dtype]
