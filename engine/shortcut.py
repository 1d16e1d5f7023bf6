"""A compiled decode step is taken only if it decodes as the model does, and that is tried, not assumed.

Where the machine, the model's structure or the Python has nothing for it, the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from myna.engine.attention import LayerShape, TorchAttention
from myna.engine.decoder_weights import decoder_weights
from myna.engine.model import Model
from myna.engine.plan import Span, StepPlan

_PAGE_SIZE = 16
_LENGTHS = (37, 20)
"""Tokens of two prompts: several pages, the last one partly filled."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""Relative error of logits."""


@torch.inference_mode()
def shorten(model: Model, network: Any, layers: Sequence[LayerShape]) -> Model:
    """Give a model on a CPU the compiled decode step of its network, if there is one and it agrees with the model."""
    try:
        from myna.engine.compiled import compile_decoder
    except ImportError:  # numba comes later than a new Python does
        return model
    attention, weights = model.attention, decoder_weights(network, layers)
    if weights is None or not isinstance(attention, TorchAttention):
        return model
    decoder = compile_decoder(weights, attention)
    if decoder is None:
        return model
    plan = _prefill(model)
    expected = model.forward(plan)
    found, _ = decoder.forward(plan)
    if _error(found, expected) <= _TOLERANCE[network.dtype]:
        model.shortcut = decoder
    return model


def _prefill(model: Model) -> StepPlan:
    """Two random prompts in the pool. Returns the step that decodes the last token of both."""
    generator = torch.Generator().manual_seed(0)
    pages = [(5, 1, 2), (0, 4)]
    prompts = [torch.randint(model.spec.vocab_size, (n,), generator=generator).tolist() for n in _LENGTHS]
    model.allocate(8, _PAGE_SIZE)
    for prompt, own in zip(prompts, pages, strict=True):
        model.forward(_plan([(prompt, 0, len(prompt), own)]))
    return _plan([(prompt, len(prompt) - 1, len(prompt), own) for prompt, own in zip(prompts, pages, strict=True)])


def _plan(pieces: Sequence[tuple[Sequence[int], int, int, Sequence[int]]]) -> StepPlan:
    """A step of (prompt, first token, end, pages) pieces, with the logits of each one's last token."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    for prompt, begin, end, pages in pieces:
        spans.append(Span(tuple(pages), 0, end, range(len(tokens), len(tokens) + end - begin), own=True))
        tokens += prompt[begin:end]
        positions += range(begin, end)
        slots += [pages[j // _PAGE_SIZE] * _PAGE_SIZE + j % _PAGE_SIZE for j in range(begin, end)]
    return StepPlan(tokens, positions, slots, spans, [span.queries[-1] for span in spans])


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
