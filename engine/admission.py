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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from myna.engine import attention
from myna.engine.attention import LayerShape, Scoring
from myna.engine.errors import ModelRefused
from myna.engine.fuse import fuse
from myna.engine.interface import ModelSpec
from myna.engine.model import HuggingFaceNetwork, Model, describe, torch_attention
from myna.engine.plan import Span, StepPlan
from myna.engine.shortcut import shorten

if TYPE_CHECKING:
    from myna.engine.gpu_model import GpuModel
    from myna.engine.parallel.division import Division

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_BATCH_ROPES = {"dynamic", "longrope"}
"""Rope kinds whose frequencies depend on the longest sequence of the batch."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """Tokens of a page and of the two prompts of the probe: these are no multiples of the page size, nor of each other."""

    page_size: int
    prompts: tuple[int, int]


_PROBES = {"cpu": _Probe(4, (13, 7)), "cuda": _Probe(64, (150, 70))}

_TRUTH = "eager"
"""The attention of transformers that leaves nothing out: others ignore a softcap, say, without a word."""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_FUSED_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
_HALF_TOLERANCE = 0.15
"""Relative error of logits. Rounding stays far below, another request's tokens give about 1."""


def admit(network: Any, name: str, division: Division | None = None) -> Model | GpuModel:
    """Turn a transformers causal language model, on the device where it is to run, into a model that can serve.

    Changes the network's attention implementation to ours; on a GPU its weights may be merged. Afterwards the KV pool has
    to be allocated. `division`: how the network has been divided among ranks, which all admit it together. Raises `ModelRefused`.
    """
    if network.device.type not in _PROBES:
        raise ModelRefused(name, f"there is no attention implementation for device {str(network.device)!r}")
    network.eval()
    _check_configuration(network.config, name)
    attention.register()
    network.set_attn_implementation(attention.NAME)
    layers, vocab_size = _trace(network, name)
    spec = describe(
        network.config, network.generation_config, name=name, layers=layers, vocab_size=vocab_size, dtype=network.dtype,
        device=network.device, parts=1 if division is None else division.ranks.size,
    )  # fmt: skip
    probe = _PROBES[network.device.type]
    prompts = [_probe_prompt(length, vocab_size) for length in probe.prompts]
    with _attention_of(network, _TRUTH):
        expected = [_own_logits(network, prompt) for prompt in prompts]
    model, candidate = (_on_gpu if network.device.type == "cuda" else _on_cpu)(network, layers, spec, division)
    _verify(model, prompts, expected, network.dtype, probe.page_size)
    if candidate is None:
        return model
    agree = _agree(candidate, model, prompts[0], network.dtype, probe.page_size)
    if not (agree if division is None else division.ranks.least(agree)):
        return model
    return shorten(candidate, network, layers) if isinstance(candidate, Model) else candidate


def _on_cpu(
    network: Any, layers: Sequence[LayerShape], spec: ModelSpec, division: Division | None
) -> tuple[Model, Model | None]:
    """The model as it is and, where its structure is known and it is whole, fused."""
    own_layers = torch_attention(layers, network.dtype, network.device)
    fused = fuse(network, layers) if division is None else None
    candidate = None if fused is None else Model(fused, own_layers, spec)
    return Model(HuggingFaceNetwork(network), own_layers, spec), candidate


def _on_gpu(
    network: Any, layers: Sequence[LayerShape], spec: ModelSpec, division: Division | None
) -> tuple[GpuModel, GpuModel | None]:
    """The model as it is and, where its structure is known, fused."""
    try:
        from myna.engine.gpu_model import GpuModel
        from myna.engine.gpu_network import fuse_for_gpu
        from myna.engine.triton_attention import TritonAttention
    except ImportError as error:
        raise ModelRefused(
            spec.name, f"a GPU needs Triton, which can't be imported ({error}); use device 'cpu'"
        ) from error
    own_layers = TritonAttention(layers, network.dtype, network.device)
    ranks = None if division is None else division.ranks
    fused = fuse_for_gpu(network, layers, division)
    candidate = None if fused is None else GpuModel(fused, own_layers, spec, ranks)
    return GpuModel(HuggingFaceNetwork(network), own_layers, spec, ranks), candidate


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
    scoring: Scoring


class _Recorder:
    """An attention step that notes what each layer passes to it, and answers with zeros."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        q, k, v = (tuple(tensor.shape) for tensor in (query, key, value))
        self.calls.append(_Call(layer, q, k, v, scoring))
        return query.new_zeros((query.shape[1], query.shape[0], value.shape[2]))


@torch.inference_mode()
def _trace(network: Any, name: str) -> tuple[list[LayerShape], int]:
    """One forward pass that shows what every layer asks of attention. Returns the layers and the vocabulary's size."""
    recorder = _Recorder()
    tokens = torch.arange(3, device=network.device)
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
    how = call.scoring
    return LayerShape(kv_heads, size, how.scaling, how.window, how.softcap, how.sinks is not None)


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
    logits: Tensor = network(input_ids=torch.tensor([prompt], device=network.device), use_cache=False).logits[0]
    return logits.float()


def _verify(
    model: Model | GpuModel,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[Tensor],
    dtype: torch.dtype,
    page_size: int,
) -> None:
    """Packed and chunked runs through the real path have to give the model's own logits."""
    name, tolerance = model.spec.name, _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    first, second = [3, 1, 6, 4], [5, 2]
    prompt, other = prompts
    model.allocate(8, page_size)
    try:
        packed = model.forward(_plan([(prompt, 0, len(prompt), first), (other, 0, len(other), second)], page_size))
    except ValueError as error:  # of the kernels: a size that they aren't made for
        raise ModelRefused(name, f"{error}; device 'cpu' takes it") from error
    _compare(name, "packing two prompts into one batch", packed, torch.cat(list(expected)), tolerance)
    model.allocate(8, page_size)
    cut = len(prompt) // 2
    pieces = [(prompt, 0, cut, first), (prompt, cut, len(prompt), first)]
    chunks = torch.cat([model.forward(_plan([piece], page_size)) for piece in pieces])
    _compare(name, "prefilling a prompt in chunks", chunks, expected[0], tolerance)


def _agree(
    candidate: Model | GpuModel, model: Model | GpuModel, prompt: Sequence[int], dtype: torch.dtype, page_size: int
) -> bool:
    """Whether a fused network gives the original's logits, at the start and at the end of the context."""
    far = model.spec.context_length - len(prompt)
    plans = [_plan([(prompt, 0, len(prompt), range(4))], page_size, offset) for offset in (0, far)]
    logits: list[Tensor] = []
    for runner in (candidate, model):
        runner.allocate(4, page_size)
        logits.append(torch.cat([runner.forward(plan) for plan in plans]))
    return _error(*logits) <= _FUSED_TOLERANCE.get(dtype, _HALF_TOLERANCE)


def _plan(pieces: Sequence[tuple[Sequence[int], int, int, Sequence[int]]], page_size: int, offset: int = 0) -> StepPlan:
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
        slots += [pages[j // page_size] * page_size + j % page_size for j in range(begin, end)]
    return StepPlan(tokens, positions, slots, spans, range(len(tokens)))


def _compare(name: str, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = _error(found, expected)
    if not error <= tolerance:
        raise ModelRefused(name, f"{what} changes its logits (relative error {error:.2g})")


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
