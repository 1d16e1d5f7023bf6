"""Two GPUs have to say what one says, through the whole path: processes, shards, sums, graphs."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from myna.engine.loading import load
from myna.engine.parallel.leader import load_divided
from tests.engine.scoring import Spoken, apart, speak
from tests.engine.small_models import build
from tests.engine.test_on_a_gpu import OUT, PROMPTS
from tests.engine.tiny_tokenizers import byte_level

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed"),
    pytest.mark.timeout(90),
]
TOKENIZER = byte_level()
EXACT = 2e-3
PATIENCE = 50.0


def folder(parent: Path, name: str) -> Path:
    network: PreTrainedModel = build(name, torch.float32, torch.device("cpu"))
    network.save_pretrained(parent)
    TOKENIZER.save_pretrained(parent)
    return parent


def engine(model: Any) -> Engine:
    return Engine(model, TOKENIZER, EngineConfig(kv_tokens=8192, limits=BatchLimits(16, 256), checks=True))


def said_by_one(place: Path, dtype: str) -> list[Spoken]:
    return speak(engine(load(place, device="cuda:0", dtype=dtype).model), PROMPTS, OUT)


def said_by_two(place: Path, dtype: str) -> tuple[list[Spoken], list[Spoken]]:
    """All prompts' outputs, then longer ones of the first three."""
    with load_divided(place, ["cuda:0", "cuda:1"], dtype=dtype) as divided:
        machine = engine(divided.model)
        assert machine.pool.pages * machine.pool.page_size == 8192
        return speak(machine, PROMPTS, OUT), speak(machine, PROMPTS[:3], 2 * OUT)


def said_by_two_groups(place: Path, dtype: str) -> list[list[Spoken]]:
    """The outputs of a first group of this process, and of a second."""
    return [said_by_two(place, dtype)[0] for _ in range(2)]


def in_a_process_of_its_own(work: Any, *arguments: Any) -> Any:
    """What it gives, if it does so in time; otherwise the process is ended, and others that wait for it end by themselves."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply_async(work, arguments).get(PATIENCE)


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("llama, heads of 128", "float32", EXACT),
        ("llama, heads of 128", "bfloat16", 0.3),
        ("qwen3", "bfloat16", 0.3),
        ("gemma2", "float32", EXACT),
    ],
    ids=["llama, float32", "llama, bfloat16", "qwen3", "gemma2, which isn't fused"],
)
def test_two_gpus_say_what_one_says(name: str, dtype: str, bound: float, tmp_path: Path) -> None:
    place = folder(tmp_path, name)
    alone = said_by_one(place, dtype)
    both, again = in_a_process_of_its_own(said_by_two, place, dtype)
    worst = max(apart(one, other) for one, other in zip(alone, both, strict=True))
    print(f"{name}, {dtype}: two GPUs are {worst:.1e} from one")
    assert worst < bound
    if dtype == "float32":
        assert [each.tokens for each in both] == [each.tokens for each in alone]
        assert [each.tokens[:OUT] for each in again] == [each.tokens for each in both[:3]]


def test_a_second_group_of_a_process_says_what_one_gpu_says(tmp_path: Path) -> None:
    place = folder(tmp_path, "llama, heads of 128")
    alone = said_by_one(place, "float32")
    for group in in_a_process_of_its_own(said_by_two_groups, place, "float32"):
        assert max(apart(one, other) for one, other in zip(alone, group, strict=True)) < EXACT
