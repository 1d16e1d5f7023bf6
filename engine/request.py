"""A request is a small program over one context: fill, generate, fill, generate. It is plain data and never changes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType, TypeAlias

from myna.engine.context import ContextId
from myna.engine.errors import InvalidPrompt, PromptTooLong
from myna.engine.sampling import SamplingParams

RequestId = NewType("RequestId", str)
LEAST = -(2**31)
"""The priority of what is computed for its own sake: nobody waits for it."""


class FinishReason(StrEnum):
    """Why an output ended."""

    STOP = "stop"
    """A stop token or stop string."""
    LENGTH = "length"
    """`max_tokens`, the model's context length or the whole KV pool was reached."""
    TRUNCATED = "truncated"
    """The output has a constraint, and was cut, by its length or a stop string, before it was whole."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Append tokens to the context."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generate:
    """Draw an output. `index` numbers it; with `sampling.n` > 1 the siblings are `index`, `index + 1`, and so on.

    `forced_token_ids`: for each sibling the tokens that an earlier attempt has published. They are replayed as if they
    had just been drawn (positions, penalties, stops and text go by them) but not announced again.
    """

    index: int
    sampling: SamplingParams
    forced_token_ids: tuple[tuple[int, ...], ...] = ()

    def forced(self, sibling: int) -> tuple[int, ...]:
        """The tokens to replay for a sibling."""
        return self.forced_token_ids[sibling] if sibling < len(self.forced_token_ids) else ()


Step: TypeAlias = Fill | Generate


@dataclass(frozen=True, slots=True)
class Request:
    """A program. Higher `priority` goes first, among equals the least `order`, and then the earlier request.

    `namespace`: whose prefixes it shares; nothing is shared between namespaces. `cache_prefix=False` neither uses nor
    feeds the prefix cache. `context`: an open context to work in, which stays open afterwards; None makes one and frees
    it at the end. Raises InvalidPrompt if the steps make no program.
    """

    id: RequestId
    steps: tuple[Step, ...]
    priority: int = 0
    namespace: str = ""
    cache_prefix: bool = True
    context: ContextId | None = None
    order: float = 0.0

    def __post_init__(self) -> None:
        if self.namespace.startswith("\0"):
            raise InvalidPrompt("a namespace can't begin with a NUL character")
        generates = [step for step in self.steps if isinstance(step, Generate)]
        taken: set[int] = set()
        for step in generates:
            indices = range(step.index, step.index + step.sampling.n)
            if taken.intersection(indices):
                raise InvalidPrompt(f"request {self.id!r} numbers two outputs {step.index}")
            taken.update(indices)
            if len(step.forced_token_ids) > step.sampling.n:
                raise InvalidPrompt(f"request {self.id!r} forces more outputs than the {step.sampling.n} it draws")
            if step.sampling.n > 1 and step is not self.steps[-1]:
                raise InvalidPrompt("an output drawn n > 1 times must be a prompt's last step: nothing can follow all")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What every request has to keep to: token ids under `vocab_size`, and contexts of at most `capacity` tokens, which is less
    than the model's `context_length` where the KV pool is smaller."""

    vocab_size: int
    context_length: int
    capacity: int

    def check(self, request: Request) -> None:
        """Raises InvalidPrompt, InvalidSampling and PromptTooLong."""
        total = 0
        for step in request.steps:
            match step:
                case Fill(token_ids):
                    total += len(token_ids)
                    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.vocab_size:
                        raise InvalidPrompt(f"a token id lies outside the vocabulary of {self.vocab_size} tokens")
                case Generate(sampling=sampling, forced_token_ids=forced):
                    sampling.check_vocabulary(self.vocab_size)
                    if any(not 0 <= token < self.vocab_size for tokens in forced for token in tokens):
                        raise InvalidPrompt("a forced token id lies outside the vocabulary")
        if total + 1 > self.capacity:
            pool = self.capacity < self.context_length
            raise PromptTooLong(total, self.capacity, *(("the KV pool",) if pool else ()))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one output: its prompt (all that lies before it in the context), how many of those came out of the
    prefix cache, and how many were generated, a stop token included."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural logarithm) of a drawn token, and of the most probable alternatives by token id. The texts are what
    these tokens spell, each alone: the engine's process adds them."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    text: str = ""
    alternative_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What an output gained. `token_ids` may run ahead of `text`: text that may yet be part of a stop string, or half a
    character, is held back. A stop token is not among the tokens."""

    request_id: RequestId
    output: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """An output is complete; all its text has been sent."""

    request_id: RequestId
    output: int
    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Done:
    """All outputs of a request are complete; its last event."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has ended without completing; its last event."""

    request_id: RequestId
    error: Exception


Event: TypeAlias = Delta | Finished | Done | Failed
