from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.kernels.compiling import compile_exchange
from tests.kernels.exchange_runs import CALLS, exchange_side
from tests.kernels.kernel_runs import process
from tests.kernels.processes import Perform


def test_all_ranks_get_the_sums_of_all_bit_by_bit_the_same_and_every_rank_s_columns(tmp_path: Path) -> None:
    ranks = 3
    with ExitStack() as stack:
        pools = [stack.enter_context(process(TRITON_INTERPRET="1")) for _ in range(ranks)]
        futures = [pool.submit(exchange_side, rank, ranks, tmp_path) for rank, pool in enumerate(pools)]
        sides = [future.result(timeout=60) for future in futures]
    assert max(worst for worst, _ in sides) < 1e-6
    assert all(made == sides[0][1] for _, made in sides)
    assert len(sides[0][1]) == len(CALLS)


def test_compiled_for_hopper_no_kernel_of_the_exchange_spills(hopper: Perform) -> None:
    kernels = hopper(compile_exchange)
    assert {name: kernel.stack_bytes for name, kernel in kernels.items()} == {
        "_sum_and_norm_kernel": 0,
        "_join_kernel": 0,
    }
