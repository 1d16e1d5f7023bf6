"""Follows one output through its grammar: which tokens may come next, and whether the text may end here.

Law: a matcher is in the hands of one thread at a time. `begin` lends it to the thread that computes masks; whoever asks anything
before that is over waits for it.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeAlias

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.uint32]
"""`[vocabulary / 32, rounded up]`: bit t % 32 of word t // 32 says whether token t may come next."""


class Matcher:
    """`machine` at the beginning of the text, which stays as it is. `stops`: tokens that end the text, and may come where it is
    whole; the model's own and the request's."""

    def __init__(self, machine: LLMatcher, tokenizer: LLTokenizer, stops: frozenset[int]) -> None:
        self._start = machine
        self._tokenizer = tokenizer
        self._machine = machine.deep_copy()
        self._stops = [(stop // 32, np.uint32(1 << stop % 32)) for stop in stops]
        self._stop_tokens = stops
        self._letter: list[int] = tokenizer.tokenize_str("a")
        self._taken = 0
        self._ended = False
        self._broken = ""
        self._mask: Mask | None = None
        self._computing: Future[None] | None = None

    @property
    def error(self) -> str:
        """Why it can't be followed any further; empty while it can."""
        self._wait()
        if self._machine.is_error():
            return self._machine.get_error()[:400]
        if self._mask is not None and not self._mask.any():
            return "nothing can follow"
        return self._broken

    @property
    def accepts(self) -> bool:
        """Whether the text is whole as it is."""
        self._wait()
        return self._machine.is_accepting() and not self._machine.is_error()

    @property
    def over(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        self._wait()
        return self._machine.is_stopped() and self.accepts

    def take(self, place: int, token: int) -> None:
        """The text's token number `place` is `token`. To be told again changes nothing: a step may read ahead of its outputs."""
        if place < self._taken:
            return
        self._wait()
        self._taken += 1
        self._mask = None
        self._ended = self._ended or token in self._stop_tokens
        if not self._ended:
            self._machine.consume_token(token)

    def accepts_text(self, text: str) -> bool:
        """Whether another text would be whole."""
        machine = self._start.deep_copy()
        return machine.consume_tokens(self._tokenizer.tokenize_str(text)) and machine.is_accepting()

    # --- masks: see `masks.py` ---

    @property
    def stale(self) -> bool:
        """Whether a mask is to be computed."""
        return self._mask is None and self._computing is None and not self._ended

    @property
    def machine(self) -> LLMatcher:
        """The library's own, for whoever computes masks."""
        return self._machine

    def lend(self, computing: Future[None]) -> None:
        """Somebody computes the mask; when that is done it has been given to `learn`."""
        self._computing = computing

    def learn(self, mask: Mask) -> None:
        """The mask of the next token, still without the tokens that end the text."""
        accepting = self._machine.is_accepting()
        for word, bit in self._stops:
            mask[word] = mask[word] | bit if accepting else mask[word] & ~bit
        self._mask = mask

    def mask(self) -> Mask | None:
        """What may come next; None where it matters no more, since the text has ended or can't be followed."""
        self._wait()
        if self.stale:
            mask = np.zeros(-(-self._tokenizer.vocab_size // 32), np.uint32)
            self._machine.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            self.learn(mask)
        return None if self._ended or self._machine.is_error() else self._mask

    def allows(self, token: int) -> bool:
        """Whether this token may come next, which is known much sooner than all that may."""
        self._wait()
        if token in self._stop_tokens:
            return self._ended or self._machine.is_accepting()
        return self._ended or self._machine.is_error() or self._machine.validate_tokens([token]) == 1

    def narrow(self) -> bool:
        """Whether little may come next, as far as a letter tells: where that may come, mostly most of the vocabulary may."""
        self._wait()
        return not (self._ended or self._machine.is_error() or self._machine.validate_tokens(self._letter))

    def _wait(self) -> None:
        if self._computing is not None:
            error = self._computing.exception()
            self._computing = None
            if error is not None:
                self._broken = f"its masks can't be computed: {error}"
