from __future__ import annotations

import pytest
import torch

from tests.engine.parallel.divided_runs import divided_tokens_differ
from tests.kernels.processes import Perform


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs: test_on_two_gpus.py")
def test_the_gpu_s_path_divided_generates_what_transformers_does_whole(kernels: Perform) -> None:
    assert kernels(divided_tokens_differ, "qwen2", 2) == ""
