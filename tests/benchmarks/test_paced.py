from __future__ import annotations

import pytest

from myna.engine.engine import Engine, EngineConfig
from myna.engine.plan import Span, StepPlan
from tests.benchmarks.experiment.made import PACED, engine_of, parser
from tests.benchmarks.experiment.paced import KV_BYTES, PacedModel, seconds
from tests.engine.driving import ask, drain, greedy
from tests.engine.tiny_tokenizers import words


def decode(keys: int) -> StepPlan:
    """One sequence of so many tokens."""
    pages = tuple(range(-(-keys // 64)))
    return StepPlan([5], [keys - 1], [keys - 1], [Span(pages, 0, keys, range(1), own=True)], [0])


def test_a_step_takes_longer_the_more_rows_it_has_and_the_more_it_reads() -> None:
    rows = [seconds(n, 0) for n in (1, 16, 64, 256, 512, 1152, 4224, 16_896)]
    assert rows == sorted(set(rows))
    assert seconds(1, 30_000) - seconds(1, 0) == pytest.approx(30_000 * KV_BYTES / 3e12, rel=0.05)  # 3 TB/s


def test_steps_follow_one_another_and_begin_anew_when_the_last_is_over() -> None:
    now = 10.0
    model = PacedModel(lambda: now)
    first, second = model.begin(decode(128), []), model.begin(decode(129), [])
    assert first.end == pytest.approx(10.0 + seconds(1, 128))
    assert second.end == pytest.approx(first.end + seconds(1, 129))
    now = 20.0
    assert model.begin(decode(130), []).end == pytest.approx(20.0 + seconds(1, 130))


def test_an_engine_draws_the_same_from_it_whatever_runs_beside() -> None:
    def drawn(*others: str) -> list[int]:
        engine = Engine(PacedModel(), words(100), EngineConfig(kv_tokens=4096))
        for name in ("a", *others):
            engine.submit(ask(name, [1, 2, 3], greedy(4, ignore_eos=True)))
        return drain(engine).tokens["a", 0]

    assert drawn() == drawn("b", "c")
    assert len(drawn()) == 4


def test_an_engine_process_can_be_made_of_it() -> None:
    engine, tokenizer = engine_of(parser().parse_args(["--fd", "0", "--shape", PACED]))
    assert (engine.spec.name, engine.pool.page_size) == ("paced", 64)
    assert len(tokenizer) == engine.spec.vocab_size
