"""A decoder of the common pre-norm shape on a GPU: merged weights, fused kernels, nine launches a layer when it decodes.

`fuse.py` says which structures are meant. Weights are merged in place: the original modules keep views of them, so that
nothing is held twice and the original still runs. Few rows go through kernels that stream the weights, many through cuBLAS,
but for an MLP's first half. Of the last layer only the rows with logits are computed. Over several GPUs (`engine/parallel`) each
has some heads and some of an MLP's inner numbers: what an attention's or MLP's last product leaves is a share, which the next
norm adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from myna.engine.attention import LayerShape, Scoring
from myna.engine.fuse import activation_name, is_known
from myna.engine.triton_attention import Rotary, TritonStep
from myna.kernels import gated
from myna.kernels.few_rows import few_rows, few_rows_gated, takes
from myna.kernels.fused import HeadNorms, rms_norm, swiglu

if TYPE_CHECKING:
    from myna.engine.parallel.division import Division
    from myna.engine.parallel.sums import Sums

_BLOCK = 2048
"""Rows of a prompt that go through an MLP together: what one operation leaves is still in the L2 for the next."""

MOST_SUMS, MOST_LOGITS = 1152, 256
"""Rows, and rows of logits, that GPUs send into each other's memory: those of all steps that are replayed."""


class FusedGpuNetwork:
    """A decoder as a `gpu_model.GpuNetwork`, over the network's own weights."""

    def __init__(self, network: Any, layers: Sequence[LayerShape], sums: Sums | None, *, joins: bool) -> None:
        """`sums`: over the ranks of a divided network. `joins`: each of them computes a part of the logits."""
        base = network.base_model
        self._embedding: Tensor = base.embed_tokens.weight
        self._rotary = _rotary(base.rotary_emb, network.config.max_position_embeddings, self._embedding)
        self._layers = [
            _Layer(layer, shape, i, sums) for i, (layer, shape) in enumerate(zip(base.layers, layers, strict=True))
        ]
        self._norm = _Norm(base.norm, sums)
        self._head = _Linear.merging([network.lm_head])
        self._joined = sums if joins else None

    def __call__(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor, step: TritonStep) -> Tensor:
        """`token_ids` int64 [T], `positions`, `logit_rows` int32 [T], [R]. Returns logits [R, vocabulary]."""
        hidden = functional.embedding(token_ids, self._embedding)
        change: Tensor | None = None
        last = self._layers[-1]
        for layer in self._layers[:-1]:
            change = layer(hidden, change, positions, self._rotary, step)
        if step.spares_rows:
            hidden, change = last.ends(hidden, change, positions, logit_rows, self._rotary, step)
            return self._logits(self._norm(change, hidden))
        change = last(hidden, change, positions, self._rotary, step)
        return self._logits(self._norm(change, hidden, rows=logit_rows))

    def _logits(self, rows: Tensor) -> Tensor:
        logits = self._head(rows)
        return logits if self._joined is None else self._joined.join(logits)


class _Layer:
    """One decoder layer. `hidden` [T, H] is the sum of residuals, changed in place; `change`, if any, is still to be added."""

    def __init__(self, layer: Any, shape: LayerShape, index: int, sums: Sums | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._shape = shape
        self._scoring = Scoring(shape.scaling, shape.window, shape.softcap)
        self._heads = attention.q_proj.out_features // shape.head_dim
        self._norm = _Norm(layer.input_layernorm, sums)
        self._qkv = _Linear.merging([attention.q_proj, attention.k_proj, attention.v_proj])
        queries = attention.q_proj.out_features
        self._query, self._key_value = self._qkv.columns(0, queries), self._qkv.columns(queries, None)
        self._norms = _head_norms(attention)
        self._output = _Linear.merging([attention.o_proj], sums)
        self._mlp_norm = _Norm(layer.post_attention_layernorm, sums)
        self._gate_up = _Linear.merging([mlp.gate_proj, mlp.up_proj])
        self._down = _Linear.merging([mlp.down_proj], sums)

    def __call__(
        self, hidden: Tensor, change: Tensor | None, positions: Tensor, rotary: Rotary, step: TritonStep
    ) -> Tensor | None:
        attended = self._attend(self._qkv(self._norm(change, hidden)), positions, rotary, step)
        sizes = _block_sizes(len(hidden))
        if len(sizes) == 1:
            return self._finish(hidden, attended)
        self._output.add_now(hidden, attended)
        for block in torch.split(hidden, sizes):
            self._down.add_now(block, self._gate_up.gated(self._mlp_norm(None, block)))
        return None

    def ends(
        self, hidden: Tensor, change: Tensor | None, positions: Tensor, rows: Tensor, rotary: Rotary, step: TritonStep
    ) -> tuple[Tensor, Tensor | None]:
        """As the last layer, of which `rows` [R] alone are wanted: the others only leave their keys and values behind.

        Returns `hidden` [R, H] and what is still to be added to it.
        """
        shape = self._shape
        normed = self._norm(change, hidden)
        query = self._query(normed[rows]).view(len(rows), self._heads, shape.head_dim)
        key, value = self._key_value(normed).view(len(normed), 2 * shape.kv_heads, shape.head_dim).chunk(2, dim=1)
        attended = step.turn_and_attend_ends(
            self._index, query, key, value, positions, rows, rotary, self._norms, self._scoring
        )  # fmt: skip
        hidden = hidden[rows]
        return hidden, self._finish(hidden, attended.flatten(1))

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor | None:
        """From attention's output to the layer's end; returns what is still to be added."""
        rows = self._mlp_norm(self._output.add_to(hidden, attended), hidden)
        return self._down.add_to(hidden, self._gate_up.gated(rows))

    def _attend(self, qkv: Tensor, positions: Tensor, rotary: Rotary, step: TritonStep) -> Tensor:
        shape = self._shape
        heads = qkv.view(len(qkv), -1, shape.head_dim)
        query, key, value = torch.split(heads, [self._heads, shape.kv_heads, shape.kv_heads], dim=1)
        attended = step.turn_and_attend(
            self._index, query, key, value, positions, rotary, self._norms, self._scoring
        )  # fmt: skip
        return attended.view(len(qkv), -1)


class _Norm:
    """An RMS norm. `sums`: what is added before is every rank's share."""

    def __init__(self, module: Any, sums: Sums | None) -> None:
        self._weight: Tensor = module.weight
        self._sums = sums
        self._eps = _epsilon(module)
        self._one_plus = _adds_one(module)

    def __call__(self, change: Tensor | None, hidden: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """`hidden` normed, `change` added to it before, in place unless only some `rows` are wanted."""
        if change is None:
            return rms_norm(hidden, self._weight, self._eps, one_plus=self._one_plus, rows=rows)
        if self._sums is not None:
            return self._sums.norm(change, self._weight, self._eps, hidden, one_plus=self._one_plus, rows=rows)
        return rms_norm(change, self._weight, self._eps, hidden, one_plus=self._one_plus, rows=rows)


class _Linear:
    """Linear modules side by side, as one over their merged weights [N, K] and biases [N]. `sums`: of what it computes, over
    the ranks."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sums: Sums | None = None) -> None:
        self._weight = weight
        self._bias = bias
        self._sums = sums

    @classmethod
    def merging(cls, modules: Sequence[nn.Linear], sums: Sums | None = None) -> _Linear:
        """The modules one after the other."""
        biased = any(module.bias is not None for module in modules)
        return cls(_merge(modules, "weight"), _merge(modules, "bias") if biased else None, sums)

    def columns(self, begin: int, end: int | None) -> _Linear:
        """Some columns of it."""
        return _Linear(self._weight[begin:end], None if self._bias is None else self._bias[begin:end])

    def __call__(self, rows: Tensor) -> Tensor:
        if takes(len(rows), self._weight):
            return few_rows(rows, self._weight, self._bias)
        return functional.linear(rows, self._weight, self._bias)

    def add_to(self, hidden: Tensor, rows: Tensor) -> Tensor | None:
        """Add the product to `hidden` [T, N], or return it, or parts [S, T, N] of it, for the norm to add."""
        if takes(len(rows), self._weight):
            return few_rows(rows, self._weight, self._bias, summed=False)
        if self._sums is not None:
            return functional.linear(rows, self._weight, self._bias)
        self.add_now(hidden, rows)
        return None

    def add_now(self, hidden: Tensor, rows: Tensor) -> None:
        """Add the product to `hidden` [T, N]."""
        if self._sums is not None:
            hidden += self._sums.of(functional.linear(rows, self._weight, self._bias))
            return
        hidden.addmm_(rows, self._weight.t())
        if self._bias is not None:
            hidden += self._bias

    def gated(self, rows: Tensor) -> Tensor:
        """silu(gate) * up, for gate and up merged."""
        if self._bias is None and takes(len(rows), self._weight, gated=True):
            return few_rows_gated(rows, self._weight)
        if self._bias is None and gated.takes(len(rows), self._weight):
            return gated.gated(rows, self._weight)
        return swiglu(functional.linear(rows, self._weight, self._bias))


def _block_sizes(rows: int) -> list[int]:
    """Blocks of rows; the last one has from half a block to one and a half."""
    whole = max(round(rows / _BLOCK), 1) - 1
    return [_BLOCK] * whole + [rows - whole * _BLOCK]


@torch.inference_mode()
def fuse_for_gpu(
    network: Any, layers: Sequence[LayerShape], division: Division | None = None
) -> FusedGpuNetwork | None:
    """The fused form of a network, or None where its structure, or how it is divided, isn't known."""
    if not is_known(network, layers):
        return None
    base = network.base_model
    if any(activation_name(layer.mlp.act_fn) != "silu" for layer in base.layers):
        return None
    if any(layer.self_attn.q_proj.bias is None and layer.self_attn.k_proj.bias is not None for layer in base.layers):
        return None
    if division is None:
        return FusedGpuNetwork(network, layers, None, joins=False)
    return _fuse_divided(network, layers, division)


def _fuse_divided(network: Any, layers: Sequence[LayerShape], division: Division) -> FusedGpuNetwork | None:
    from myna.engine.parallel.division import fits_fusing
    from myna.engine.parallel.sums import Sums

    if not fits_fusing(network, division):
        return None
    hidden, head = network.base_model.embed_tokens.weight.shape[1], network.lm_head
    sums = Sums.open(
        division.ranks, rows=MOST_SUMS, size=hidden, logit_rows=MOST_LOGITS, columns=head.out_features, dtype=head.weight.dtype
    )  # fmt: skip
    return FusedGpuNetwork(network, layers, sums, joins=division.of("lm_head") is not None)


def _merge(modules: Sequence[Any], name: str) -> Tensor:
    """A parameter of several modules as one tensor, of which the modules keep views."""
    parts: list[Tensor | None] = [getattr(module, name) for module in modules]
    if len(parts) == 1 and parts[0] is not None:
        return parts[0].data
    assert all(part is not None for part in parts), "some of the modules have a bias, some haven't"
    merged = torch.cat([part.data for part in parts if part is not None])
    sizes = [len(part) for part in parts if part is not None]
    for module, view in zip(modules, torch.split(merged, sizes), strict=True):
        getattr(module, name).data = view
    return merged


def _epsilon(module: Any) -> float:
    return float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))


def _adds_one(module: Any) -> bool:
    """Whether a norm multiplies by 1 + weight: a row of ones shows it."""
    ones = torch.ones(1, len(module.weight), dtype=module.weight.dtype, device=module.weight.device)
    return bool((module(ones)[0].float() - module.weight.float()).mean().round() == 1)


def _head_norms(attention: Any) -> HeadNorms | None:
    if getattr(attention, "q_norm", None) is None:
        return None
    return HeadNorms(attention.q_norm.weight.data, attention.k_norm.weight.data, _epsilon(attention.q_norm))


def _rotary(module: Any, context: int, like: Tensor) -> Rotary:
    """The module's cosines and sines of all positions, as it computes them itself."""
    positions = torch.arange(context, device=like.device)
    cos, sin = module(like[:1], positions[None])
    return Rotary(cos[0].contiguous(), sin[0].contiguous())
