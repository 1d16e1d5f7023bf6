"""What a mask lets through: as tokens, and as booleans where the logits are. Bits count from the lowest of the first word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from myna.engine.structured.matcher import Mask


def without(mask: Mask, banned: frozenset[int]) -> Mask:
    """The mask without these tokens, if it lets anything else through."""
    if not banned:
        return mask
    left = mask.copy()
    for token in banned:
        left[token // 32] &= ~np.uint32(1 << token % 32)
    return left if left.any() else mask


def tokens(mask: Mask) -> NDArray[np.int64]:
    """The tokens that a mask allows, in order."""
    words = np.flatnonzero(mask)
    if len(words) > len(mask) // 8:
        return np.flatnonzero(_unpack(mask))
    places = np.flatnonzero(_unpack(mask[words]))
    found: NDArray[np.int64] = words[places >> 5] << 5 | places & 31
    return found


def spread(masks: Sequence[Mask], logits: Tensor) -> Tensor:
    """Masks as booleans [len(masks), vocabulary], where the logits are."""
    words, vocabulary, device = np.stack(masks), logits.shape[-1], logits.device
    if device.type == "cpu":
        unpacked = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=vocabulary)
        return torch.from_numpy(unpacked.view(np.bool_))
    return bits(torch.from_numpy(words.view(np.int32)).pin_memory().to(device, non_blocking=True), vocabulary)


def bits(words: Tensor, vocabulary: int) -> Tensor:
    """The bits of int32 words [rows, words] as booleans [rows, vocabulary], the lowest first, wherever they are."""
    spread_out = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device) & 1
    return spread_out.view(len(words), -1)[:, :vocabulary].bool()


def _unpack(mask: Mask) -> NDArray[np.bool_]:
    return np.unpackbits(mask.view(np.uint8), bitorder="little").view(np.bool_)
