from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors import subjects
from myna.actors.messages import SessionId, Tenant, VarId, WorkerId
from myna.actors.subjects import FromWorker, InvalidName, Question, ToWorker
from myna.actors.tenants import rights
from myna.actors.tenants.rights import Grant, Role

names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
numbers = st.integers(0, 10**6)


def matches(pattern: str, subject: str) -> bool:
    """As NATS matches: `*` is one token, `>` one or more at the end."""
    wanted, given_ = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given_) >= len(wanted) and all(w in ("*", g) for w, g in zip(wanted[:-1], given_, strict=False))
    return len(wanted) == len(given_) and all(w in ("*", g) for w, g in zip(wanted, given_, strict=True))


def of(tenant: Tenant, session: SessionId, variable: VarId, worker: WorkerId, n: int) -> list[str]:
    """Every kind of subject that names a tenant, and the direct gets of what is stored."""
    stored = [
        subjects.log(tenant, session),
        subjects.write(tenant, session, variable),
        subjects.write_chunk(tenant, session, variable, n),
    ]
    return [
        *stored,
        *(f"$JS.API.DIRECT.GET.{stream.name}.{subject}" for stream in subjects.STREAMS for subject in stored),
        subjects.read(tenant, session, variable),
        subjects.read_chunk(tenant, session, variable, n),
        subjects.alive(tenant, session),
        *(subjects.ask(tenant, question) for question in Question),
        *(subjects.from_agent(tenant, worker, leaf) for leaf in FromWorker),
        *(subjects.to_agent(tenant, worker, leaf) for leaf in ToWorker),
        subjects.policy(tenant),
        subjects.usage(tenant, session, n),
        f"{subjects.inbox(tenant)}.x.y",
    ]


@given(names, names, names, names, names, numbers)
def test_no_right_of_one_tenant_meets_any_subject_of_another(a: str, b: str, s: str, v: str, w: str, n: int) -> None:
    if a == b:
        return
    may = rights.of_tenant(Tenant(a))
    foreign = of(Tenant(b), SessionId(s), VarId(v), WorkerId(w), n)
    met = [(p, f) for p in (*may.publish, *may.subscribe) for f in foreign if matches(p, f)]
    assert met == []


@given(names, names, names, numbers)
def test_a_tenants_rights_are_enough_for_all_that_a_client_and_an_agent_do(t: str, s: str, v: str, n: int) -> None:
    tenant, session, variable, worker = Tenant(t), SessionId(s), VarId(v), WorkerId("w")
    may = rights.of_tenant(tenant)
    for written in of(tenant, session, variable, worker, n)[:3]:
        assert any(matches(p, written) for p in may.publish)
    heard = [
        subjects.read(tenant, session, variable),
        subjects.read_chunk(tenant, session, variable, n),
        subjects.HELLO,
    ]
    heard += [subjects.to_agent(tenant, worker, leaf) for leaf in ToWorker]
    for subject in heard:
        assert any(matches(p, subject) for p in may.subscribe)


@given(names, names, names, names)
def test_a_grant_opens_one_variable_for_reading_and_nothing_for_writing(b: str, s: str, v: str, other: str) -> None:
    reader, owner = Tenant("reader"), Tenant(f"owner-{b}")
    before, after = rights.of_tenant(reader), rights.of_tenant(reader, (Grant(owner, s, v),))
    new = (set(after.publish) | set(after.subscribe)) - set(before.publish) - set(before.subscribe)
    open_ = [f for f in of(owner, SessionId(s), VarId(v), WorkerId("w"), 3) if any(matches(p, f) for p in new)]
    assert open_ == [
        f"$JS.API.DIRECT.GET.{subjects.VALUES.name}.{subjects.write(owner, SessionId(s), VarId(v))}",
        f"$JS.API.DIRECT.GET.{subjects.CHUNKS.name}.{subjects.write_chunk(owner, SessionId(s), VarId(v), 3)}",
        subjects.read(owner, SessionId(s), VarId(v)),
        subjects.read_chunk(owner, SessionId(s), VarId(v), 3),
    ]
    if other != v:
        foreign = of(owner, SessionId(s), VarId(other), WorkerId("w"), 3)
        assert [f for f in foreign if any(matches(p, f) for p in new)] == []


def test_a_grant_can_not_be_wider_than_it_looks() -> None:
    for session, variable in (("a.b", "v"), (">", "v"), ("s", ">"), ("s", "v.*"), ("", "v")):
        with pytest.raises(InvalidName):
            Grant(Tenant("owner"), session, variable)
    with pytest.raises(InvalidName):
        Grant(Tenant("*"))


def test_nobody_may_delete_a_stream_nor_publish_what_streams_republish() -> None:
    dangerous = [
        *(f"$JS.API.STREAM.{verb}.{s.name}" for verb in ("DELETE", "MSG.DELETE", "RESTORE") for s in subjects.STREAMS),
        "myna.t.s.var.v",
        "myna.t.s.tok.v.0",
        "$SYS.REQ.SERVER.PING",
    ]
    for may in (rights.of_tenant(Tenant("t")), *(rights.of_role(role) for role in Role)):
        assert [d for d in dangerous if any(matches(p, d) for p in may.publish)] == []


def test_only_the_scheduler_answers_whoever_asks() -> None:
    assert [role for role in Role if rights.of_role(role).answers] == [Role.SCHEDULER]
    assert not rights.of_tenant(Tenant("t")).answers
