from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.engine.structured import bits
from myna.engine.structured.matcher import Mask


def mask(vocabulary: int, *tokens: int) -> Mask:
    words = np.zeros(-(-vocabulary // 32), np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << token % 32)
    return words


@pytest.mark.parametrize("vocabulary", [32, 33, 300])
def test_a_mask_spreads_the_same_on_a_device_as_on_the_host(vocabulary: int) -> None:
    masks = [mask(vocabulary, 0, 31, vocabulary - 1), mask(vocabulary, 5)]
    there = torch.from_numpy(np.stack(masks).view(np.int32))
    here = bits.spread(masks, torch.zeros(2, vocabulary))
    assert torch.equal(bits.bits(there, vocabulary), here)
    assert here.sum(dim=1).tolist() == [len({0, 31, vocabulary - 1}), 1]


@given(st.sets(st.integers(0, 299)))
def test_the_tokens_of_a_mask_are_those_that_it_lets_through_in_order(allowed: set[int]) -> None:
    assert bits.tokens(mask(300, *allowed)).tolist() == sorted(allowed)


def test_a_ban_that_would_leave_nothing_is_no_ban() -> None:
    both = mask(64, 3, 40)
    assert bits.tokens(bits.without(both, frozenset({3}))).tolist() == [40]
    assert bits.tokens(bits.without(both, frozenset({3, 40}))).tolist() == [3, 40]
    assert bits.tokens(both).tolist() == [3, 40], "the mask itself stays as it was"
