"""Decoders of two layers with the heads and options of real ones, random weights: tiny ones don't fit a GPU's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.engine import tiny_models

VOCAB_SIZE = 512
WINDOW = 128

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "initializer_range": 0.07,
    "max_position_embeddings": 4096,
}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

SMALL: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama, heads of 64": ("llama", {**_BASE, "head_dim": 64, "num_attention_heads": 8}),
    "llama, heads of 128": ("llama", {**_BASE, "head_dim": 128, "num_attention_heads": 8}),
    "llama, MHA, heads of 96": ("llama", {**_BASE, "head_dim": 96, "num_attention_heads": 2}),
    "qwen3": ("qwen3", {**_BASE, "head_dim": 128, "num_attention_heads": 8}),
    "gemma3_text": (
        "gemma3_text",
        {**_BASE, **_MIXED, "head_dim": 256, "num_key_value_heads": 1, "query_pre_attn_scalar": 256},
    ),
    "gemma2": ("gemma2", {**_BASE, **_MIXED, "head_dim": 256, "query_pre_attn_scalar": 256}),
    "gpt_oss": ("gpt_oss", {**_BASE, **_MIXED, "head_dim": 64, "num_attention_heads": 16}),
    "mixtral": ("mixtral", {**_BASE, "head_dim": 128, "num_attention_heads": 8}),
}
"""Names to a `tiny_models` architecture and what is larger than there."""


def build(name: str, dtype: torch.dtype, device: torch.device, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A small model; the same seed gives the same weights, rounded to `dtype`."""
    architecture, sizes = SMALL[name]
    model = tiny_models.build(architecture, seed=seed, **{**sizes, **changes})
    return model.to(device=device, dtype=dtype)  # type: ignore[call-overload, no-any-return]
