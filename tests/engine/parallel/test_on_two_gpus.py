"""Two GPUs have to say what one says, through the whole path: processes, shards, sums, graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from myna.engine.loading import load
from myna.engine.parallel.leader import load_divided
from tests.engine.scoring import apart, speak
from tests.engine.small_models import build
from tests.engine.test_on_a_gpu import OUT, PROMPTS
from tests.engine.tiny_tokenizers import byte_level

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed"),
    pytest.mark.timeout(300),
]
TOKENIZER = byte_level()


def folder(parent: Path, name: str) -> Path:
    network: PreTrainedModel = build(name, torch.float32, torch.device("cpu"))
    network.save_pretrained(parent)
    TOKENIZER.save_pretrained(parent)
    return parent


def engine(model: Any) -> Engine:
    return Engine(model, TOKENIZER, EngineConfig(kv_tokens=8192, limits=BatchLimits(16, 256), checks=True))


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("llama, heads of 128", "float32", 2e-3),
        ("llama, heads of 128", "bfloat16", 0.3),
        ("qwen3", "bfloat16", 0.3),
        ("gemma2", "float32", 2e-3),
    ],
    ids=["llama, float32", "llama, bfloat16", "qwen3", "gemma2, which isn't fused"],
)
def test_two_gpus_say_what_one_says(name: str, dtype: str, bound: float, tmp_path: Path) -> None:
    place = folder(tmp_path, name)
    alone = speak(engine(load(place, device="cuda:0", dtype=dtype).model), PROMPTS, OUT)
    with load_divided(place, ["cuda:0", "cuda:1"], dtype=dtype) as divided:
        machine = engine(divided.model)
        both = speak(machine, PROMPTS, OUT)
        again = speak(machine, PROMPTS[:3], 2 * OUT)
        assert machine.pool.pages * machine.pool.page_size == 8192
    worst = max(apart(one, other) for one, other in zip(alone, both, strict=True))
    print(f"{name}, {dtype}: two GPUs are {worst:.1e} from one")
    assert worst < bound
    if dtype == "float32":
        assert [each.tokens for each in both] == [each.tokens for each in alone]
        assert [each.tokens[:OUT] for each in again] == [each.tokens for each in both[:3]]
