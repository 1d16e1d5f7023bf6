from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors import outcomes, subjects
from myna.actors.messages import CallUsage, SessionUsage, Usage, Value
from myna.actors.outcomes import Content

amounts = st.integers(0, 2**31)
usages = st.builds(
    Usage, prompt_tokens=amounts, cached_tokens=amounts, output_tokens=amounts, cost=st.just(0) | amounts
)


@given(st.text(max_size=20), usages)
def test_headers_tell_what_a_value_used_and_what_it_cost(text: str, usage: Usage) -> None:
    _, headers = outcomes.pack(Value(text=text, usage=usage))
    content = outcomes.read_content(headers)
    assert (content.characters, content.usage) == (len(text), usage)
    assert len(headers[subjects.CONTENT_HEADER].split(" ")) == (6 if usage.cost else 5), "older readers know no cost"


@given(usages)
def test_headers_tell_what_a_session_used(usage: Usage) -> None:
    calls = (CallUsage(call="c", function="f", usage=usage),)
    record = SessionUsage(tenant="t", session="s", used=usage, calls=calls)
    assert outcomes.read_usage(outcomes.usage_headers(record)) == (1, usage)


@pytest.mark.parametrize("told", ["", "1", "1 x", "1 x 2 3", "1 x 2 3 4 5 6", "a x 2 3 4"])
def test_headers_that_make_no_sense_tell_nothing(told: str) -> None:
    assert outcomes.read_content({subjects.CONTENT_HEADER: told}) == Content()
    assert outcomes.read_usage({subjects.USAGE_HEADER: told}) == (0, Usage())
