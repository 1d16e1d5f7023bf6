from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.actors import subjects
from myna.actors.bus.broker import matches
from myna.actors.messages import SessionId, Tenant, VarId, WorkerId
from myna.actors.subjects import Address, FromWorker, InvalidName, Leaf, ToWorker

TOKEN = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=1, max_size=80)
T, S, V, W = Tenant("acme"), SessionId("s1"), VarId("v"), WorkerId("w")


@settings(deadline=None)
@given(TOKEN, TOKEN, TOKEN, st.integers(0, 10**9))
def test_every_subject_of_a_session_is_parsed_back(tenant: str, session: str, variable: str, n: int) -> None:
    t, s, v = Tenant(tenant), SessionId(session), VarId(variable)
    assert subjects.parse(subjects.log(t, s)) == Address(t, s, Leaf.LOG)
    assert subjects.parse(subjects.alive(t, s)) == Address(t, s, Leaf.ALIVE)
    assert subjects.parse(subjects.write(t, s, v)) == Address(t, s, Leaf.SET, v)
    assert subjects.parse(subjects.read(t, s, v)) == Address(t, s, Leaf.VAR, v)
    assert subjects.parse(subjects.write_chunk(t, s, v, n)) == Address(t, s, Leaf.PUT, v, n)
    assert subjects.parse(subjects.read_chunk(t, s, v, n)) == Address(t, s, Leaf.TOK, v, n)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_other_text_is_an_invalid_name(text: str) -> None:
    try:
        address = subjects.parse(text)
    except InvalidName:
        return
    assert text.startswith(f"myna.{address.tenant}.{address.session}.{address.leaf.value}")


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "myna",
        "myna.t.s",
        "myna.t.s.nothing",
        "other.t.s.log",
        "myna.t.s.set.v.1.2",
        "myna.*.s.log",
        "myna.t.s.put.v.x",
    ],
)
def test_these_are_no_subjects_of_a_session(subject: str) -> None:
    with pytest.raises(InvalidName, match="no subject of a session"):
        subjects.parse(subject)


@pytest.mark.parametrize("bad", ["", "a.b", "*", ">", "a b", "a\n", "ä", "x" * 81, "a/b", "$JS"])
def test_a_name_that_would_change_the_subject_is_refused(bad: str) -> None:
    with pytest.raises(InvalidName, match="must be 1 to 80"):
        subjects.log(Tenant(bad), S)
    with pytest.raises(InvalidName, match="session"):
        subjects.log(T, SessionId(bad))
    with pytest.raises(InvalidName, match="variable"):
        subjects.write(T, S, VarId(bad))
    with pytest.raises(InvalidName, match="worker"):
        subjects.to_worker(WorkerId(bad), ToWorker.RUN)


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        (subjects.read_chunks(T, S, V), subjects.read_chunk(T, S, V, 7)),
        (subjects.of_session(T, S), subjects.write(T, S, V)),
        (subjects.of_session(T, S), subjects.log(T, S)),
        (subjects.ALIVE_ALL, subjects.alive(T, S)),
        *((subjects.FROM_WORKERS, subjects.from_worker(W, leaf)) for leaf in FromWorker),
        *((subjects.to_worker_all(W), subjects.to_worker(W, leaf)) for leaf in ToWorker),
    ],
)
def test_patterns_hear_what_they_are_for(pattern: str, subject: str) -> None:
    assert matches(pattern, subject)


def test_no_two_streams_take_the_same_subject_and_none_takes_what_is_read() -> None:
    written = {
        subjects.log(T, S): subjects.LOG,
        subjects.write(T, S, V): subjects.VALUES,
        subjects.write_chunk(T, S, V, 0): subjects.CHUNKS,
    }
    unstored = [
        subjects.read(T, S, V),
        subjects.read_chunk(T, S, V, 0),
        subjects.alive(T, S),
        subjects.from_worker(W, FromWorker.BEAT),
        subjects.to_worker(W, ToWorker.RUN),
        subjects.HELLO,
        subjects.STATUS,
    ]
    for subject in [*written, *unstored]:
        takers = [s for s in subjects.STREAMS if any(matches(p, subject) for p in s.subjects)]
        assert takers == ([written[subject]] if subject in written else [])


@pytest.mark.parametrize("stream", [s for s in subjects.STREAMS if s.republish is not None], ids=lambda s: s.name)
def test_a_stream_republishes_all_that_it_takes_wildcard_by_wildcard(stream: subjects.Stream) -> None:
    assert stream.republish is not None
    assert stream.subjects == (stream.republish.source,)
    wildcards = stream.republish.source.split(".").count("*")
    used = [int(n) for n in re.findall(r"\{\{wildcard\((\d+)\)\}\}", stream.republish.destination)]
    assert used == list(range(1, wildcards + 1))


def test_streams_of_values_and_chunks_are_single_assignment_and_all_are_in_files() -> None:
    assert [(s.single, s.memory) for s in (subjects.LOG, subjects.VALUES, subjects.CHUNKS)] == [
        (False, False),
        (True, False),
        (True, False),
    ]
