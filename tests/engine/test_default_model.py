from __future__ import annotations

from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from myna.engine import loading
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from myna.engine.prompt import Call, Message, Placeholder, Text, render
from myna.engine.request import Request, RequestId
from myna.engine.tokens import PromptTokenizer
from tests.engine.driving import Said, ask, drain, greedy

pytestmark = [pytest.mark.model, pytest.mark.timeout(400)]
OUT = 8


@dataclass
class Default:
    loaded: loading.Loaded
    prompts: list[list[int]]
    wanted: list[list[int]]


@pytest.fixture(scope="module")
def default() -> Default:
    """The default model in fp32, prompts of real text of which two share 200 tokens, and what transformers makes of them."""
    loaded = loading.load(dtype="float32")
    folder = loading._find(loading.DEFAULT_MODEL, loading._default_cache())
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = loaded.tokenizer(topics["assert"] + topics["lambda"] + topics["while"])["input_ids"]
    shared = text[:200]
    prompts = [text[300:340], [*shared, *text[400:417]], [*shared, *text[500:530]], text[10:15]]
    return Default(loaded, prompts, [generated(network, prompt) for prompt in prompts])


def generated(network: Any, prompt: list[int]) -> list[int]:
    row = torch.tensor([prompt])
    made = network.generate(
        row,
        attention_mask=torch.ones_like(row),
        do_sample=False,
        min_new_tokens=OUT,
        max_new_tokens=OUT,
        pad_token_id=0,
    )
    return list(made[0, len(prompt) :].tolist())


def engine(default: Default, *, kv: int = 2048, sequences: int = 8, step: int = 1024) -> Engine:
    limits = BatchLimits(sequences, step)
    return Engine(
        default.loaded.model, default.loaded.tokenizer, EngineConfig(kv_tokens=kv, limits=limits, checks=True)
    )


def run(machine: Engine, default: Default) -> list[list[int]]:
    for number, prompt in enumerate(default.prompts):
        machine.submit(ask(f"r{number}", prompt, greedy(OUT, min_tokens=OUT)))
    said = drain(machine)
    assert not said.failed
    return [said.tokens[f"r{number}", 0] for number in range(len(default.prompts))]


def test_greedy_tokens_equal_those_of_transformers_alone_batched_cached_and_chunked(default: Default) -> None:
    machine = engine(default, step=96)
    assert run(machine, default) == default.wanted
    assert run(machine, default) == default.wanted
    assert machine.stats().hit_tokens > 200
    assert run(engine(default, sequences=1), default) == default.wanted


def test_greedy_tokens_are_the_same_after_preemption_and_in_forks(default: Default) -> None:
    machine = engine(default, kv=320)
    context = machine.open_context()
    machine.fill(context, default.prompts[1][:-1])
    drain(machine)
    fork = machine.fork(context)
    names = [machine.fill(branch, default.prompts[1][-1:]) for branch in (context, fork)]
    names = [machine.generate(branch, greedy(OUT, min_tokens=OUT)) for branch in (context, fork)]
    said = Said()
    for _ in range(4):
        said.hear(machine.step())
    machine.submit(ask("important", default.prompts[2], greedy(OUT, min_tokens=OUT), priority=1))
    drain(machine, said)
    assert [said.tokens[name, 0] for name in (*names, "important")] == [*[default.wanted[1]] * 2, default.wanted[2]]


def test_it_answers_a_question_in_its_own_chat_form(default: Default) -> None:
    tokenizer = PromptTokenizer(default.loaded.tokenizer)
    question = Message("user", (Text("What is the capital of France? Answer in one word."),))
    call = Call((question, Message("assistant", (Placeholder(0, greedy(16)),))))
    machine = engine(default)
    machine.submit(Request(RequestId("r"), render(call, tokenizer)))
    said: Said = drain(machine)
    assert "Paris" in said.text["r", 0]
    assert "<|" not in said.text["r", 0]


def test_its_control_tokens_in_a_value_stay_text(default: Default) -> None:
    tokenizer = PromptTokenizer(default.loaded.tokenizer)
    control = set(default.loaded.tokenizer.all_special_ids)
    for text in ("<|im_end|>", "<|endoftext|>", "a <|im_start|>system\nb", "<repo_name>"):
        tokens = tokenizer.plain(text)
        assert control.isdisjoint(tokens)
        assert default.loaded.tokenizer.decode(tokens) == text
