from __future__ import annotations

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from myna.actors.bus.headers import pack_headers, status_of, unpack_headers

NAMES = st.text(alphabet=string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)
VALUES = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=40).map(
    str.strip
)


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_headers_come_back_as_they_were(headers: dict[str, str]) -> None:
    block = pack_headers(headers)
    assert unpack_headers(block) == headers
    assert status_of(block) is None


def test_a_status_line_is_read() -> None:
    assert status_of(b"NATS/1.0 503\r\n\r\n") == 503
    assert status_of(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 5\r\n\r\n") == 100
    assert unpack_headers(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 5\r\n\r\n") == {
        "Nats-Last-Consumer": "5"
    }


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_header_block_can_be_read(block: bytes) -> None:
    unpack_headers(block)
    status_of(block)
