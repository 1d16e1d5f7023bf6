from __future__ import annotations

import torch

from myna.engine.engine import Engine
from myna.engine.errors import RequestCancelled
from myna.engine.interface import BatchLimits
from myna.engine.request import RequestId
from tests.engine.driving import Said, ask, drain, greedy
from tests.engine.hash_model import HashModel, serve

torch.set_num_threads(1)
VOCABULARY = 64


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()


SHARED = tokens(40, 99)


def engine(*, pages: int = 24, sequences: int = 16) -> Engine:
    model = HashModel(vocabulary=VOCABULARY, context_length=256)
    return serve(model, pages=pages, limits=BatchLimits(sequences, 256))


def cached(said: Said, name: str) -> int:
    return said.finished[name, 0].usage.cached_tokens


def test_a_retained_prefix_outlives_pressure_and_yields_when_nothing_else_can() -> None:
    machine = engine()
    machine.retain(RequestId("pin"), SHARED)
    assert drain(machine).done == ["pin"]
    machine.submit(ask("a", tokens(40, 8), greedy(2)))
    machine.submit(ask("b", tokens(40, 9), greedy(2)))
    drain(machine)
    machine.submit(ask("hit", [*SHARED, 5], greedy(1)))
    assert cached(drain(machine), "hit") == 40
    assert machine.stats().pins == 1
    machine.submit(ask("large", tokens(90, 10), greedy(2)))
    assert drain(machine).done == ["large"]
    assert machine.stats().pins == 0


def test_of_retained_prefixes_the_one_whose_use_is_farthest_yields_first() -> None:
    machine = engine()
    for name, seed, distance in (("soon", 20, 1.0), ("late", 21, 60.0), ("later", 22, 30.0)):
        machine.retain(RequestId(name), tokens(24, seed), distance=distance)
        drain(machine)
    assert machine.stats().pins == 3
    machine.submit(ask("large", tokens(60, 23), greedy(2)))
    assert drain(machine).done == ["large"]
    assert 0 < machine.stats().pins < 3
    machine.submit(ask("hit", [*tokens(24, 20), 5], greedy(1)))
    assert cached(drain(machine), "hit") == 24


def test_a_prefix_is_computed_when_nothing_else_waits_and_given_up_when_it_need_not_be_kept() -> None:
    machine = engine(sequences=1)
    machine.retain(RequestId("pin"), SHARED)
    machine.submit(ask("first", tokens(5, 1), greedy(2)))
    assert drain(machine).done == ["first", "pin"]
    machine.retain(RequestId("other"), tokens(40, 9))
    machine.unpin(RequestId("other"))
    said = drain(machine)
    assert isinstance(said.failed["other"], RequestCancelled)
    assert machine.stats().pins == 1


def test_a_prefix_that_is_retained_anew_takes_the_room_of_the_old_one() -> None:
    machine = engine()
    machine.retain(RequestId("pin"), SHARED)
    drain(machine)
    machine.retain(RequestId("pin"), tokens(84, 11))
    assert drain(machine).done == ["pin"]
    machine.submit(ask("hit", [*tokens(84, 11), 5], greedy(1)))
    assert cached(drain(machine), "hit") == 84
    machine.unpin(RequestId("pin"))
    machine.unpin(RequestId("pin"))
    assert machine.stats().pins == 0


def test_the_first_who_goes_on_behind_a_retained_prefix_finds_all_of_it_and_the_next_its_whole_pages() -> None:
    machine = engine()
    machine.retain(RequestId("pin"), [*SHARED, 1, 2, 3])
    drain(machine)
    for following, found in ((5, 43), (6, 40)):
        prompt = ask("a", [*SHARED, 1, 2, 3, following], greedy(3))
        alone = engine()
        for each in (machine, alone):
            each.submit(prompt)
        said = drain(machine)
        assert cached(said, "a") == found
        assert said.tokens == drain(alone).tokens, "the page that was gone on in held something else"


def test_of_a_whole_prompt_that_was_retained_all_but_the_last_token_is_found() -> None:
    machine = engine()
    prompt = [*SHARED, 1, 2, 3]
    machine.retain(RequestId("pin"), prompt)
    drain(machine)
    machine.submit(ask("a", prompt, greedy(1)))
    assert cached(drain(machine), "a") == len(prompt) - 1


def test_the_last_page_of_a_retained_prefix_is_free_again_when_it_is_let_go() -> None:
    machine = engine()
    free = machine.pool.free
    for prompt in ([*SHARED, 1], [1, 2]):
        machine.retain(RequestId("pin"), prompt)
        drain(machine)
    assert machine.pool.free == free - 11
    machine.unpin(RequestId("pin"))
    assert machine.pool.free == free - 10, "the whole pages stay, as a cache"
