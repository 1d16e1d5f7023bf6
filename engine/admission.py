"""A model is admitted only if packing can't change its answers, and that is tried, not assumed.

Requests share one row of tokens, so whatever mixes neighbours in a row (a convolution, a state space), depends on the
whole batch (dynamic rope) or keeps a state of its own between steps would let one request change another. The probe
reads the configuration, traces one forward pass to see that every layer calls our attention and how, then compares
packed and chunked logits with the model's own. A refusal names the layer and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myna.engine import attention
from myna.engine.attention import LayerShape
from myna.engine.errors import ModelRefused
from myna.engine.fuse import fuse
from myna.engine.model import HuggingFaceNetwork, Model, describe, torch_attention
from myna.engine.plan import Span, StepPlan

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_BATCH_ROPES = {"dynamic", "longrope"}
"""Rope kinds whose frequencies depend on the longest sequence of the batch."""

_PAGE_SIZE = 4
_PROMPTS = (13, 7)
"""Tokens of the two prompts of the probe: no multiples of the page size, nor of each other."""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_FUSED_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
_HALF_TOLERANCE = 0.15
"""Relative error of logits. Rounding stays far below, another request's tokens give about 1."""


def admit(network: Any, name: str) -> Model:
    """Turn a transformers causal language model into a `Model`, or raise `ModelRefused`.

    Changes the network's attention implementation to ours. Afterwards the KV pool has to be allocated.
    """
    network.eval()
    _check_configuration(network.config, name)
    own_attention = network.config._attn_implementation
    attention.register()
    network.set_attn_implementation(attention.NAME)
    layers, vocab_size = _trace(network, name)
    spec = describe(
        network.config, network.generation_config, name=name, layers=layers, vocab_size=vocab_size, dtype=network.dtype
    )
    prompts = [_probe_prompt(length, vocab_size) for length in _PROMPTS]
    with _attention_of(network, own_attention):
        expected = [_own_logits(network, prompt) for prompt in prompts]
    own_layers = torch_attention(layers, network.dtype, torch.device(spec.device))
    model = Model(HuggingFaceNetwork(network), own_layers, spec)
    _verify(model, prompts, expected, network.dtype)
    fused = fuse(network, layers)
    if fused is not None:
        candidate = Model(fused, own_layers, spec)
        if _agree(candidate, model, prompts[0], network.dtype):
            return candidate
    return model


def _check_configuration(config: Any, name: str) -> None:
    for index, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in _LAYER_TYPES:
            raise ModelRefused(name, f"layer {index} is of type {kind!r}, which can't be packed")
    for kind in _rope_types(getattr(config, "rope_parameters", None)):
        if kind in _BATCH_ROPES:
            raise ModelRefused(name, f"its {kind!r} rope depends on the longest sequence of the batch")


def _rope_types(parameters: Any) -> Iterator[str]:
    """Rope kinds of a configuration, which holds one set of parameters or one for each type of layer."""
    if not isinstance(parameters, dict):
        return
    if "rope_type" in parameters:
        yield parameters["rope_type"]
    for nested in parameters.values():
        yield from _rope_types(nested)


@dataclass(frozen=True, slots=True)
class _Call:
    """What a layer asked of attention: shapes are [heads, tokens, head size]."""

    layer: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    scaling: float
    window: int | None
    softcap: float | None
    sinks: bool


class _Recorder:
    """An attention step that notes what each layer passes to it, and answers with zeros."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (tuple(tensor.shape) for tensor in (query, key, value))
        self.calls.append(_Call(layer, q, k, v, scaling, window, softcap, sinks is not None))
        return query.new_zeros((query.shape[1], query.shape[0], value.shape[2]))


@torch.inference_mode()
def _trace(network: Any, name: str) -> tuple[list[LayerShape], int]:
    """One forward pass that shows what every layer asks of attention. Returns the layers and the vocabulary's size."""
    recorder = _Recorder()
    tokens = torch.arange(3)
    try:
        logits = HuggingFaceNetwork(network)(tokens, tokens, tokens[-1:], recorder)
    except Exception as error:
        raise ModelRefused(name, f"its forward pass fails with our attention: {error}") from error
    called = sorted(call.layer for call in recorder.calls)
    missing = sorted(set(range(network.config.num_hidden_layers)) - set(called))
    if missing:
        raise ModelRefused(name, f"layer {missing[0]} doesn't call the attention interface of transformers")
    if called != list(range(network.config.num_hidden_layers)):
        raise ModelRefused(name, f"its layers call attention more than once: {called}")
    return [_layer_shape(name, call) for call in sorted(recorder.calls, key=lambda call: call.layer)], logits.shape[-1]


def _layer_shape(name: str, call: _Call) -> LayerShape:
    (heads, tokens, size), (kv_heads, keys, key_size), (*_, value_size) = call.query, call.key, call.value
    if call.key != call.value or size != key_size:
        reason = f"layer {call.layer} has heads of size {size} (Q), {key_size} (K) and {value_size} (V)"
        raise ModelRefused(name, reason)
    if keys != tokens or heads % kv_heads:
        raise ModelRefused(name, f"layer {call.layer} passes {heads} query heads, {kv_heads} KV heads, {keys} keys")
    return LayerShape(kv_heads, size, call.scaling, call.window, call.softcap, call.sinks)


@contextmanager
def _attention_of(network: Any, name: str) -> Iterator[None]:
    """The network with another attention implementation, for a while."""
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(attention.NAME)


def _probe_prompt(length: int, vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return [int(token) for token in torch.randint(vocab_size, (length,), generator=generator)]


@torch.inference_mode()
def _own_logits(network: Any, prompt: Sequence[int]) -> Tensor:
    logits: Tensor = network(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    return logits.float()


def _verify(model: Model, prompts: Sequence[Sequence[int]], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Packed and chunked runs through the real path have to give the model's own logits."""
    pages = [[3, 1, 6, 4], [5, 2]]
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    model.allocate(8, _PAGE_SIZE)
    packed = model.forward(_plan([(prompt, 0, len(prompt), own) for prompt, own in zip(prompts, pages, strict=True)]))
    _compare(model.spec.name, "packing two prompts into one batch", packed, torch.cat(list(expected)), tolerance)
    model.allocate(8, _PAGE_SIZE)
    prompt, own = prompts[0], pages[0]
    cut = len(prompt) // 2
    chunks = [model.forward(_plan([(prompt, 0, cut, own)])), model.forward(_plan([(prompt, cut, len(prompt), own)]))]
    _compare(model.spec.name, "prefilling a prompt in chunks", torch.cat(chunks), expected[0], tolerance)


def _agree(candidate: Model, model: Model, prompt: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a fused network gives the original's logits, at the start and at the end of the context."""
    far = model.spec.context_length - len(prompt)
    plans = [_plan([(prompt, 0, len(prompt), range(4))], offset) for offset in (0, far)]
    logits: list[Tensor] = []
    for runner in (candidate, model):
        runner.allocate(4, _PAGE_SIZE)
        logits.append(torch.cat([runner.forward(plan) for plan in plans]))
    return _error(*logits) <= _FUSED_TOLERANCE.get(dtype, _HALF_TOLERANCE)


def _plan(pieces: Sequence[tuple[Sequence[int], int, int, Sequence[int]]], offset: int = 0) -> StepPlan:
    """A step of (prompt, first token, end, pages) pieces whose first position is `offset`, with all logits wanted."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    for prompt, begin, end, pages in pieces:
        rows = range(len(tokens), len(tokens) + end - begin)
        spans.append(Span(tuple(pages), start=offset, length=end, queries=rows, own=True))
        tokens += prompt[begin:end]
        positions += range(offset + begin, offset + end)
        slots += [pages[j // _PAGE_SIZE] * _PAGE_SIZE + j % _PAGE_SIZE for j in range(begin, end)]
    return StepPlan(tokens, positions, slots, spans, range(len(tokens)))


def _compare(name: str, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = _error(found, expected)
    if not error <= tolerance:
        raise ModelRefused(name, f"{what} changes its logits (relative error {error:.2g})")


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
