from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from myna.engine.admission import admit
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from tests.engine.hash_model import HashModel
from tests.engine.soak import Soak, assert_lively
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.engine.tiny_tokenizers import words

torch.set_num_threads(1)
CONFIG = EngineConfig(page_size=4, kv_tokens=400, limits=BatchLimits(12, 64))


def test_a_long_random_life_leaks_nothing_and_changes_no_output() -> None:
    soak = Soak(Engine(admit(build("llama"), "llama"), words(VOCAB_SIZE), CONFIG), seed=1)
    soak.live(700)
    soak.end()
    assert_lively(soak)


def test_nor_does_one_that_computes_for_nobody_only_in_peace() -> None:
    config = replace(CONFIG, limits=BatchLimits(12, 64, ahead_tokens=0))
    soak = Soak(Engine(HashModel(vocabulary=VOCAB_SIZE, context_length=512), words(VOCAB_SIZE), config), seed=4)
    soak.live(1000)
    soak.end()
    assert_lively(soak)


@pytest.mark.parametrize("seed", [2, 3, 12])
@pytest.mark.parametrize("ahead", [0, 1])
def test_nor_does_one_with_steps_that_are_read_late(ahead: int, seed: int) -> None:
    model = HashModel(vocabulary=VOCAB_SIZE, context_length=512, ahead=ahead)
    soak = Soak(Engine(model, words(VOCAB_SIZE), CONFIG), seed)
    soak.live(1000)
    soak.end()
    assert_lively(soak)
