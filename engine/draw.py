"""Draws tokens by inverting each row's cumulative distribution at a number that is given: same number, same token.

Rows are computed one by one, so that what runs beside a sequence can't change its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from myna.engine.device import send
from myna.engine.sampling import SamplingParams

_MASK = 2**64 - 1
# Distances below the largest scaled logit within which to look for the tokens that top-k and top-p keep.
_BOUNDS = (-8.0, -16.0)
_COLDEST = 1e-30
"""Lower temperatures draw no other tokens, but can't be divided by in float32."""
_BLOCK = 512
"""Tokens whose weights are summed up together, so that all of a row need not be added up one by one."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone: splitmix64's mixing function, over both in turn."""
    return _number(_mix(seed & _MASK), position)


def uniform_again(seed: int, position: int) -> float:
    """Another such number, for a second draw at the same place."""
    return _number(_mix(_mix(seed & _MASK)), position)


def _number(mixed: int, position: int) -> float:
    return (_mix(mixed ^ (position & _MASK)) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def draw(logits: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]) -> Tensor:
    """Draw a token for each row of logits [rows, vocabulary], which stay as they are: int64 [rows]. No row is greedy.

    `numbers`: one of [0, 1) for each row.
    """
    device = logits.device
    temperature = send([max(one.temperature, _COLDEST) for one in params], logits.dtype, device)
    # Taking the maximum off first keeps a tiny temperature from overflowing. One copy of the logits serves for all that follows.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None])
    floor = _floor(scaled, params)
    if floor is not None:
        scaled.masked_fill_(scaled < floor[:, None], float("-inf"))
    invert = _invert_by_blocks if device.type == "cpu" else _invert
    return invert(scaled.exp_(), send(numbers, torch.float64, device)).clamp_(
        max=logits.shape[-1] - 1
    )  # what are no numbers leads anywhere


def draw_one(logits: NDArray[np.float32], temperature: float, number: float) -> int:
    """Draw one of a few, by inverting at this number: the place of its logit."""
    weights = logits.astype(np.float64)
    weights -= weights.max()
    weights /= max(temperature, _COLDEST)
    cumulative = np.exp(weights, out=weights).cumsum()
    wanted = min(number * cumulative[-1], np.nextafter(cumulative[-1], 0))
    return int(np.searchsorted(cumulative, wanted, side="right"))


def _invert(weights: Tensor, parts: Tensor) -> Tensor:
    """Where the sum of weights [rows, n] passes these parts [rows] of the whole: int64 [rows]. Never at a weight of 0."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    return _passed(cumulative, parts[:, None] * total)


def _passed(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """Where sums [rows, n] first exceed `wanted` [rows, 1]: int64 [rows]."""
    total = cumulative[:, -1:]
    # Below the total even where a product rounds up to it: a token that is cut off must never be drawn.
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0]


def _invert_by_blocks(weights: Tensor, parts: Tensor) -> Tensor:
    """`_invert` on a CPU, where to add up weights one by one takes most of the time: finds the block, then the place in it."""
    rows, vocabulary = weights.shape
    if rest := -vocabulary % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, rest))
    blocks = weights.view(rows, -1, _BLOCK)
    sums = blocks.sum(dim=-1)
    cumulative = sums.cumsum(dim=-1, dtype=torch.float64)
    wanted = parts[:, None] * cumulative[:, -1:]
    block = _passed(cumulative, wanted).clamp_(max=blocks.shape[1] - 1)[:, None]
    before = cumulative.gather(1, block) - sums.gather(1, block)
    inside = blocks[torch.arange(rows), block[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    return block[:, 0] * _BLOCK + _passed(inside, (wanted - before).clamp_(min=0))


def _floor(scaled: Tensor, params: Sequence[SamplingParams]) -> Tensor | None:
    """The lowest scaled logit that top-k, top-p and min-p let through in each row; None where no row cuts.

    Ties with the last token let through are let through too: which of them came first is no property of the model.
    """
    floor = torch.full((len(params),), -math.inf, dtype=scaled.dtype, device=scaled.device)
    cutting = [index for index, one in enumerate(params) if one.top_k is not None or one.top_p < 1]
    if cutting:
        place = send(cutting, torch.int64, scaled.device)
        part = scaled if len(cutting) == len(params) else scaled[place]
        floor[place] = _cut(part, [params[index] for index in cutting])
    if any(one.min_p for one in params):
        shares = send([one.min_p for one in params], scaled.dtype, scaled.device)
        floor = torch.maximum(floor, shares.log())
    elif not cutting:
        return None
    return floor


def _cut(scaled: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The floors that top-k and top-p set, `[len(params)]`. `scaled`: `[len(params), vocabulary]`, at most 0."""
    device, vocabulary = scaled.device, scaled.shape[-1]
    limit = send([min(one.top_k or vocabulary, vocabulary) for one in params], torch.int64, device)
    share = send([one.top_p for one in params], torch.float64, device)
    mass = torch.exp(scaled).sum(dim=-1, dtype=torch.float64) * share
    ordered = _largest(scaled, limit, mass)
    cumulative = torch.exp(ordered).cumsum(dim=-1, dtype=torch.float64)
    last = limit.clamp(max=ordered.shape[-1])[:, None] - 1
    limited = limit < vocabulary
    floor = torch.where(limited, ordered.gather(1, last)[:, 0], -math.inf)
    wanted = torch.where(limited, cumulative.gather(1, last)[:, 0] * share, mass)
    nucleus = torch.searchsorted(cumulative, wanted[:, None]).clamp(max=ordered.shape[-1] - 1)
    return torch.where(share < 1, torch.maximum(floor, ordered.gather(1, nucleus)[:, 0]), floor)


def _largest(scaled: Tensor, limit: Tensor, mass: Tensor) -> Tensor:
    """Enough of each row's largest values, descending: `limit` of them, or as many as have `mass` together.

    On a CPU to sort whole rows takes most of a step's time, and nearly all of a row is far below its maximum.
    """
    for bound in _BOUNDS if scaled.device.type == "cpu" else ():
        parts = [row[row > bound] for row in scaled]
        counts = torch.tensor([len(part) for part in parts])
        masses = torch.stack([torch.exp(part).sum(dtype=torch.float64) for part in parts])
        if bool(((counts >= limit) | (masses >= mass) & (limit == scaled.shape[-1])).all()):
            padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-math.inf)
            return padded.sort(dim=-1, descending=True).values
    return scaled.sort(dim=-1, descending=True).values
