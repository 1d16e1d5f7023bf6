"""Linear maps whose weights are laid out once for the machine that multiplies them, with the neighbours fused in.

oneDNN can bring a weight into its blocked layout ahead of time and add an activation, a product or a sum to the end of
a multiplication; unpacked, torch re-orders a bfloat16 weight at every call, which doubles the time of a decode step.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_pytorch_tanh": ("gelu", "tanh")}
"""transformers' names of activations that can be fused: oneDNN's name and algorithm."""

_ROWS_HINT = {torch.bfloat16: 1, torch.float16: 1}
"""Rows for which the packed layout is chosen; measured best over 1, 16 and 512 rows. 16 for float32."""


class Linear(Protocol):
    """A linear map of rows [T, in] to [T, out], followed by one cheap thing."""

    def plain(self, rows: Tensor) -> Tensor:
        """The map alone."""

    def activated(self, rows: Tensor, activation: str) -> Tensor:
        """The map, then an activation of `ACTIVATIONS`."""

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """The map, then a product with `other` [T, out]."""

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """The map, then a sum with `other` [T, out]."""


class PackedLinear:
    """A linear map in oneDNN's layout."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rows = _ROWS_HINT.get(weight.dtype, 16)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self._bias = bias

    def plain(self, rows: Tensor) -> Tensor:
        """The map alone."""
        output: Tensor = _unary(rows, self._weight, self._bias, "none", [], "")
        return output

    def activated(self, rows: Tensor, activation: str) -> Tensor:
        """The map, then an activation of `ACTIVATIONS`."""
        kind, algorithm = ACTIVATIONS[activation]
        output: Tensor = _unary(rows, self._weight, self._bias, kind, [], algorithm)
        return output

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """The map, then a product with `other`."""
        output: Tensor = _binary(rows, other, self._weight, self._bias, "mul")
        return output

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """The map, then a sum with `other`."""
        output: Tensor = _binary(rows, other, self._weight, self._bias, "add")
        return output


class PlainLinear:
    """The same in torch's own operations, for machines without oneDNN."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight.contiguous()
        self._bias = bias

    def plain(self, rows: Tensor) -> Tensor:
        """The map alone."""
        return functional.linear(rows, self._weight, self._bias)

    def activated(self, rows: Tensor, activation: str) -> Tensor:
        """The map, then an activation of `ACTIVATIONS`."""
        output = self.plain(rows)
        if activation == "silu":
            return functional.silu(output)
        return functional.gelu(output, approximate=ACTIVATIONS[activation][1])

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """The map, then a product with `other`."""
        return self.plain(rows) * other

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """The map, then a sum with `other`."""
        return self.plain(rows) + other


def make_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The fastest linear map that this machine has for a weight [out, in]; the weight itself isn't kept."""
    return PackedLinear(weight, bias) if can_pack(weight.dtype) else PlainLinear(weight, bias)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes weights of this dtype here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
    _unary = torch.ops.mkldnn._linear_pointwise.default
    _binary = torch.ops.mkldnn._linear_pointwise.binary
