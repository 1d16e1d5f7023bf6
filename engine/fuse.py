"""Load-time fusion: a decoder of the common pre-norm shape runs through a handful of fused operations a layer.

Structure decides, not a model's name: RMS norm, Q/K/V/O projections with rotary positions, RMS norm, gated MLP, two
residual sums, and no module besides. Weights are merged (Q, K, V), scaled by the norm before them and packed for the
machine. Anything else in a layer, and the model stays as it is. Recognition is a guess that admission then tests: the
fused network has to give the original's logits, near and at the far end of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from myna.engine.attention import AttentionStep, LayerShape, Scoring
from myna.kernels.linear import ACTIVATIONS, Linear, make_linear

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_FEW_ROWS = 64
_MLP = {"gate_proj", "up_proj", "down_proj"}


class FusedNetwork:
    """A decoder as a `model.Network`, over its own packed copy of the weights."""

    def __init__(self, network: Any, layers: Sequence[LayerShape]) -> None:
        base = network.base_model
        self._embedding: Tensor = base.embed_tokens.weight
        self._rotary = base.rotary_emb
        self._layers = [
            _FusedLayer(layer, shape, i) for i, (layer, shape) in enumerate(zip(base.layers, layers, strict=True))
        ]
        self._epsilon, scale = norm_parts(base.norm)
        self._head = _linear_after(scale, [network.lm_head])

    def __call__(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor, step: AttentionStep) -> Tensor:
        """As `model.Network`."""
        hidden = functional.embedding(token_ids, self._embedding)
        cos, sin = self._rotary(hidden, positions[None])
        cos, sin = cos[0, :, None], sin[0, :, None].clone()
        sin[..., : sin.shape[-1] // 2].neg_()  # rotate_half's sign, so that a roll does the rest
        for layer in self._layers:
            hidden = layer(hidden, cos, sin, step)
        return self._head.plain(_normalize(hidden.index_select(0, logit_rows), self._epsilon))


class _FusedLayer:
    """One decoder layer: five multiplications with what surrounds them fused in, and attention."""

    def __init__(self, layer: Any, shape: LayerShape, index: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._shape = shape
        self._attention_epsilon, scale = norm_parts(layer.input_layernorm)
        self._qkv = _linear_after(scale, [attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = _linear_after(None, [attention.o_proj])
        self._query_norm = getattr(attention, "q_norm", None)
        self._key_norm = getattr(attention, "k_norm", None)
        self._mlp_epsilon, scale = norm_parts(layer.post_attention_layernorm)
        self._gate = _linear_after(scale, [mlp.gate_proj])
        self._up = _linear_after(scale, [mlp.up_proj])
        self._down = _linear_after(None, [mlp.down_proj])
        activation = activation_name(mlp.act_fn)
        assert activation is not None, "recognised before"
        self._activation = activation
        self._heads = attention.q_proj.out_features // shape.head_dim

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, step: AttentionStep) -> Tensor:
        hidden = self._output.plus(self._attend(_normalize(hidden, self._attention_epsilon), cos, sin, step), hidden)
        rows = _normalize(hidden, self._mlp_epsilon)
        return self._down.plus(self._up.times(rows, self._gate.activated(rows, self._activation)), hidden)

    def _attend(self, rows: Tensor, cos: Tensor, sin: Tensor, step: AttentionStep) -> Tensor:
        shape = self._shape
        heads, rotated = self._heads, self._heads + shape.kv_heads
        qkv = self._qkv.plain(rows).view(rows.shape[0], -1, shape.head_dim)
        turning = qkv[:, :rotated]
        if self._query_norm is not None and self._key_norm is not None:
            turning = torch.cat([self._query_norm(turning[:, :heads]), self._key_norm(turning[:, heads:])], dim=1)
        turned = torch.addcmul(turning * cos, turning.roll(shape.head_dim // 2, -1), sin)
        output = step.attend(
            self._index,
            turned[:, :heads].transpose(0, 1),
            turned[:, heads:].transpose(0, 1),
            qkv[:, rotated:].transpose(0, 1),
            Scoring(shape.scaling, shape.window, shape.softcap),
        )
        return output.reshape(rows.shape[0], -1)


@torch.inference_mode()
def fuse(network: Any, layers: Sequence[LayerShape]) -> FusedNetwork | None:
    """The fused form of a network, or None where its structure isn't known."""
    return FusedNetwork(network, layers) if is_known(network, layers) else None


def is_known(network: Any, layers: Sequence[LayerShape]) -> bool:
    """Whether a network has the structure that can be fused."""
    base = network.base_model
    if not _has_children(network, {network.base_model_prefix, "lm_head"}):
        return False
    if not _has_children(base, {"embed_tokens", "layers", "norm", "rotary_emb"}) or not is_rms_norm(base.norm):
        return False
    if type(base.embed_tokens) is not nn.Embedding or type(network.lm_head) is not nn.Linear:
        return False
    if len(base.layers) != len(layers) or any(layer.sinks for layer in layers):
        return False
    return all(_is_known_layer(layer) for layer in base.layers)


def _is_known_layer(layer: Any) -> bool:
    if not _has_children(layer, _LAYER):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    normed = {"q_norm", "k_norm"} & set(dict(attention.named_children()))
    return (
        _has_children(attention, _PROJECTIONS | normed)
        and len(normed) in (0, 2)
        and _has_children(mlp, _MLP | {"act_fn"})
        and activation_name(mlp.act_fn) is not None
        and all(type(getattr(attention, name)) is nn.Linear for name in _PROJECTIONS)
        and all(type(getattr(mlp, name)) is nn.Linear for name in _MLP)
        and is_rms_norm(layer.input_layernorm)
        and is_rms_norm(layer.post_attention_layernorm)
    )


def _has_children(module: nn.Module, names: set[str]) -> bool:
    """Whether a module consists of exactly these submodules, with no parameter of its own."""
    return set(dict(module.named_children())) == names and not list(module.parameters(recurse=False))


def activation_name(module: nn.Module) -> str | None:
    """The activation's name among those that can be fused, found by what it computes."""
    probe = torch.linspace(-4, 4, 33)
    found = module(probe)
    candidates = {
        "silu": functional.silu(probe),
        "gelu": functional.gelu(probe),
        "gelu_pytorch_tanh": functional.gelu(probe, approximate="tanh"),
    }
    matching = [name for name in ACTIVATIONS if torch.allclose(found, candidates[name], atol=1e-6)]
    return matching[0] if matching else None


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is x / rms(x) * scale, whichever way it keeps its scale."""
    if set(dict(module.named_parameters())) != {"weight"} or list(module.children()):
        return False
    weight: Any = module.weight
    epsilon, scale = norm_parts(module)
    probe = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight.device) * 0.01
    expected = _normalize(probe, epsilon) * scale
    error = (module(probe.to(weight.dtype)).float() - expected).norm() / expected.norm()
    return bool(error < (1e-5 if weight.dtype == torch.float32 else 2e-2))


def norm_parts(module: Any) -> tuple[Tensor, Tensor]:
    """A norm's epsilon and its scale [hidden], in float32 at least. A row of ones shows whether that is 1 + weight."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    weight = module.weight
    ones = torch.ones(1, weight.shape[0], dtype=weight.dtype, device=weight.device)
    offset = (module(ones)[0].float() - weight.float()).mean().round()  # 0, or 1 where the scale is 1 + weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.tensor(float(epsilon), dtype=wide, device=weight.device), weight.to(wide) + offset


def _normalize(rows: Tensor, epsilon: Tensor) -> Tensor:
    """Rows over their root mean square, computed in float32."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=epsilon.dtype)
    inverse = torch.addcmul(epsilon, norm, norm, value=1 / rows.shape[-1]).rsqrt_()
    if rows.dtype == epsilon.dtype:
        return rows * inverse
    if rows.shape[0] <= _FEW_ROWS:
        return (rows * inverse).to(rows.dtype)
    return rows.to(epsilon.dtype).mul_(inverse).to(rows.dtype)  # a product of two dtypes is slow on many rows


def _linear_after(scale: Tensor | None, modules: Sequence[Any]) -> Linear:
    """Several linear modules side by side as one, with the scale of the norm before them multiplied in."""
    weight = torch.cat([module.weight for module in modules])
    return make_linear(weight if scale is None else scaled(weight, scale), joined_bias(modules))


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight with the scale of the norm before it multiplied in."""
    return (weight * scale).to(weight.dtype)


def joined_bias(modules: Sequence[Any]) -> Tensor | None:
    """The biases of linear modules one after the other; None where no module has one."""
    if all(module.bias is None for module in modules):
        return None
    return torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in modules])
