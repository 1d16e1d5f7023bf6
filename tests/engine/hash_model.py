"""A model without weights that shows every fault of the engine's memory: its next token hashes all that it attends to.

Its KV is the token written at each slot. A row reads its spans as real attention would, sees the positions up to its
own, and predicts a hash of them; a page that is missing, stale, doubled or another sequence's gives another token.
With `ahead` = 1 it behaves as a GPU does: a step may begin before the one before is read, and takes its tokens.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import replace

import torch

from myna.engine.engine import Engine, EngineConfig
from myna.engine.immediate import ImmediateRunner
from myna.engine.interface import BatchLimits, ModelSpec, StepUnderWay
from myna.engine.plan import StepPlan
from myna.engine.sampler import Drawn, Row, sample
from tests.engine.tiny_tokenizers import words

VOCABULARY, CONTEXT, EOS = 16, 64, 0


def predict(tokens: Sequence[int], vocabulary: int) -> int:
    """The token that follows `tokens`."""
    return zlib.crc32(array("I", tokens).tobytes()) % vocabulary


class HashModel(ImmediateRunner):
    """Implements `ModelRunner`."""

    def __init__(
        self, *, vocabulary: int = VOCABULARY, context_length: int = CONTEXT, eos: int = EOS, ahead: int = 0
    ) -> None:
        self.ahead = ahead
        self.begun = self.read = 0
        self._last: list[int] = []
        self.spec = ModelSpec(
            name="hash",
            dtype="float32",
            device="cpu",
            vocab_size=vocabulary,
            context_length=context_length,
            layers=1,
            kv_heads=1,
            head_dim=1,
            eos_token_ids=frozenset({eos}),
            bos_token_id=None,
            sliding_window=None,
            kv_bytes_per_token=4,
        )
        self._slots: list[int] = []
        self._page_size = 0

    def allocate(self, pages: int, page_size: int) -> None:
        self._slots = [0] * pages * page_size
        self._page_size = page_size

    def copy_page(self, source: int, target: int) -> None:
        size = self._page_size
        self._slots[target * size : (target + 1) * size] = self._slots[source * size : (source + 1) * size]

    def forward(self, plan: StepPlan) -> torch.Tensor:
        for token, slot in zip(plan.token_ids, plan.write_slots, strict=True):
            self._slots[slot] = token
        logits = torch.zeros(len(plan.logit_rows), self.spec.vocab_size)
        for index, row in enumerate(plan.logit_rows):
            logits[index, predict(self._attended(plan, row), self.spec.vocab_size)] = 1.0
        return logits

    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        assert self.begun - self.read <= self.ahead, "more steps are under way than may be"
        token_ids = list(plan.token_ids)
        for row, place in plan.fed.items():
            token_ids[row] = self._last[place]
        drawn = sample(self.forward(replace(plan, token_ids=token_ids)), rows)
        self._last = [draw.token or 0 for draw in drawn]
        self.begun += 1
        return Late(self, self.begun, drawn)

    def _attended(self, plan: StepPlan, row: int) -> list[int]:
        keys: list[tuple[int, int]] = []
        for span in plan.spans:
            if row in span.queries:
                keys += [(span.start + offset, self._read(span.pages, offset)) for offset in range(span.length)]
        return [token for position, token in sorted(keys) if position <= plan.positions[row]]

    def _read(self, pages: Sequence[int], offset: int) -> int:
        return self._slots[pages[offset // self._page_size] * self._page_size + offset % self._page_size]


class Late:
    """A step of a `HashModel` that nobody has read yet."""

    def __init__(self, model: HashModel, number: int, drawn: list[Drawn]) -> None:
        self._model = model
        self._number = number
        self._drawn = drawn

    def read(self) -> list[Drawn]:
        self._model.read += 1
        assert self._model.read == self._number, "steps are read out of order"
        return self._drawn


def serve(model: HashModel, *, pages: int = 32, page: int = 4, limits: BatchLimits | None = None) -> Engine:
    """An engine over a model, of few pages, which verifies itself after each step."""
    config = EngineConfig(page_size=page, kv_tokens=pages * page, limits=limits or BatchLimits(4, 16), checks=True)
    return Engine(model, words(model.spec.vocab_size), config)
