"""Outputs with constraints where steps run ahead and masks go to the GPU."""

from __future__ import annotations

import json
import re

import pytest
import torch

from myna.engine.admission import admit
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from myna.engine.request import FinishReason
from myna.engine.sampling import SamplingParams
from myna.engine.structured.constraint import constraint_of
from tests.engine.driving import ask, drain
from tests.engine.small_models import build
from tests.engine.tiny_tokenizers import byte_level

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]
BIRD = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["bird", "cat"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_outputs_keep_their_form_beside_others_that_have_none(temperature: float) -> None:
    tokenizer = byte_level()
    network = build("llama, heads of 128", torch.bfloat16, torch.device("cuda"), vocab_size=len(tokenizer))
    machine = Engine(
        admit(network, "small"), tokenizer, EngineConfig(kv_tokens=8192, limits=BatchLimits(16, 256), checks=True)
    )
    constraints = {"json": constraint_of("json_schema", BIRD), "regex": constraint_of("regex", "(ab|c){2,5}[0-9]")}
    for number in range(4):
        for name, constraint in {**constraints, "free": None}.items():
            sampling = SamplingParams(temperature=temperature, seed=number, max_tokens=200, constraint=constraint)
            machine.submit(ask(f"{name}{number}", [40, 41, 42 + number], sampling))
    said = drain(machine)
    assert not said.failed, said.failed
    for number in range(4):
        assert said.finished[f"json{number}", 0].reason is FinishReason.STOP
        assert json.loads(said.text[f"json{number}", 0])["kind"] in ("bird", "cat")
        assert re.fullmatch("(ab|c){2,5}[0-9]", said.text[f"regex{number}", 0])
