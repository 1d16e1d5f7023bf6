from __future__ import annotations

import pytest
import torch

from tests.engine.gpu_runs import (
    a_silent_step_matters,
    cancelling_and_preempting_leaves_nothing_behind,
    draws_repeat_alone_and_batched,
    greedy_tokens_differ,
    misaligned_inputs,
    padding_changes_nothing,
)
from tests.kernels.processes import Perform

COUNT = 20 if torch.cuda.is_available() else 2


@pytest.mark.parametrize(("architecture", "fused"), [("llama", True), ("qwen2", True), ("gemma3_text", False)])
def test_greedy_tokens_are_those_of_transformers(kernels: Perform, architecture: str, fused: bool) -> None:
    assert kernels(greedy_tokens_differ, architecture, fused, COUNT) == ""


def test_seeded_draws_are_the_same_alone_and_batched(kernels: Perform) -> None:
    assert kernels(draws_repeat_alone_and_batched)


def test_requests_that_are_cancelled_or_give_way_leave_no_page_behind(kernels: Perform) -> None:
    assert kernels(cancelling_and_preempting_leaves_nothing_behind)


def test_a_step_that_draws_nothing_leaves_its_keys_and_values_behind(kernels: Perform) -> None:
    silent, nothing = kernels(a_silent_step_matters)
    assert silent < 1e-5
    assert nothing > 1e-3


@pytest.mark.parametrize("bucket", [4, 8], ids=["a draw for each", "fewer draws than tokens"])
def test_a_padded_step_gives_what_an_unpadded_one_does(kernels: Perform, bucket: int) -> None:
    assert kernels(padding_changes_nothing, bucket) < 1e-5


@pytest.mark.parametrize("tokens", [1, 6, 7, 8])
def test_inputs_lie_so_that_no_kernel_is_compiled_anew_for_them(kernels: Perform, tokens: int) -> None:
    assert kernels(misaligned_inputs, tokens) == [0] * 5
