from __future__ import annotations

from functools import cache

import pytest
import torch

from myna.engine.admission import admit
from myna.engine.engine import Engine, EngineConfig
from myna.engine.interface import BatchLimits
from myna.engine.model import Model
from myna.engine.request import Fill, FinishReason, Generate, Request, RequestId
from myna.engine.sampling import SamplingParams
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.tiny_models import ADMITTED, BOS, EOS, VOCAB_SIZE, build
from tests.engine.tiny_tokenizers import words

torch.set_num_threads(1)
OUT = 12


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [BOS, *torch.randint(3, VOCAB_SIZE, (count - 1,), generator=generator).tolist()]


SHARED = tokens(40, 99)
PROMPTS = [tokens(5, 1), tokens(33, 2), SHARED + tokens(7, 3), SHARED + tokens(20, 4), SHARED, tokens(1, 5)]


@cache
def reference(architecture: str, tokens: int = OUT, least: int = 0) -> list[list[int]]:
    """What transformers generates greedily for each prompt, the end token left out."""
    network = build(architecture)
    outputs = []
    for prompt in PROMPTS:
        row = torch.tensor([prompt])
        mask = torch.ones_like(row)
        limits = {"max_new_tokens": tokens, "min_new_tokens": least}
        made = network.generate(row, attention_mask=mask, do_sample=False, pad_token_id=0, **limits)
        outputs.append([token for token in made[0, len(prompt) :].tolist() if token != EOS])
    return outputs


@cache
def model(architecture: str = "llama") -> Model:
    return admit(build(architecture), architecture)


def engine(
    architecture: str = "llama", *, pages: int = 128, sequences: int = 16, step: int = 256, page: int = 4
) -> Engine:
    limits = BatchLimits(sequences, step)
    config = EngineConfig(page_size=page, kv_tokens=pages * page, limits=limits, checks=True)
    return Engine(model(architecture), words(VOCAB_SIZE), config)


PLAIN = greedy(OUT)


def run_all(machine: Engine, sampling: SamplingParams = PLAIN, **more: object) -> list[list[int]]:
    for number, prompt in enumerate(PROMPTS):
        machine.submit(ask(f"r{number}", prompt, sampling, **more))
    said = drain(machine)
    assert not said.failed
    return [said.tokens[f"r{number}", 0] for number in range(len(PROMPTS))]


@pytest.mark.parametrize("architecture", sorted(ADMITTED))
def test_greedy_tokens_equal_those_of_transformers(architecture: str) -> None:
    """Batched over shared prefixes, then again out of the cache; in chunks; and with preemption."""
    wanted = reference(architecture)
    batched = engine(architecture)
    assert run_all(batched) == wanted
    assert run_all(batched) == wanted
    assert batched.stats().hit_tokens > 0
    assert run_all(engine(architecture, step=7, sequences=3)) == wanted
    tight = engine(architecture, pages=26)
    assert run_all(tight, greedy(32, min_tokens=32)) == reference(architecture, 32, 32)
    assert tight.stats().preemptions > 0


def test_greedy_tokens_are_the_same_one_request_at_a_time_and_without_cache() -> None:
    alone = engine(sequences=1)
    assert run_all(alone, cache_prefix=False) == reference("llama")
    assert alone.stats().hit_tokens == 0
    assert alone.pool.free == alone.pool.pages


def test_forks_go_on_as_their_prompt_alone_would() -> None:
    machine = engine()
    said = Said()
    context = machine.open_context()
    machine.fill(context, PROMPTS[2][:-1])
    drain(machine, said)
    fork = machine.fork(context)
    names = []
    for branch in (context, fork):
        machine.fill(branch, PROMPTS[2][-1:])
        names.append(machine.generate(branch, greedy(OUT)))
    drain(machine, said)
    assert [said.tokens[name, 0] for name in names] == [reference("llama")[2]] * 2
    machine.free(context)
    again = machine.fork(fork)
    machine.free(fork)
    machine.free(again)
    assert not list(machine.contexts)


def test_siblings_share_their_prompt_and_greedy_ones_are_equal() -> None:
    machine = engine()
    machine.submit(ask("r", PROMPTS[1], greedy(OUT, n=3)))
    said = drain(machine)
    assert [said.tokens["r", index] for index in range(3)] == [reference("llama")[1]] * 3
    assert said.done == ["r"]
    assert machine.stats().computed_tokens < len(PROMPTS[1]) + 3 * (OUT + 1)


def test_sampled_siblings_differ_and_repeat_under_their_seed() -> None:
    def draw(**more: object) -> list[list[int]]:
        machine = engine(**more)  # type: ignore[arg-type]
        machine.submit(ask("r", PROMPTS[1], SamplingParams(seed=7, n=3, max_tokens=OUT, ignore_eos=True)))
        for number in range(int(bool(more)) * 4):
            machine.submit(ask(f"beside{number}", PROMPTS[number], SamplingParams(max_tokens=9)))
        said = drain(machine)
        return [said.tokens["r", index] for index in range(3)]

    first = draw()
    assert len({tuple(output) for output in first}) == 3
    assert draw(step=5, pages=64) == first


def test_requests_that_share_a_prefix_compute_it_once_when_submitted_together() -> None:
    machine = engine(step=32)
    for number in range(8):
        machine.submit(ask(f"r{number}", [*SHARED, 50 + number, 60], greedy(2, ignore_eos=True)))
    said = drain(machine)
    assert len(said.done) == 8
    assert machine.stats().computed_tokens == 40 + 8 * 2 + 8 * 1
    cached = sorted(said.finished[f"r{number}", 0].usage.cached_tokens for number in range(8))
    assert cached == [0] + [40] * 7


def test_a_program_of_several_outputs_equals_its_outputs_one_by_one() -> None:
    sampling = greedy(5, ignore_eos=True)
    machine = engine()
    first, second = tokens(9, 11), tokens(6, 12)
    steps = (Fill(tuple(first)), Generate(0, sampling), Fill(tuple(second)), Generate(1, sampling))
    machine.submit(Request(RequestId("both"), steps))
    said = drain(machine)
    machine.submit(ask("one", first, sampling))
    drain(machine, said)
    machine.submit(ask("two", [*first, *said.tokens["one", 0], *second], sampling))
    drain(machine, said)
    assert said.tokens["both", 0] == said.tokens["one", 0]
    assert said.tokens["both", 1] == said.tokens["two", 0]
    assert said.finished["both", 1].usage.prompt_tokens == 9 + 5 + 6


@pytest.mark.parametrize("sampling", [greedy(10, ignore_eos=True), SamplingParams(seed=3, max_tokens=10, n=2)])
def test_an_interrupted_output_goes_on_from_its_published_tokens(sampling: SamplingParams) -> None:
    machine = engine()
    machine.submit(ask("whole", PROMPTS[0], sampling))
    whole = drain(machine)
    published = tuple(tuple(whole.tokens["whole", index][:4]) for index in range(sampling.n))
    steps = (Fill(tuple(PROMPTS[0])), Generate(0, sampling, published))
    machine.submit(Request(RequestId("again"), steps))
    again = drain(machine)
    for index in range(sampling.n):
        assert again.tokens["again", index] == whole.tokens["whole", index][4:]
        assert again.finished["again", index].usage.output_tokens == whole.finished["whole", index].usage.output_tokens
        said = "".join(f" w{token}" for token in published[index])
        assert said + again.text["again", index] == whole.text["whole", index]


def test_forced_tokens_that_complete_an_output_end_it_at_once() -> None:
    machine = engine()
    steps = (Fill((1, 5)), Generate(0, greedy(3), ((7, 8, 9),)))
    machine.submit(Request(RequestId("r"), steps))
    said = drain(machine)
    assert said.finished["r", 0].reason is FinishReason.LENGTH
    assert not said.deltas
    assert machine.stats().steps == 0


def test_stop_strings_end_the_text_and_the_next_fill_follows_what_is_kept() -> None:
    plain = reference("llama")[1]
    machine = engine()
    stop = f"w{plain[3]} "
    steps = (Fill(tuple(PROMPTS[1])), Generate(0, greedy(OUT, stop=(stop,))), Fill((9,)), Generate(1, greedy(2)))
    machine.submit(Request(RequestId("r"), steps))
    said = drain(machine)
    assert said.text["r", 0] == "".join(f" w{token}" for token in plain[:3]) + " "
    assert said.finished["r", 0].reason is FinishReason.STOP
    assert said.finished["r", 1].usage.prompt_tokens < len(PROMPTS[1]) + len(said.tokens["r", 0]) + 1


def test_logprobs_come_with_each_token() -> None:
    machine = engine()
    machine.submit(ask("r", PROMPTS[0], greedy(4, logprobs=2, ignore_eos=True)))
    said = drain(machine)
    entries = [entry for delta in said.deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in entries] == said.tokens["r", 0]
    assert all(entry.alternatives[0] == (entry.token_id, entry.logprob) for entry in entries)


def test_an_output_ends_where_the_pool_ends() -> None:
    machine = engine(pages=4)
    machine.submit(ask("r", PROMPTS[0], greedy(100, ignore_eos=True)))
    finished = drain(machine).finished["r", 0]
    assert (finished.reason, finished.usage.output_tokens) == (FinishReason.LENGTH, 16 - 5)


def test_nothing_is_shared_between_namespaces() -> None:
    machine = engine()
    for name in ("one", "two"):
        machine.submit(ask(name, SHARED, greedy(1), namespace=name))
        assert drain(machine).finished[name, 0].usage.cached_tokens == 0


def test_a_more_important_request_goes_first() -> None:
    machine = engine(sequences=1)
    machine.submit(ask("low", PROMPTS[0], greedy(2)))
    machine.submit(ask("high", PROMPTS[1], greedy(2), priority=1))
    assert drain(machine).done == ["high", "low"]


def test_what_is_more_important_takes_a_running_ones_place_and_that_goes_on_afterwards() -> None:
    machine = engine(sequences=1)
    said = Said()
    machine.submit(ask("low", PROMPTS[0], PLAIN))
    for _ in range(4):
        said.hear(machine.step())
    machine.submit(ask("equal", PROMPTS[1], greedy(2)))
    machine.submit(ask("high", PROMPTS[1], greedy(2), priority=1))
    drain(machine, said)
    assert said.done == ["high", "low", "equal"]
    assert machine.stats().preemptions == 1
    assert said.tokens["low", 0] == reference("llama")[0]


def test_pages_are_taken_from_what_is_less_important() -> None:
    machine = engine(pages=16)
    said = Said()
    machine.submit(ask("low", tokens(40, 7), greedy(8, ignore_eos=True)))
    for _ in range(3):
        said.hear(machine.step())
    machine.submit(ask("high", tokens(50, 8), greedy(2, ignore_eos=True), priority=1))
    assert drain(machine, said).done == ["high", "low"]
