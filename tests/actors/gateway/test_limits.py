from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.gateway.limits import BURST_SECONDS, Bucket, Limits


def test_a_burst_is_granted_then_one_at_a_time() -> None:
    bucket = Bucket(60.0)
    assert [bucket.take(0.0) for _ in range(10)] == [None] * 10
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(1.0) is None
    assert bucket.take(1.0) == pytest.approx(1.0)


def test_a_small_rate_grants_one_at_once() -> None:
    bucket = Bucket(0.5)
    assert bucket.take(5.0) is None
    assert bucket.take(5.0) == pytest.approx(120.0)


@given(st.floats(0.1, 6000), st.lists(st.floats(0, 10), max_size=60))
def test_never_more_is_granted_than_the_rate_and_a_burst(rate: float, pauses: list[float]) -> None:
    bucket, now, granted = Bucket(rate), 100.0, 0
    for pause in pauses:
        now += pause
        wait = bucket.take(now)
        granted += wait is None
        assert wait is None or wait > 0
        assert granted <= max(1.0, rate / 60 * BURST_SECONDS) + (now - 100.0) * rate / 60 + 1e-6


@given(st.floats(0.1, 6000))
def test_whoever_waits_as_long_as_he_is_told_is_granted(rate: float) -> None:
    bucket = Bucket(rate)
    while (wait := bucket.take(1.0)) is None:
        pass
    assert bucket.take(1.0 + wait + 1e-6) is None


def test_everybody_has_a_bucket_of_his_own_and_who_has_no_rate_has_no_limit() -> None:
    limits = Limits()
    assert limits.take("a", 1.0, 0.0) is None
    assert limits.take("a", 1.0, 0.0) is not None
    assert limits.take("b", 1.0, 0.0) is None
    assert [limits.take("c", None, 0.0) for _ in range(100)] == [None] * 100
    assert limits.take("a", 600.0, 0.0) is None  # a new rate counts at once
