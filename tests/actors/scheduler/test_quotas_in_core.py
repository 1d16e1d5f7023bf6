"""Quotas as the core applies them: at submission, by failures that say so, and never to what was accepted."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import structs

from myna.actors.messages import (
    PROTOCOL,
    Close,
    ErrorCode,
    Failure,
    Open,
    SessionId,
    SessionUsage,
    Submit,
    Tenant,
    TenantPolicy,
    Usage,
    VarId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.commands import AppendEntry, Command, Dispatch, EndVariable, PurgeSession
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Led, Logged, PolicySet, Recorded, SchedulerEvent, Tick
from myna.actors.scheduler.ledger import CLOSING, REFUSED
from tests.actors.scheduler.world import World, opened
from tests.actors.stage import call

ACME = Tenant("acme")
ONE, TWO = SessionId("one"), SessionId("two")


class Books:
    """A core that leads, without workers."""

    def __init__(self, *, leads: bool = True, **limits: object) -> None:
        self.core = SchedulerCore()
        self.now = 100.0
        self.feed(PolicySet(TenantPolicy(tenant=ACME, **limits), self.now))  # type: ignore[arg-type]
        if leads:
            self.lead()

    def feed(self, event: SchedulerEvent) -> list[Command]:
        commands = self.core.handle(event)
        self.core.check()
        return commands

    def lead(self) -> list[Command]:
        return self.feed(Led("s", 1, self.now))

    def open(self, session: SessionId = ONE, tenant: Tenant = ACME) -> list[Command]:
        return self.feed(Logged(tenant, session, Open(protocol=PROTOCOL), self.now))

    def submit(self, *names: str, session: SessionId = ONE, size: int = 0) -> list[Failure]:
        """Submit calls; the refusals."""
        entry = Submit(calls=tuple(call(name) for name in names))
        return refusals(self.feed(Logged(ACME, session, entry, self.now, size)))

    def end(self, variable: str, *, session: SessionId = ONE, tokens: int = 0, size: int = 0) -> list[Command]:
        usage = Usage(prompt_tokens=tokens)
        status = OutcomeStatus.VALUE
        return self.feed(Ended(ACME, session, VarId(variable), status, 1, self.now, None, usage, size=size))

    def fail(self, variable: str, session: SessionId = ONE) -> None:
        """The stream has taken a refusal."""
        self.feed(Ended(ACME, session, VarId(variable), OutcomeStatus.FAILURE, 0, self.now, REFUSAL))


REFUSAL = Failure(code=ErrorCode.OVER_QUOTA, message="over quota", retryable=True)


def refusals(commands: list[Command]) -> list[Failure]:
    found = [c.outcome for c in commands if isinstance(c, EndVariable)]
    return [f for f in found if isinstance(f, Failure) and f.code is ErrorCode.OVER_QUOTA]


def test_calls_too_many_fail_at_once_and_retryably_and_those_before_go_on() -> None:
    books = Books(calls=2)
    books.open()
    assert books.submit("a", "b") == []
    (refusal,) = books.submit("c")
    assert refusal.retryable
    assert refusal.retry_after is not None
    assert refusal.call == "call-c"
    books.fail("c")
    books.end("a")
    assert books.submit("d") == []
    assert books.core.status(books.now).sessions[0].calls == 4


def test_what_needs_a_refused_call_fails_for_the_same_reason() -> None:
    books = Books(calls=1)
    books.open()
    assert len(books.submit("a", "b")) == 2  # together they are too many: neither is taken
    books.fail("a")
    books.fail("b")
    books.feed(Logged(ACME, ONE, Submit(calls=(call("c", "a"),)), books.now))
    (graph,) = [s.graph for s in books.core.sessions.values()]
    assert [c.outcome.code for c in graph.calls.values() if isinstance(c.outcome, Failure)][-1] is ErrorCode.OVER_QUOTA


def test_a_session_too_many_is_told_so_at_each_submission_and_forgotten_after_a_while() -> None:
    books = Books(sessions=1)
    books.open(ONE)
    books.open(TWO)
    assert books.submit("a", session=ONE) == []
    assert len(books.submit("b", session=TWO)) == 1
    assert [s.session for s in books.core.status(books.now).sessions] == [ONE]
    books.now += REFUSED
    commands = books.feed(Tick(books.now))
    assert [c.session for c in commands if isinstance(c, PurgeSession)] == [TWO]
    books.feed(Logged(ACME, ONE, Close(), books.now))
    books.open(SessionId("three"))
    assert books.submit("c", session=SessionId("three")) == []


def test_a_rebuilt_scheduler_refuses_nothing_of_the_log_and_goes_on_counting() -> None:
    books = Books(leads=False, calls=1, sessions=1)
    books.open(ONE)
    books.open(TWO)
    assert books.submit("a", "b") == []
    books.end("a")
    assert refusals(books.lead()) == []
    assert len(books.submit("c")) == 1  # b is in flight
    books.open(SessionId("three"))
    assert len(books.submit("d", session=SessionId("three"))) == 1


def test_tokens_of_this_minute_count_and_those_before_the_lead_do_not() -> None:
    books = Books(leads=False, tokens=60)
    books.open()
    books.submit("a", "b")
    books.end("a", tokens=10**6)
    books.lead()
    assert books.submit("c") == []
    books.end("b", tokens=90)
    (refusal,) = books.submit("d")
    assert refusal.retry_after == 31.0
    books.now += 31.0
    assert books.submit("e") == []


def test_a_submission_that_goes_over_the_bytes_is_refused_and_so_is_what_follows() -> None:
    books = Books(bytes=100)
    books.open()
    assert books.submit("a", size=99) == []
    assert len(books.submit("b", size=1)) == 1
    assert len(books.submit("c")) == 1


@pytest.mark.parametrize("size", [201, 10**9])
def test_who_stores_on_is_closed(size: int) -> None:
    books = Books(bytes=100)
    books.open()
    closed = [c for c in books.end("x", size=size) if isinstance(c, AppendEntry)]
    assert [c.session for c in closed] == [ONE]
    assert "more than twice" in closed[0].entry.reason
    assert [c for c in books.end("y", size=size) if isinstance(c, AppendEntry)] == []
    books.feed(Logged(ACME, ONE, closed[0].entry, books.now))
    assert len(books.submit("a")) == 1
    books.now += CLOSING
    books.feed(Tick(books.now))
    assert books.core.status(books.now).tenants[0].bytes == 0


def test_another_tenants_quota_is_nobody_elses() -> None:
    books = Books(calls=0, sessions=0)
    books.open(ONE, Tenant("other"))
    commands = books.feed(Logged(Tenant("other"), ONE, Submit(calls=(call("a"),)), books.now))
    assert refusals(commands) == []


def test_what_a_session_used_is_recorded_when_it_is_purged_and_counts_once() -> None:
    books = Books()
    books.open()
    books.submit("a", "b")
    books.end("a", tokens=5)
    books.end("a", tokens=5)  # read again: it counts once
    books.end("b", tokens=7)
    books.end("set by hand", tokens=1000)  # of no call: nobody computed it
    (before,) = books.core.status(books.now).tenants
    assert (before.used.prompt_tokens, before.used_by) == (12, 2)
    books.feed(Logged(ACME, ONE, Close(), books.now))
    books.now += CLOSING
    (purge,) = [c for c in books.feed(Tick(books.now)) if isinstance(c, PurgeSession)]
    (record,) = purge.used
    assert isinstance(record, SessionUsage)
    assert {c.call: c.usage.prompt_tokens for c in record.calls} == {"call-a": 5, "call-b": 7}
    books.feed(Recorded(ACME, record.used, len(record.calls), books.now))
    (after,) = books.core.status(books.now).tenants
    assert (after.used, after.used_by) == (before.used, 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "two"]), st.sampled_from("abc"), st.booleans(), st.integers(1, 900))))
def test_tokens_are_counted_by_call_session_and_tenant_and_the_counts_agree(
    ends: list[tuple[str, str, bool, int]],
) -> None:
    books = Books()
    for session in (ONE, TWO):
        books.open(session)
        entry = Submit(calls=tuple(call(name, outputs=2) for name in "abc"))
        books.feed(Logged(ACME, session, entry, books.now))
    used: dict[tuple[str, str], int] = {}
    seen = set()
    for session_, name, second, tokens in ends:
        if (session_, name, second) not in seen:  # a variable ends once; what is read again counts nothing
            used[session_, f"call-{name}"] = used.get((session_, f"call-{name}"), 0) + tokens
        seen.add((session_, name, second))
        books.end(f"{name}-{int(second)}", session=SessionId(session_), tokens=tokens)
    (total,) = books.core.status(books.now).tenants
    assert (total.used.prompt_tokens, total.used_by) == (sum(used.values()), len(used))
    for session in (ONE, TWO):
        books.feed(Logged(ACME, session, Close(), books.now))
    books.now += CLOSING
    records = [r for c in books.feed(Tick(books.now)) if isinstance(c, PurgeSession) for r in c.used]
    assert {(r.session, c.call): c.usage.prompt_tokens for r in records for c in r.calls} == used
    assert all(r.used.prompt_tokens == sum(c.usage.prompt_tokens for c in r.calls) for r in records)


def test_a_tenant_sees_its_own_books_alone() -> None:
    books = Books()
    books.open(ONE)
    books.open(TWO, Tenant("other"))
    assert [t.tenant for t in books.core.status(0.0).tenants] == ["acme", "other"]
    assert [t.tenant for t in books.core.status(0.0, tenant=ACME).tenants] == ["acme"]
    assert [s.session for s in books.core.status(0.0, tenant=ACME).sessions] == [ONE]


def test_a_quota_of_running_calls_and_a_shared_cache_go_with_the_dispatch() -> None:
    world: World = opened(call("a"), call("b"), workers=0)
    policy = TenantPolicy(tenant="t", running=1, cache="team")
    world.feed(PolicySet(policy, world.now))
    world.join("w", capacity=4)
    world.read_mail()
    (dispatch,) = [c for c in world.commands if isinstance(c, Dispatch)]
    assert dispatch.run.cache == "shared:team"
    world.feed(PolicySet(structs.replace(policy, running=2, cache=""), world.now))
    runs = [c.run for c in world.commands if isinstance(c, Dispatch)]
    assert [run.cache for run in runs] == ["shared:team", ""]
