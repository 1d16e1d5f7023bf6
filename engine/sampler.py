"""Draws the next token of every row of a batch. A draw is a function of the row's logits, its seed and its position.

No random state is kept: the uniform number of a draw is a hash of (seed, position), and everything else is computed
row by row, so that what runs beside a sequence can't change its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from myna.engine.request import TokenLogprob
from myna.engine.sampling import SamplingParams

_MASK = 2**64 - 1
# Distances below the largest scaled logit within which to look for the tokens that top-k and top-p keep.
_BOUNDS = (-8.0, -16.0)


@dataclass(frozen=True, slots=True)
class Row:
    """What a draw depends on beside the logits.

    `position`: of the token to be drawn, in its context. `counts`: how often each token has been generated so far.
    `prompt_ids`: distinct tokens of the prompt, needed for a repetition penalty only. `banned`: tokens that can't be
    drawn now.
    """

    sampling: SamplingParams
    seed: int
    position: int
    counts: Mapping[int, int]
    prompt_ids: frozenset[int]
    banned: frozenset[int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token. `token` is None where the model's logits are not numbers, and nothing can be drawn."""

    token: int | None
    logprob: TokenLogprob | None = None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone: splitmix64's mixing function, over both in turn."""
    mixed = _mix(_mix(seed & _MASK) ^ (position & _MASK))
    return (mixed >> 11) * 2.0**-53


@torch.inference_mode()
def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """Draw one token for each row of `logits`, float32 `[len(rows), vocabulary]`, which may be changed in place."""
    if not rows:
        return []
    for index, row in enumerate(rows):
        if row.banned or row.sampling.logit_bias or row.sampling.penalised:
            _adjust(logits[index], row)
    best, arg = (values.tolist() for values in logits.max(dim=-1))
    sound = [value == value and abs(value) != float("inf") for value in best]
    tokens: list[int] = arg
    chosen = [index for index, row in enumerate(rows) if not row.sampling.greedy and sound[index]]
    if chosen:
        part = logits if len(chosen) == len(rows) else logits[chosen]
        for index, token in zip(chosen, _draw(part, [rows[index] for index in chosen]), strict=True):
            tokens[index] = token
    logprobs = _logprobs(logits, rows, tokens, sound)
    return [Drawn(tokens[index] if ok else None, logprobs.get(index)) for index, ok in enumerate(sound)]


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _adjust(logits: torch.Tensor, row: Row) -> None:
    """Bias, penalties and bans of one row, in place. `logits`: `[vocabulary]`."""
    sampling = row.sampling
    device = logits.device
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=device)
        logits[ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype, device=device)
    if sampling.penalised:
        _penalise(logits, row)
    if row.banned:
        logits[torch.tensor(sorted(row.banned), device=device)] = float("-inf")


def _penalise(logits: torch.Tensor, row: Row) -> None:
    sampling = row.sampling
    device = logits.device
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(row.prompt_ids.union(row.counts)), dtype=torch.long, device=device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if row.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(row.counts), device=device)
        counts = torch.tensor(list(row.counts.values()), dtype=logits.dtype, device=device)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """Draw by inverting the cumulative distribution at each row's uniform number. No row is greedy."""
    device = logits.device
    temperature = torch.tensor([row.sampling.temperature for row in rows], dtype=logits.dtype, device=device)
    # Taking the maximum off first keeps a tiny temperature from overflowing.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None]
    floor = _floor(scaled, rows)
    if floor is not None:
        scaled = scaled.masked_fill(scaled < floor[:, None], float("-inf"))
    cumulative = torch.exp(scaled).cumsum(dim=-1, dtype=torch.float64)
    numbers = torch.tensor([uniform(row.seed, row.position) for row in rows], dtype=torch.float64, device=device)
    total = cumulative[:, -1:]
    # Below the total even where the product rounds up to it: a token that is cut off must never be drawn.
    wanted = torch.minimum(numbers[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    tokens: list[int] = drawn.tolist()
    return tokens


def _floor(scaled: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor | None:
    """The lowest scaled logit that top-k, top-p and min-p let through in each row; None where no row cuts.

    Ties with the last token let through are let through too: which of them came first is no property of the model.
    """
    floor = torch.full((len(rows),), -math.inf, dtype=scaled.dtype, device=scaled.device)
    cutting = [index for index, row in enumerate(rows) if row.sampling.top_k is not None or row.sampling.top_p < 1]
    if cutting:
        part = scaled if len(cutting) == len(rows) else scaled[cutting]
        floor[cutting] = _cut(part, [rows[index].sampling for index in cutting])
    if any(row.sampling.min_p for row in rows):
        shares = torch.tensor([row.sampling.min_p for row in rows], dtype=scaled.dtype, device=scaled.device)
        floor = torch.maximum(floor, shares.log())
    elif not cutting:
        return None
    return floor


def _cut(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """The floors that top-k and top-p set, `[len(params)]`. `scaled`: `[len(params), vocabulary]`, at most 0."""
    device, vocabulary = scaled.device, scaled.shape[-1]
    limit = torch.tensor([min(one.top_k or vocabulary, vocabulary) for one in params], device=device)
    share = torch.tensor([one.top_p for one in params], dtype=torch.float64, device=device)
    mass = torch.exp(scaled).sum(dim=-1, dtype=torch.float64) * share
    ordered = _largest(scaled, limit, mass)
    cumulative = torch.exp(ordered).cumsum(dim=-1, dtype=torch.float64)
    last = limit.clamp(max=ordered.shape[-1])[:, None] - 1
    limited = limit < vocabulary
    floor = torch.where(limited, ordered.gather(1, last)[:, 0], -math.inf)
    wanted = torch.where(limited, cumulative.gather(1, last)[:, 0] * share, mass)
    nucleus = torch.searchsorted(cumulative, wanted[:, None]).clamp(max=ordered.shape[-1] - 1)
    return torch.where(share < 1, torch.maximum(floor, ordered.gather(1, nucleus)[:, 0]), floor)


def _largest(scaled: torch.Tensor, limit: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
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


def _logprobs(
    logits: torch.Tensor, rows: Sequence[Row], tokens: Sequence[int], sound: Sequence[bool]
) -> dict[int, TokenLogprob]:
    """Log-probabilities by row, for the rows that ask for them, of the distribution after bias and penalties."""
    asking = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None and sound[index]]
    if not asking:
        return {}
    every = torch.log_softmax(logits[asking], dim=-1)
    most = min(max(rows[index].sampling.logprobs or 0 for index in asking), logits.shape[-1])
    values, ids = (part.tolist() for part in every.topk(most, dim=-1))
    found: dict[int, TokenLogprob] = {}
    for place, index in enumerate(asking):
        count = rows[index].sampling.logprobs or 0
        alternatives = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        found[index] = TokenLogprob(tokens[index], float(every[place, tokens[index]]), alternatives)
    return found
