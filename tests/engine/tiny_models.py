"""Tiny decoders with seeded random weights, one per architecture: two layers, hidden 32 to 64, a vocabulary of 160.

They are real `transformers` models, small enough for a test. Weights are drawn wider than the library's default, so that
logits differ clearly and a greedy choice is no tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

VOCAB_SIZE = 160
CONTEXT_LENGTH = 512
BOS, EOS = 1, 2
WINDOW = 12

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_MIXED = ["sliding_attention", "full_attention"]
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

ADMITTED: Mapping[str, dict[str, Any]] = {
    "llama": _BASE,
    "qwen2": {**_BASE, "tie_word_embeddings": True},
    "qwen3": {**_BASE, "head_dim": 16},
    "mistral": {**_BASE, "sliding_window": WINDOW},
    "gemma": {**_BASE, "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {
        **_BASE,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _MIXED,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "gemma3_text": {
        **_BASE,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _MIXED,
        "query_pre_attn_scalar": 16,
    },
    "phi3": {**_BASE, "original_max_position_embeddings": CONTEXT_LENGTH},
    "olmo2": _BASE,
    "gpt_oss": {
        **_BASE,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _MIXED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "gpt2": {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT_LENGTH,
        "initializer_range": 0.2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "opt": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "word_embed_proj_dim": 32,
        "init_std": 0.2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "dropout": 0.0,
    },
    "gpt_neox": {**_BASE, "rotary_pct": 0.5},
    "granite": {**_BASE, "attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "qwen3_moe": {**_BASE, **_MOE, "head_dim": 16, "decoder_sparse_step": 1},
    "mixtral": {**_BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "starcoder2": _BASE,
    "cohere": {**_BASE, "logit_scale": 1.0},
    "phi": _BASE,
    "smollm3": {**_BASE, "no_rope_layers": [1, 0]},
    "olmo": _BASE,
}
"""Architectures that can be packed: `model_type` to the arguments of its configuration."""

_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

REFUSED: Mapping[str, dict[str, Any]] = {
    "lfm2": {**_BASE, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {
        **_BASE,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "mamba": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    },
    "bloom": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    },
    "llama4_text": {
        **_BASE,
        "head_dim": 16,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 16,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "deepseek_v3": {
        **_BASE,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
    "qwen3_next": {
        **_BASE,
        **_MOE,
        "head_dim": 16,
        "shared_expert_intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "stablelm": _BASE,
    "llama": {**_BASE, "rope_parameters": _DYNAMIC},
}
"""Models that can't be packed, each for a reason of its own; the last is a llama with dynamic rope."""


def build(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """An admitted model, float32, in evaluation mode, on the CPU. `changes` override its configuration."""
    return _build(model_type, {**ADMITTED[model_type], **changes}, seed)


def build_refused(model_type: str, *, seed: int = 0) -> PreTrainedModel:
    """A model of a kind that the engine refuses."""
    return _build(model_type, dict(REFUSED[model_type]), seed)


def _build(model_type: str, arguments: dict[str, Any], seed: int) -> PreTrainedModel:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = AutoConfig.for_model(model_type, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomize_vectors(model)
    model.eval()
    return model


def _randomize_vectors(model: PreTrainedModel) -> None:
    """Norm weights, biases and sinks start as constants; give them values, so that leaving one out shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            assert torch.isfinite(parameter).all(), name
