from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.endpoints.headers import exhausted, retry_after

EPOCH = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:57 GMT"}, 20.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:57"}, 20.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_when_to_come_again_is_read_in_each_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, EPOCH) == seconds


@pytest.mark.parametrize(
    ("left", "reset", "limit", "seconds"),
    [
        ("0", "6m0s", None, 360.0),
        ("0", "20ms", None, 0.02),
        ("0", "60s", "120", 0.5),  # two a second come back
        ("3", "60s", "120", None),
        ("0", "in a while", "120", None),
        ("zero", "1s", None, None),
    ],
)
def test_an_allowance_that_is_used_up_is_waited_for_until_one_more_request_is_in_it(
    left: str, reset: str, limit: str | None, seconds: float | None
) -> None:
    headers = {"x-ratelimit-remaining-requests": left, "x-ratelimit-reset-requests": reset}
    assert exhausted(headers | ({"x-ratelimit-limit-requests": limit} if limit else {})) == seconds


def test_tokens_are_waited_for_until_a_hundredth_of_them_is_there() -> None:
    names = ("limit", "remaining", "reset")
    headers = {f"x-ratelimit-{n}-tokens": v for n, v in zip(names, ("10000", "50", "99.5s"), strict=True)}
    assert exhausted(headers) == pytest.approx(0.5)


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", *(f"x-ratelimit-{n}-tokens" for n in ("limit", "remaining", "reset"))]),
        st.text(),
    )
)
def test_no_header_is_an_error(headers: dict[str, str]) -> None:
    for seconds in (retry_after(headers, EPOCH), exhausted(headers)):
        assert seconds is None or seconds >= 0
