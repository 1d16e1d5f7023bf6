"""The state of one output while it is generated: its tokens, its text, and whether it must end. No torch here.

It is a function of the tokens alone: replaying the tokens of an earlier attempt leads to the same state.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from myna.engine.request import FinishReason
from myna.engine.sampling import SamplingParams
from myna.engine.structured.grammars import Grammar
from myna.engine.structured.matcher import Matcher
from myna.engine.text import Decode, Detokenizer, StopScanner


class Output:
    """`start`: position of its first token. `stop_tokens`: the ids that end it, the model's own included. `grammar`: the one that
    its text must follow."""

    def __init__(
        self,
        index: int,
        sampling: SamplingParams,
        seed: int,
        prompt: Sequence[int],
        decode: Decode,
        eos_token_ids: frozenset[int],
        grammar: Grammar | None = None,
    ) -> None:
        self.index = index
        self.sampling = sampling
        self.seed = seed
        self.start = len(prompt)
        self.tokens: list[int] = []
        self.drawn = 0
        self.counts: dict[int, int] = {}
        self.reason: FinishReason | None = None
        own = frozenset[int]() if sampling.ignore_eos else eos_token_ids
        self.stop_tokens = own | frozenset(sampling.stop_token_ids)
        self.matcher = grammar.matcher(self.stop_tokens) if grammar is not None else None
        self.prompt_ids = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset[int]()
        self._detokenizer = Detokenizer(decode, prompt)
        self._scanner = StopScanner(sampling.stop)
        self._decoded = 0
        self._decoded_after: list[int] = []
        self._certain = 0
        self._text = ""
        self._stopped = False

    def bans_stops(self, unread: int = 0) -> bool:
        """Whether the token after `unread` more may not be a stop token."""
        return self.drawn + unread < self.sampling.min_tokens and bool(self.stop_tokens)

    @property
    def kept(self) -> int:
        """Tokens that stay in the context: up to the one that completes the text, without what a stop string cut."""
        if self.reason is not FinishReason.STOP or self._certain >= self._decoded:
            return len(self.tokens)
        if not self._certain:
            return 0
        return min(bisect_left(self._decoded_after, self._certain) + 1, len(self.tokens))

    def accept(self, token: int, room: int) -> str:
        """Take a drawn token; returns the text that became certain and may set `reason`.

        `room`: tokens that the context could still take after this one.
        """
        text = self._take(token, room)
        if self.matcher is not None:
            self._judge(self.matcher, text)
        return text

    def _take(self, token: int, room: int) -> str:
        # Where a grammar lets nothing else follow, a stop token comes before `min_tokens`.
        may_stop = self.drawn >= self.sampling.min_tokens or self.matcher is not None
        if self.matcher is not None:
            self.matcher.take(self.drawn, token)
        self.drawn += 1
        if token in self.stop_tokens and may_stop:
            return self._end(FinishReason.STOP)
        self.tokens.append(token)
        self.counts[token] = self.counts.get(token, 0) + 1
        text = self._scan(self._detokenizer.feed(token))
        self._decoded_after.append(self._decoded)
        if self.reason is None and self.matcher is not None and self.matcher.over:
            text += self._end(FinishReason.STOP)
        if self.reason is None and (room <= 0 or self.drawn == self.sampling.max_tokens):
            text += self._end(FinishReason.LENGTH)
        return text

    def _judge(self, matcher: Matcher, text: str) -> None:
        """An end that leaves less than the grammar wants is none of the model's choice."""
        if self.sampling.stop:
            self._text += text
        if self.reason is None:
            return
        if not (matcher.accepts_text(self._text) if self._stopped else matcher.accepts):
            self.reason = FinishReason.TRUNCATED

    def _end(self, reason: FinishReason) -> str:
        text = self._scan(self._detokenizer.flush())
        if self.reason is None:
            self.reason = reason
            rest = self._scanner.flush()
            self._certain += len(rest)
            text += rest
        return text

    def _scan(self, piece: str) -> str:
        """Pass decoded text through the stop strings, which don't count before `min_tokens`."""
        self._decoded += len(piece)
        if self.drawn < self.sampling.min_tokens:
            self._certain += len(piece)
            return piece
        scan = self._scanner.feed(piece)
        self._certain += len(scan.text)
        if scan.stopped:
            self._stopped, self.reason = True, FinishReason.STOP
        return scan.text
