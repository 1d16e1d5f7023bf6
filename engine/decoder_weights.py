"""A decoder as plain data: sizes and weights, norms multiplied into what follows them. For whoever lays them out anew.

Only what `fuse.py` knows, and of that what the compiled step can compute: SwiGLU, the same full attention in all
layers, no bias but that of Q, K and V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from myna.engine.attention import LayerShape
from myna.engine.fuse import activation_name, is_known, is_rms_norm, joined_bias, norm_parts, scaled


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a network; `scaling` is that of the scores."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    scaling: float

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    @property
    def regular(self) -> bool:
        """Whether all are multiples of 32, as the compiled step wants them."""
        return not any(size % 32 for size in (self.hidden, self.inner, self.head_dim))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights [out, in], those after a norm scaled by it. `gate` and `up` [inner, hidden]."""

    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    attention_epsilon: float
    mlp_epsilon: float
    head_epsilon: float


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A decoder. `rotary(like, positions)`: transformers' rotary module."""

    sizes: Sizes
    embedding: Tensor
    layers: Sequence[LayerWeights]
    head: Tensor
    epsilon: float
    rotary: Any


@torch.inference_mode()
def decoder_weights(network: Any, layers: Sequence[LayerShape]) -> DecoderWeights | None:
    """The weights of a transformers network, or None where it isn't of that kind."""
    base, shape = network.base_model, layers[0]
    uniform = all(layer == shape for layer in layers) and shape.window is None and shape.softcap is None
    if not uniform or not is_known(network, layers) or network.lm_head.bias is not None:
        return None
    if not all(_is_plain(layer, shape) for layer in base.layers):
        return None
    mlp, projection = base.layers[0].mlp, base.layers[0].self_attn.q_proj
    sizes = Sizes(
        hidden=projection.in_features,
        inner=mlp.gate_proj.out_features,
        heads=projection.out_features // shape.head_dim,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocabulary=network.lm_head.out_features,
        scaling=shape.scaling,
    )
    epsilon, scale = norm_parts(base.norm)
    head = scaled(network.lm_head.weight, scale)
    found = [_layer_weights(layer) for layer in base.layers]
    return DecoderWeights(sizes, base.embed_tokens.weight, found, head, float(epsilon), base.rotary_emb)


def _is_plain(layer: Any, shape: LayerShape) -> bool:
    mlp, attention = layer.mlp, layer.self_attn
    norms = [norm for norm in (getattr(attention, name, None) for name in ("q_norm", "k_norm")) if norm is not None]
    return (
        activation_name(mlp.act_fn) == "silu"
        and all(module.bias is None for module in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        and all(is_rms_norm(norm) and norm.weight.shape[0] == shape.head_dim for norm in norms)
    )


def _layer_weights(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    attention_epsilon, before_attention = norm_parts(layer.input_layernorm)
    mlp_epsilon, before_mlp = norm_parts(layer.post_attention_layernorm)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    head_epsilon = 0.0 if query_norm is None else float(norm_parts(query_norm)[0])
    return LayerWeights(
        qkv=scaled(torch.cat([module.weight for module in projections]), before_attention),
        qkv_bias=joined_bias(projections),
        query_norm=None if query_norm is None else norm_parts(query_norm)[1],
        key_norm=None if key_norm is None else norm_parts(key_norm)[1],
        output=attention.o_proj.weight,
        gate=scaled(mlp.gate_proj.weight, before_mlp),
        up=scaled(mlp.up_proj.weight, before_mlp),
        down=mlp.down_proj.weight,
        attention_epsilon=float(attention_epsilon),
        mlp_epsilon=float(mlp_epsilon),
        head_epsilon=head_epsilon,
    )
