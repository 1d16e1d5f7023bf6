"""A tiny model as a folder, as from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests.engine.tiny_models import build
from tests.engine.tiny_tokenizers import byte_level


def tiny_folder(parent: Path, name: str = "tiny-llama", **changes: Any) -> Path:
    """Write a llama with random weights and a byte-level tokenizer with a chat template; `changes` are of its configuration."""
    path = parent / name
    path.mkdir()
    network = build("llama", vocab_size=400, **changes)
    network.config.architectures = ["LlamaForCausalLM"]
    network.config.save_pretrained(path)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    byte_level().save_pretrained(path)
    return path
