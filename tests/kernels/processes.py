"""Processes for kernels, kept for all tests: Triton reads whether to interpret when it is first imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

Perform = Callable[..., Any]
"""Calls a function with some arguments, all of which can be pickled, and returns what it does."""


@pytest.fixture(scope="session")
def kernels() -> Iterator[Perform]:
    """A process with the interpreter switched on where there is no GPU."""
    import torch

    yield from _process(TRITON_INTERPRET="0" if torch.cuda.is_available() else "1")


@pytest.fixture(scope="session")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Perform]:
    """A process that compiles for sm_90, and doesn't interpret."""
    cache = str(tmp_path_factory.mktemp("triton"))
    yield from _process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache, TRITON_DEFAULT_FP_FUSION="1")


def _process(**environment: str) -> Iterator[Perform]:
    from tests.kernels.kernel_runs import process

    with process(**environment) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
