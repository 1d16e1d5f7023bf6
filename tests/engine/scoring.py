"""What an engine says, held against transformers' own logits for the same tokens, wherever both run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myna.engine.engine import Engine
from myna.engine.request import Delta, TokenLogprob
from tests.engine.driving import ask, drain, greedy

ALTERNATIVES = 20


@dataclass(frozen=True)
class Spoken:
    """A greedy output: each token with the log-probabilities that it was chosen by."""

    prompt: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]

    @property
    def tokens(self) -> list[int]:
        return [entry.token_id for entry in self.logprobs]


def speak(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> list[Spoken]:
    """Greedy outputs of `tokens` tokens for prompts that are submitted together."""
    for number, prompt in enumerate(prompts):
        engine.submit(ask(f"{number}", prompt, greedy(tokens, ignore_eos=True, logprobs=ALTERNATIVES)))
    said = drain(engine)
    assert not said.failed, said.failed
    heard: list[list[TokenLogprob]] = [[] for _ in prompts]
    for delta in said.deltas:
        assert isinstance(delta, Delta)
        heard[int(delta.request_id)] += delta.logprobs
    assert all(len(entries) == tokens for entries in heard)
    return [Spoken(tuple(prompt), tuple(entries)) for prompt, entries in zip(prompts, heard, strict=True)]


@torch.inference_mode()
def own_logprobs(network: Any, spoken: Spoken) -> Tensor:
    """What a transformers model finds for each token of an output, float32 [tokens, vocabulary], on the CPU."""
    tokens = [*spoken.prompt, *spoken.tokens[:-1]]
    row = torch.tensor([tokens], device=network.device)
    logits = network(input_ids=row, use_cache=False).logits[0, len(spoken.prompt) - 1 :]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def errors(found: Sequence[TokenLogprob], expected: Tensor) -> list[float]:
    """How far the likeliest tokens' log-probabilities are off at each token, in standard deviations of its logits."""
    return [
        float((_values(entry) - truth[_ids(entry)]).square().mean().sqrt() / truth.std())
        for entry, truth in zip(found, expected, strict=True)
    ]


def errors_between(network: Any, other: Any, spoken: Spoken) -> list[float]:
    """The same for two transformers models, over the tokens that an engine found likeliest."""
    one, truth = own_logprobs(network, spoken), own_logprobs(other, spoken)
    return [
        float((one[at, _ids(entry)] - truth[at, _ids(entry)]).square().mean().sqrt() / truth[at].std())
        for at, entry in enumerate(spoken.logprobs)
    ]


def apart(one: Spoken, other: Spoken) -> float:
    """How far two outputs of one prompt are apart at the worst of the likeliest tokens, in standard deviations of these.

    Compared up to the first token at which they part; there, the two choices have to be as near to a tie.
    """
    worst = 0.0
    for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
        left, right = dict(mine.alternatives), dict(theirs.alternatives)
        common = left.keys() & right.keys()
        assert {mine.token_id, theirs.token_id} <= common, "outputs part where there is no tie"
        spread = _values(mine).std()
        worst = max(worst, max(abs(left[token] - right[token]) for token in common) / float(spread))
        if mine.token_id != theirs.token_id:
            return max(worst, (left[mine.token_id] - left[theirs.token_id]) / float(spread))
    return worst


def _ids(entry: TokenLogprob) -> Tensor:
    return torch.tensor([token for token, _ in entry.alternatives])


def _values(entry: TokenLogprob) -> Tensor:
    return torch.tensor([value for _, value in entry.alternatives])
