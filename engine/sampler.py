"""Draws the next token of every row of a batch. A draw is a function of the row's logits, its seed and its position.

No random state is kept: the uniform number of a draw is a hash of (seed, position), and everything else is computed
row by row, so that what runs beside a sequence can't change its tokens.

What a grammar forbids is asked as late as the device allows. On a CPU, where little may come, the mask is computed and a token
drawn among those few: that costs less than a draw without a grammar. Elsewhere a token is drawn first, as if there were no
grammar; only where it may not come is the mask computed, and a token drawn among those that may, by another number. Together
that is a draw among these alone. With top-k or top-p it would not be: there, and on a GPU, the mask comes first.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from myna.engine.device import Fetched, send
from myna.engine.request import TokenLogprob
from myna.engine.sampling import SamplingParams
from myna.engine.structured.matcher import Mask

_MASK = 2**64 - 1
# Distances below the largest scaled logit within which to look for the tokens that top-k and top-p keep.
_BOUNDS = (-8.0, -16.0)
_COLDEST = 1e-30
"""Lower temperatures draw no other tokens, but can't be divided by in float32."""
_BLOCK = 512
"""Tokens whose weights are summed up together, so that all of a row need not be added up one by one."""


class Constrained(Protocol):
    """What a grammar says of the next token. Text that has ended has no say: then all is allowed."""

    def allows(self, token: int) -> bool:
        """Whether it may be this one."""

    def narrow(self) -> bool:
        """Whether it may be little, as far as that is known without looking at all that it may be."""

    def mask(self) -> Mask | None:
        """All that it may be."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a draw depends on beside the logits.

    `position`: of the token to be drawn, in its context. `counts`: how often each token has been generated so far.
    `prompt_ids`: distinct tokens of the prompt, needed for a repetition penalty only. `banned`: tokens that can't be
    drawn now. `constraint`: what the output's grammar lets through; it is asked when the forward pass has begun. Where it lets
    nothing through but banned tokens, these can be drawn.
    """

    sampling: SamplingParams
    seed: int
    position: int
    counts: Mapping[int, int]
    prompt_ids: frozenset[int]
    banned: frozenset[int]
    constraint: Constrained | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token. `token` is None where the model's logits are not numbers, and nothing can be drawn."""

    token: int | None
    logprob: TokenLogprob | None = None


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone: splitmix64's mixing function, over both in turn."""
    mixed = _mix(_mix(seed & _MASK) ^ (position & _MASK))
    return (mixed >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class DrawnAlready:
    """The draws of a step that is over."""

    drawn: list[Drawn]

    def read(self) -> list[Drawn]:
        """What was drawn for each row."""
        return self.drawn


class Drawing:
    """The draws of one step, under way on the logits' device. Nothing waits for them before `read`.

    `tokens`: int64 [rows] on that device, always ids of the vocabulary, so that a next step can be fed with them.
    """

    def __init__(self, tokens: Tensor, sound: Tensor, logprobs: _Logprobs | None) -> None:
        self.tokens = tokens
        self._fetched = Fetched(
            tokens, sound, *(() if logprobs is None else (logprobs.own, logprobs.values, logprobs.ids))
        )
        self._logprobs = logprobs

    def read(self) -> list[Drawn]:
        """What was drawn for each row, as soon as it is there."""
        tokens, sound, *rest = self._fetched.wait()
        found = {} if self._logprobs is None else self._logprobs.read(tokens, *rest)
        return [
            Drawn(token if ok else None, found.get(index) if ok else None)
            for index, (token, ok) in enumerate(zip(tokens, sound, strict=True))
        ]


@torch.inference_mode()
def begin(logits: Tensor, rows: Sequence[Row], greedy: tuple[Tensor, Tensor] | None = None) -> Drawing:
    """Begin to draw one token for each row of `logits` [len(rows), vocabulary], which may be changed in place.

    `greedy`: the largest value of each row and where it is, if they are known already. Waits for nothing on a GPU.
    """
    adjusted = [
        index
        for index, row in enumerate(rows)
        if (row.banned and row.constraint is None) or row.sampling.logit_bias or row.sampling.penalised
    ]
    if adjusted:
        logits, greedy = logits.float(), None
        for index in adjusted:
            _adjust(logits[index], rows[index])
    best, tokens = logits.max(dim=-1) if greedy is None else greedy
    asked = _ask(logits, rows)
    if any(row.constraint is not None for row in rows):
        best, tokens = _constrain(logits, rows, best, tokens)
    sound = best.isfinite()
    chosen = [index for index, row in enumerate(rows) if not row.sampling.greedy]
    if chosen:
        tokens = tokens.to(torch.int64, copy=True)
        _draw_rows(logits, rows, chosen, tokens, sound)
    return Drawing(tokens, sound, None if asked is None else asked.of(tokens))


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """Draw one token for each row of `logits` [len(rows), vocabulary], which may be changed in place."""
    return begin(logits, rows).read() if rows else []


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _adjust(logits: Tensor, row: Row) -> None:
    """Bias, penalties and, where no grammar has a say, bans of one row, in place. `logits`: `[vocabulary]`."""
    sampling = row.sampling
    device = logits.device
    if sampling.logit_bias:
        ids = send(list(sampling.logit_bias), torch.int64, device)
        logits[ids] += send(list(sampling.logit_bias.values()), logits.dtype, device)
    if sampling.penalised:
        _penalise(logits, row)
    if row.banned and row.constraint is None:
        logits[send(sorted(row.banned), torch.int64, device)] = float("-inf")


def _constrain(logits: Tensor, rows: Sequence[Row], best: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Take from constrained rows, in place, what their grammars forbid. Returns the largest of each row and where it is."""
    on_host = logits.device.type == "cpu"
    likeliest: list[int] = tokens.tolist() if on_host else []
    blocked: dict[int, Mask] = {}
    for index, row in enumerate(rows):
        # Mostly the likeliest token is allowed: then there is no need of a mask. To look at it on a GPU would be to wait for it.
        if row.constraint is None or (on_host and row.sampling.greedy and _allows(row, likeliest[index])):
            continue
        if _drawn_before_asking(logits, row):
            continue
        mask = row.constraint.mask()
        if mask is not None:
            blocked[index] = _without(mask, row.banned)
    if not blocked:
        return best, tokens
    best, tokens = best.clone(), tokens.to(torch.int64, copy=True)
    if on_host and all(rows[index].sampling.greedy for index in blocked):
        for index, mask in blocked.items():
            best[index], tokens[index] = _likeliest(logits[index], mask)
        return best, tokens
    place = send(list(blocked), torch.int64, logits.device)
    part = logits[place].masked_fill_(~_spread(list(blocked.values()), logits), float("-inf"))
    logits[place] = part
    values, where = part.max(dim=-1)
    best[place], tokens[place] = values.to(best.dtype), where  # what is known already may be wider than the logits
    return best, tokens


def _allows(row: Row, token: int) -> bool:
    return token not in row.banned and row.constraint is not None and row.constraint.allows(token)


def _drawn_before_asking(logits: Tensor, row: Row) -> bool:
    """Whether a row's token is drawn before its grammar is asked; see the module."""
    return (
        row.constraint is not None and logits.device.type == "cpu" and not row.sampling.greedy and not row.sampling.cuts
    )


def _draw_rows(logits: Tensor, rows: Sequence[Row], chosen: Sequence[int], tokens: Tensor, sound: Tensor) -> None:
    """Draw for the chosen rows, into `tokens` [rows]. Rows for which nothing can be drawn are marked in `sound` [rows]."""
    asking = [index for index in chosen if _drawn_before_asking(logits, rows[index])]
    few = {index for index in asking if _narrow(rows[index])}
    free = [index for index in chosen if index not in few]
    if free:
        place = send(free, torch.int64, logits.device)
        part = logits if len(free) == len(rows) else logits[place]
        tokens[place] = _draw(part.float(), [rows[index] for index in free])
    if asking:
        _draw_allowed(logits, rows, asking, few, tokens.numpy(), sound.numpy())


def _draw_allowed(
    logits: Tensor,
    rows: Sequence[Row],
    asking: Sequence[int],
    few: Container[int],
    tokens: NDArray[np.int64],
    sound: NDArray[np.bool_],
) -> None:
    """Draw for rows that their grammars allow `few` tokens, and again for those of `asking` whose token may not come."""
    for index in asking:
        row = rows[index]
        if index in few:
            number = uniform(row.seed, row.position)
        elif _allows(row, int(tokens[index])):
            continue
        else:
            number = uniform(_mix(row.seed & _MASK), row.position)
        mask = None if row.constraint is None else row.constraint.mask()
        ids = () if mask is None else _ids(_without(mask, row.banned))
        if sound[index] and len(ids):
            tokens[index] = ids[_draw_of(logits[index].float().numpy()[ids], row.sampling.temperature, number)]
        else:
            sound[index] = False


def _narrow(row: Row) -> bool:
    return row.constraint is not None and row.constraint.narrow()


def _draw_of(logits: NDArray[np.float32], temperature: float, number: float) -> int:
    """Draw one of a few, by inverting at this number: the place of its logit."""
    weights = logits.astype(np.float64)
    weights -= weights.max()
    weights /= max(temperature, _COLDEST)
    cumulative = np.exp(weights, out=weights).cumsum()
    wanted = min(number * cumulative[-1], np.nextafter(cumulative[-1], 0))
    return int(np.searchsorted(cumulative, wanted, side="right"))


def _without(mask: Mask, banned: frozenset[int]) -> Mask:
    """The mask without these tokens, if it lets anything else through."""
    if not banned:
        return mask
    left = mask.copy()
    for token in banned:
        left[token // 32] &= ~np.uint32(1 << token % 32)
    return left if left.any() else mask


def _likeliest(logits: Tensor, mask: Mask) -> tuple[float, int]:
    """The largest of those that a mask allows, and which it is."""
    ids = _ids(mask)
    if not len(ids):
        return -math.inf, 0
    values = logits.float().numpy()[ids]
    best = values.argmax()
    return float(values[best]), int(ids[best])


def _ids(mask: Mask) -> NDArray[np.int64]:
    """The tokens that a mask allows, in order."""
    words = np.flatnonzero(mask)
    if len(words) > len(mask) // 8:
        return np.flatnonzero(_unpack(mask))
    places = np.flatnonzero(_unpack(mask[words]))
    ids: NDArray[np.int64] = words[places >> 5] << 5 | places & 31
    return ids


def _unpack(mask: Mask) -> NDArray[np.bool_]:
    return np.unpackbits(mask.view(np.uint8), bitorder="little").view(np.bool_)


def _spread(masks: Sequence[Mask], logits: Tensor) -> Tensor:
    """Masks as booleans [len(masks), vocabulary], where the logits are."""
    words, vocabulary, device = np.stack(masks), logits.shape[-1], logits.device
    if device.type == "cpu":
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=vocabulary)
        return torch.from_numpy(bits.view(np.bool_))
    return _bits(torch.from_numpy(words.view(np.int32)).pin_memory().to(device, non_blocking=True), vocabulary)


def _bits(words: Tensor, vocabulary: int) -> Tensor:
    """The bits of int32 words [rows, words] as booleans [rows, vocabulary], the lowest first, wherever they are."""
    spread = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device) & 1
    return spread.view(len(words), -1)[:, :vocabulary].bool()


def _penalise(logits: Tensor, row: Row) -> None:
    sampling = row.sampling
    device = logits.device
    if sampling.repetition_penalty != 1:
        seen = send(sorted(row.prompt_ids.union(row.counts)), torch.int64, device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if row.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = send(list(row.counts), torch.int64, device)
        counts = send(list(row.counts.values()), logits.dtype, device)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Draw by inverting the cumulative distribution at each row's uniform number. No row is greedy. Returns int64 [rows]."""
    device = logits.device
    temperature = send([max(row.sampling.temperature, _COLDEST) for row in rows], logits.dtype, device)
    # Taking the maximum off first keeps a tiny temperature from overflowing. One copy of the logits serves for all that follows.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None])
    floor = _floor(scaled, rows)
    if floor is not None:
        scaled.masked_fill_(scaled < floor[:, None], float("-inf"))
    numbers = send([uniform(row.seed, row.position) for row in rows], torch.float64, device)
    invert = _invert_by_blocks if device.type == "cpu" else _invert
    return invert(scaled.exp_(), numbers).clamp_(max=logits.shape[-1] - 1)  # what are no numbers leads anywhere


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


def _floor(scaled: Tensor, rows: Sequence[Row]) -> Tensor | None:
    """The lowest scaled logit that top-k, top-p and min-p let through in each row; None where no row cuts.

    Ties with the last token let through are let through too: which of them came first is no property of the model.
    """
    floor = torch.full((len(rows),), -math.inf, dtype=scaled.dtype, device=scaled.device)
    cutting = [index for index, row in enumerate(rows) if row.sampling.top_k is not None or row.sampling.top_p < 1]
    if cutting:
        place = send(cutting, torch.int64, scaled.device)
        part = scaled if len(cutting) == len(rows) else scaled[place]
        floor[place] = _cut(part, [rows[index].sampling for index in cutting])
    if any(row.sampling.min_p for row in rows):
        shares = send([row.sampling.min_p for row in rows], scaled.dtype, scaled.device)
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


@dataclass(frozen=True, slots=True)
class _Logprobs:
    """Log-probabilities of the rows that ask for them. `own` [asking], `values` and `ids` [asking, most]."""

    counts: Mapping[int, int]
    """Row to the number of alternatives that it wants, in the order of the tensors."""
    own: Tensor
    values: Tensor
    ids: Tensor

    def read(
        self,
        tokens: Sequence[int],
        own: Sequence[float],
        values: Sequence[Sequence[float]],
        ids: Sequence[Sequence[int]],
    ) -> dict[int, TokenLogprob]:
        """By row, from the same tensors as lists."""
        return {
            index: TokenLogprob(tokens[index], own[at], tuple(zip(ids[at][:count], values[at][:count], strict=True)))
            for at, (index, count) in enumerate(self.counts.items())
        }


@dataclass(frozen=True, slots=True)
class _Asked:
    """Log-probabilities of all tokens [asking, vocabulary], for the rows that ask; see `_Logprobs`."""

    counts: Mapping[int, int]
    asking: Tensor
    every: Tensor

    def of(self, tokens: Tensor) -> _Logprobs:
        """Of the drawn ones, and the likeliest."""
        most = min(max(self.counts.values()), self.every.shape[-1])
        values, ids = self.every.topk(most, dim=-1)
        own = self.every.gather(1, tokens[self.asking, None].long())[:, 0]
        return _Logprobs(self.counts, own, values, ids)


def _ask(logits: Tensor, rows: Sequence[Row]) -> _Asked | None:
    """The distribution after bias and penalties, for the rows that ask; None where none does."""
    counts = {index: row.sampling.logprobs for index, row in enumerate(rows) if row.sampling.logprobs is not None}
    if not counts:
        return None
    asking = send(list(counts), torch.int64, logits.device)
    return _Asked(counts, asking, torch.log_softmax(logits[asking].float(), dim=-1))
