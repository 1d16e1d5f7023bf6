from __future__ import annotations

from tests.engine.triton_runs import difference_from_torch
from tests.kernels.processes import Perform


def test_steps_give_what_the_torch_implementation_gives(kernels: Perform) -> None:
    assert kernels(difference_from_torch, 32, 2) < 2e-6
