from __future__ import annotations

import torch

from tests.engine.triton_runs import difference_from_torch
from tests.kernels.kernel_runs import process


def test_steps_give_what_the_torch_implementation_gives() -> None:
    with process(TRITON_INTERPRET="0" if torch.cuda.is_available() else "1") as pool:
        assert pool.submit(difference_from_torch, 32, 2).result() < 2e-6
