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
from myna.engine.draw import draw, draw_one, uniform, uniform_again
from myna.engine.request import TokenLogprob
from myna.engine.sampling import SamplingParams
from myna.engine.structured import bits
from myna.engine.structured.matcher import Mask


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
            blocked[index] = bits.without(mask, row.banned)
    if not blocked:
        return best, tokens
    best, tokens = best.clone(), tokens.to(torch.int64, copy=True)
    if on_host and all(rows[index].sampling.greedy for index in blocked):
        for index, mask in blocked.items():
            best[index], tokens[index] = _likeliest(logits[index], mask)
        return best, tokens
    place = send(list(blocked), torch.int64, logits.device)
    part = logits[place].masked_fill_(~bits.spread(list(blocked.values()), logits), float("-inf"))
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
        numbers = [uniform(rows[index].seed, rows[index].position) for index in free]
        tokens[place] = draw(part.float(), [rows[index].sampling for index in free], numbers)
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
            number = uniform_again(row.seed, row.position)
        mask = None if row.constraint is None else row.constraint.mask()
        ids = () if mask is None else bits.tokens(bits.without(mask, row.banned))
        if sound[index] and len(ids):
            tokens[index] = ids[draw_one(logits[index].float().numpy()[ids], row.sampling.temperature, number)]
        else:
            sound[index] = False


def _narrow(row: Row) -> bool:
    return row.constraint is not None and row.constraint.narrow()


def _likeliest(logits: Tensor, mask: Mask) -> tuple[float, int]:
    """The largest of those that a mask allows, and which it is."""
    ids = bits.tokens(mask)
    if not len(ids):
        return -math.inf, 0
    values = logits.float().numpy()[ids]
    best = values.argmax()
    return float(values[best]), int(ids[best])


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
