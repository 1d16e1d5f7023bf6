"""Computes masks beside the forward pass: a step begins, masks are computed meanwhile, and the draw finds them ready."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
from llguidance import LLExecutor

from myna.engine.structured.matcher import Matcher

_MOST_THREADS = 8


class Masks:
    """The thread that computes masks, for one engine. It begins to exist when it is needed."""

    def __init__(self, vocabulary: int) -> None:
        self._words = -(-vocabulary // 32)

    def begin(self, matchers: Sequence[Matcher]) -> None:
        """Begin to compute the masks that are missing."""
        stale = [matcher for matcher in matchers if matcher.stale]
        if not stale:
            return
        computing: Future[None] = self._thread.submit(self._compute, stale)
        for matcher in stale:
            matcher.lend(computing)

    def _compute(self, matchers: Sequence[Matcher]) -> None:
        masks = np.zeros((len(matchers), self._words), np.uint32)
        work = [(matcher.machine, place) for place, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(work, masks.ctypes.data, self._words * 4, len(matchers))
        for matcher, mask in zip(matchers, masks, strict=True):
            matcher.learn(mask)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "myna-masks")

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2)))
