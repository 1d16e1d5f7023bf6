from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from myna.engine.engine import Engine, EngineConfig
from myna.engine.frames import FrameBuffer, Look, SurveyReport, decode_command, decode_report, encode
from myna.engine.interface import BatchLimits
from myna.engine.request import RequestId
from myna.engine.stats import Stage
from myna.engine.survey import BUCKET, LABEL, MOST_BUCKETS, MOST_PREFIXES, MOST_REQUESTS, StepLog
from tests.engine.driving import ask, drain, greedy
from tests.engine.hash_model import HashModel
from tests.engine.tiny_tokenizers import words

SHARED = [1, 2, 3, 4, 5, 6, 7, 8]


def engine(tokens: int = 2048, **limits: int) -> Engine:
    config = EngineConfig(page_size=4, kv_tokens=tokens, limits=BatchLimits(**limits), checks=True)
    return Engine(HashModel(eos=15), words(16), config)


@given(st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 9), st.integers(0, 9)), max_size=200))
def test_every_noted_step_is_told_once_whatever_the_pauses(pauses: list[tuple[float, int, int]]) -> None:
    log, now, computed, drawn = StepLog(), 100.0, 0, 0
    told = []
    for pause, prompt, draws in pauses:
        now += pause
        computed, drawn = computed + prompt + draws, drawn + draws
        log.note(now, 0.01, computed=computed, drawn=drawn, running=1, waiting=2, pages=3)
        told += log.take(now)
    told += log.take(now + 2 * BUCKET)
    assert sum(s.steps for s in told) == len(pauses)
    assert sum(s.drawn for s in told) == drawn
    assert sum(s.prefilled for s in told) == computed - drawn


def test_steps_that_nobody_asks_for_are_forgotten() -> None:
    log = StepLog()
    for n in range(3 * MOST_BUCKETS):
        log.note(n * 1.0, 0.5, computed=n, drawn=n, running=1, waiting=0, pages=1)
    told = log.take(1e6)
    assert len(told) == MOST_BUCKETS
    assert told[-1].ago == 1e6 - (3 * MOST_BUCKETS - 1)


def test_a_survey_tells_where_each_request_is() -> None:
    it = engine(max_sequences=2, step_tokens=8)
    for name, prompt in (("first", range(6)), ("second", range(7, 27)), ("third", range(5))):
        it.submit(ask(name, [p % 15 for p in prompt], greedy(6, ignore_eos=True)))
    it.step()
    stages = {r.id: r.stage for r in it.survey().requests}
    assert stages == {"first": Stage.DECODE, "second": Stage.PREFILL, "third": Stage.QUEUED}
    (second,) = (r for r in it.survey().requests if r.id == "second")
    assert (second.tokens, second.computed, second.drawn) == (20, 2, 0)
    drain(it)
    assert it.survey().requests == ()


def test_what_a_prefix_saved_is_what_requests_were_spared() -> None:
    it = engine(max_sequences=4, step_tokens=64)
    cached = 0
    for n in range(5):
        it.submit(ask(f"r{n}", [*SHARED, 9 + n % 5, 2, n, 4], greedy(2, ignore_eos=True)))
        said = drain(it)
        cached += said.finished[f"r{n}", 0].usage.cached_tokens
    shown = it.survey().prefixes
    assert sum(p.hits * p.tokens for p in shown) == cached == it.stats().hit_tokens > 0
    root = shown[0]
    assert (root.begin, root.tokens, root.parent, root.holders) == (0, len(SHARED), None, 0)
    assert root.hits == 4
    assert root.text.split() == words(16).decode(SHARED).split()
    assert {p.parent for p in shown[1:] if p.begin == len(SHARED)} == {root.id}


def test_holders_of_a_prefix_are_counted_and_named_by_the_requests() -> None:
    it = engine(max_sequences=4, step_tokens=64)
    it.submit(ask("maker", [*SHARED, 9], greedy(1, ignore_eos=True)))
    drain(it)
    for n in (1, 2):
        it.submit(ask(f"r{n}", [*SHARED, 9 + n], greedy(8, ignore_eos=True)))
    it.step()
    survey = it.survey()
    (node,) = (p for p in survey.prefixes if p.begin == 0)
    assert node.holders == 2
    assert {r.node for r in survey.requests} == {node.id}
    assert {r.cached for r in survey.requests} == {len(SHARED)}


def test_a_survey_is_bounded_and_goes_through_a_frame() -> None:
    it = engine(tokens=40_000, max_sequences=4, step_tokens=64)
    for n in range(MOST_PREFIXES + 20):
        tokens = [n % 15, n // 15, 3, 4] * 2
        it.retain(RequestId(f"kept-{n}"), [*tokens, 1])
    drain(it)
    for n in range(MOST_REQUESTS + 7):
        it.submit(ask(f"r{n}", [1, 2, 3], greedy(3)))
    survey = it.survey()
    assert (len(survey.requests), survey.left_out) == (MOST_REQUESTS, 7)
    assert len(survey.prefixes) == MOST_PREFIXES
    assert all(len(p.text) <= LABEL for p in survey.prefixes)
    (body,) = FrameBuffer().feed(encode(SurveyReport(survey)))
    assert decode_report(body) == SurveyReport(survey)
    (body,) = FrameBuffer().feed(encode(Look()))
    assert decode_command(body) == Look()
