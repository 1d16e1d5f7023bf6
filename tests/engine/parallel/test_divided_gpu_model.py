from __future__ import annotations

import pytest
import torch

from tests.engine.parallel.divided_runs import divided_tokens_differ
from tests.kernels.kernel_runs import process


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs: test_on_two_gpus.py")
def test_the_gpu_s_path_divided_generates_what_transformers_does_whole() -> None:
    with process(TRITON_INTERPRET="1") as pool:
        assert pool.submit(divided_tokens_differ, "qwen2", 2).result() == ""
