"""What the tests of the GPU model run in a process of their own: on a GPU, or through Triton's interpreter on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from myna.engine import attention
from myna.engine.admission import _trace
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from myna.engine.model import HuggingFaceNetwork, describe
from myna.engine.parallel.division import divide
from myna.engine.parallel.ranks import Ranks
from myna.engine.plan import StepPlan
from myna.engine.request import RequestId
from myna.engine.sampling import SamplingParams
from tests.engine import tiny_models
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.tiny_tokenizers import words
from tests.kernels.kernel_runs import DEVICE

SIZES = {"hidden_size": 32, "head_dim": 16, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


def sizes(architecture: str) -> dict[str, Any]:
    """The interpreter is slow: one layer is enough where all are alike."""
    alike = "gemma" not in architecture and DEVICE.type == "cpu"
    return SIZES | ({"num_hidden_layers": 1} if alike else {})


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [1, *torch.randint(3, tiny_models.VOCAB_SIZE, (count - 1,), generator=generator).tolist()]


SHARED = tokens(48, 99)
PROMPTS = [tokens(5, 1), SHARED + tokens(7, 3), SHARED + tokens(20, 4), SHARED]


def gpu_model(architecture: str, *, fused: bool, ranks: Ranks | None = None, **changes: Any) -> Any:
    """A tiny model behind `GpuModel`, float32; or one rank's part of it."""
    from myna.engine.gpu_model import GpuModel
    from myna.engine.gpu_network import fuse_for_gpu
    from myna.engine.triton_attention import TritonAttention

    network = tiny_models.build(architecture, **sizes(architecture) | changes)
    division = None if ranks is None else divide(network, architecture, ranks)
    network.to(DEVICE)
    attention.register()
    network.set_attn_implementation(attention.NAME)
    layers, vocab_size = _trace(network, architecture)
    spec = describe(
        network.config, network.generation_config, name=architecture, layers=layers, vocab_size=vocab_size,
        dtype=torch.float32, device=DEVICE, parts=1 if ranks is None else ranks.size,
    )  # fmt: skip
    pools = TritonAttention(layers, torch.float32, DEVICE, interpreted=DEVICE.type == "cpu")
    inner = fuse_for_gpu(network, layers, division) if fused else HuggingFaceNetwork(network)
    assert inner is not None, "the structure isn't known"
    return GpuModel(inner, pools, spec, ranks)


def engine(model: Any, *, pages: int = 40, step: int = 64, graphs: bool = True) -> Engine:
    limits = BatchLimits(max_sequences=4, step_tokens=step)
    config = EngineConfig(page_size=16, kv_tokens=16 * pages, limits=limits, checks=True, graphs=graphs, small_run=32)
    return Engine(model, words(tiny_models.VOCAB_SIZE), config)


def reference(architecture: str, count: int, **changes: Any) -> list[list[int]]:
    network = tiny_models.build(architecture, **sizes(architecture) | changes)
    made = []
    for prompt in PROMPTS:
        row = torch.tensor([prompt])
        limits = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        made.append(network.generate(row, attention_mask=torch.ones_like(row), **limits)[0, len(prompt) :].tolist())
    return made


def greedy_tokens_differ(architecture: str, fused: bool, count: int) -> str:
    """Batched, sharing a prefix, in chunks beside decodes, pipelined, twice: where it isn't what transformers generates."""
    return tokens_differ(gpu_model(architecture, fused=fused), reference(architecture, count))


def tokens_differ(model: Any, wanted: list[list[int]]) -> str:
    """As `greedy_tokens_differ`, of a model that is there, from what it has to generate for each of PROMPTS."""
    machine = engine(model)
    count = len(wanted[0])
    for name in "ab":
        for number, prompt in enumerate(PROMPTS):
            machine.submit(ask(f"{name}{number}", prompt, greedy(count, min_tokens=count)))
        said = drain(machine)
        assert not said.failed, said.failed
        for number, right in enumerate(wanted):
            if (made := said.tokens[f"{name}{number}", 0]) != right:
                return f"{name}{number}: {made} for {right}"
    return ""


def draws_repeat_alone_and_batched() -> bool:
    """Seeded draws with all kinds of limits, beside others and alone."""
    model = gpu_model("llama", fused=True)
    options = [
        {"temperature": 0.8, "top_k": 5, "logprobs": 2},
        {"temperature": 1.1, "top_p": 0.9, "presence_penalty": 0.5},
        {"temperature": 0.0, "repetition_penalty": 1.2, "stop_token_ids": (7,)},
        {"temperature": 0.7, "min_p": 0.05, "n": 2},
    ]

    def run(chosen: list[int]) -> Said:
        machine = engine(model)
        for number in chosen:
            sampling = SamplingParams(seed=number, max_tokens=3, ignore_eos=True, **options[number])  # type: ignore[arg-type]
            machine.submit(ask(f"r{number}", PROMPTS[number][:20], sampling))
        return drain(machine)

    together = run([0, 1, 2, 3])
    alone = [run([number]) for number in range(4)]
    assert not together.failed
    return all(said.tokens[key] == together.tokens[key] for said in alone for key in said.tokens)


def cancelling_and_preempting_leaves_nothing_behind() -> bool:
    """A pool that is too small, and a request that goes in the middle of a step."""
    machine = engine(gpu_model("qwen3", fused=True), pages=3)
    said = Said()
    for number in range(4):
        machine.submit(ask(f"r{number}", tokens(15, number), greedy(14, ignore_eos=True)))
    for _ in range(4):
        said.hear(machine.step())
    machine.cancel(RequestId("r1"))
    drain(machine, said)
    assert sorted(said.done) == ["r0", "r2", "r3"]
    assert machine.stats().preemptions > 0
    machine.tree.evict(machine.pool.pages)
    return machine.pool.free == machine.pool.pages


def padding_changes_nothing(bucket: int) -> float:
    """Logits of a step of three tokens, padded and not: the largest difference."""
    model = gpu_model("llama", fused=True)
    machine = engine(model)
    model.forward(StepPlan([5, 6, 7], [0, 1, 2], [16, 17, 18], _span(0, 3), [0, 1, 2]))
    plain = model.forward(StepPlan([8, 9, 10], [3, 4, 5], [19, 20, 21], _span(3, 6), [0, 2]))
    with torch.inference_mode():
        frame = model._frame(bucket)
        assert frame.load(StepPlan([8, 9, 10], [3, 4, 5], [19, 20, 21], _span(3, 6), [0, 2]))
        padded, best, places = frame.run()
    assert torch.equal(padded[:2].float().max(-1).values, best[:2])
    assert torch.equal(padded[:2].argmax(-1), places[:2])
    assert machine.pool.free == machine.pool.pages
    return float((padded[:2].float() - plain).abs().max())


def misaligned_inputs(tokens: int) -> list[int]:
    """By how many bytes the inputs of a step miss a multiple of 16."""
    inputs = gpu_model("llama", fused=True)._inputs_for(tokens, 5)
    views = inputs.views(tokens, 5)
    parts = (views.ids, views.places, views.positions, views.slots, views.logit_rows)
    assert [len(part) for part in parts] == [tokens] * 4 + [5]
    return [part.data_ptr() % 16 for part in parts]


def a_silent_step_matters() -> tuple[float, float]:
    """Logits behind a step that draws nothing, and behind none, against those behind a step that draws: largest differences."""
    model = gpu_model("llama", fused=True)
    engine(model)
    found = []
    for draws in ([0, 1, 2], [], None):
        model.allocate(40, 16)
        if draws is not None:
            model.forward(StepPlan([5, 6, 7], [0, 1, 2], [16, 17, 18], _span(0, 3), draws))
        found.append(model.forward(StepPlan([8, 9], [3, 4], [19, 20], _span(3, 5), [1])))
    spoken, silent, nothing = found
    return float((silent - spoken).abs().max()), float((nothing - spoken).abs().max())


def _span(begin: int, end: int) -> list[Any]:
    from myna.engine.plan import Span

    return [Span((1,), 0, end, range(end - begin), own=True)]
