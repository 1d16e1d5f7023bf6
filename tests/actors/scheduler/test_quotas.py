from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myna.actors.messages import CallId, ErrorCode, SessionId, Tenant, TenantPolicy, Usage
from myna.actors.scheduler.quotas import PART, SOON, Quotas, Stake, records

ACME, OTHER = Tenant("acme"), Tenant("other")


def quotas(**limits: object) -> Quotas:
    it = Quotas()
    it.set(TenantPolicy(tenant=ACME, **limits), 0.0)  # type: ignore[arg-type]
    return it


def tokens(count: int) -> Usage:
    return Usage(prompt_tokens=count, output_tokens=0)


def spend(it: Quotas, count: int, now: float) -> None:
    it.used(ACME, Stake(), CallId("c"), tokens(count), now, charge=True)


def test_a_tenant_of_whom_the_operator_has_said_nothing_may_have_everything() -> None:
    it = Quotas()
    assert it.session_refused(ACME) is None
    assert it.calls_refused(ACME, 10**9, 0.0) is None
    assert it.stored(ACME, it.opened(ACME), 10**15) is None
    assert it.cache_of(ACME, "") == ""


def test_a_session_too_many_is_refused_until_one_is_closed() -> None:
    it = quotas(sessions=2)
    first = it.opened(ACME)
    it.opened(ACME)
    refusal = it.session_refused(ACME)
    assert refusal is not None
    assert (refusal.code, refusal.retryable, refusal.retry_after) == (ErrorCode.OVER_QUOTA, True, SOON)
    assert it.session_refused(OTHER) is None
    it.closed(ACME, first)
    it.closed(ACME, first)
    assert it.session_refused(ACME) is None
    it.opened(ACME)
    it.forgotten(ACME, first)
    assert it.session_refused(ACME) is not None


def test_calls_in_flight_are_counted_over_sessions() -> None:
    it = quotas(calls=10)
    one, two = it.opened(ACME), it.opened(ACME)
    it.counted(ACME, one, 6)
    it.counted(ACME, two, 3)
    assert it.calls_refused(ACME, 1, 0.0) is None
    refusal = it.calls_refused(ACME, 2, 0.0)
    assert refusal is not None
    assert refusal.retryable
    assert "9 calls in flight and submits 2; its quota allows 10" in refusal.message
    it.counted(ACME, one, 5)
    assert it.calls_refused(ACME, 2, 0.0) is None


def test_what_can_never_be_accepted_is_not_worth_another_try() -> None:
    refusal = quotas(calls=10).calls_refused(ACME, 11, 0.0)
    assert refusal is not None
    assert not refusal.retryable


def test_tokens_are_forgiven_at_the_rate_of_the_quota_and_the_refusal_says_when() -> None:
    it = quotas(tokens=600)
    spend(it, 599, 0.0)
    assert it.calls_refused(ACME, 1, 0.0) is None
    spend(it, 301, 0.0)
    refusal = it.calls_refused(ACME, 1, 0.0)
    assert refusal is not None
    assert refusal.retry_after == 31.0  # 300 too many, 10 a second
    assert it.calls_refused(ACME, 1, 29.0) is not None
    assert it.calls_refused(ACME, 1, 31.0) is None


def test_long_past_tokens_are_counted_and_not_charged() -> None:
    it = quotas(tokens=10)
    it.used(ACME, Stake(), CallId("c"), tokens(10**6), 0.0, charge=False)
    assert it.calls_refused(ACME, 1, 0.0) is None
    assert it.status(0.0)[0].used == tokens(10**6)


def test_bytes_refuse_calls_and_at_twice_the_quota_close_the_session_that_stores_on() -> None:
    it = quotas(bytes=100)
    stake = it.opened(ACME)
    assert it.stored(ACME, stake, 99) is None
    assert it.calls_refused(ACME, 1, 0.0) is None
    assert it.stored(ACME, stake, 1) is None
    assert it.calls_refused(ACME, 1, 0.0) is not None
    assert it.stored(ACME, stake, 100) is None
    too_much = it.stored(ACME, stake, 1)
    assert too_much is not None
    assert too_much.code is ErrorCode.OVER_QUOTA
    it.forgotten(ACME, stake)
    assert it.calls_refused(ACME, 1, 0.0) is None


def test_a_removed_tenant_gets_nothing_and_no_hope() -> None:
    it = quotas(removed=True)
    for refusal in (it.session_refused(ACME), it.calls_refused(ACME, 1, 0.0)):
        assert refusal is not None
        assert not refusal.retryable


def test_no_cache_is_taken_for_another() -> None:
    it = quotas(cache="team")
    caches = [it.cache_of(t, s) for t in (ACME, OTHER, Tenant("shared"), Tenant("team")) for s in ("", "team", "acme")]
    assert caches[0] == "shared:team"
    assert it.cache_of(OTHER, "") == it.cache_of(Tenant("team"), "") == ""
    named = [cache for cache in caches if cache]
    assert len(set(named)) == len(named)
    assert all(":" in cache or "/" in cache for cache in named), "no tenant's name"


def test_what_a_session_used_is_recorded_by_call_in_parts_that_add_up() -> None:
    used = {CallId(f"c{n}"): Usage(prompt_tokens=n, cached_tokens=1, output_tokens=2) for n in range(2 * PART + 1)}
    parts = records(ACME, SessionId("s"), "demo", used, dict.fromkeys(used, "f"))
    assert [len(p.calls) for p in parts] == [PART, PART, 1]
    assert {c.call: c.usage for p in parts for c in p.calls} == used
    n = 2 * PART + 1
    assert parts[0].used + parts[1].used + parts[2].used == Usage(
        prompt_tokens=n * (n - 1) // 2, cached_tokens=n, output_tokens=2 * n
    )


def test_nothing_is_recorded_of_a_session_that_used_nothing() -> None:
    assert records(ACME, SessionId("s"), "demo", {}, {}) == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "calls", "store", "use", "close", "forget"]), st.integers(0, 4), st.integers(0, 50)
        ),
        max_size=60,
    )
)
def test_books_always_balance_and_a_record_takes_the_place_of_its_session(steps: list[tuple[str, int, int]]) -> None:
    it = quotas(sessions=3, calls=10, bytes=100, tokens=60)
    stakes: dict[int, Stake] = {}
    spent = Usage()
    for now, (what, number, amount) in enumerate(steps):
        stake = stakes.get(number)
        match what, stake:
            case "open", None:
                stakes[number] = it.opened(ACME)
            case "calls", Stake():
                it.counted(ACME, stake, amount)
            case "store", Stake():
                it.stored(ACME, stake, amount)
            case "use", Stake():
                it.used(ACME, stake, CallId(f"c{amount % 3}"), tokens(amount), float(now), charge=True)
                spent += tokens(amount)
            case "close", Stake():
                it.closed(ACME, stake)
            case "forget", Stake():
                used, count = stake.total, len(stake.used)
                it.forgotten(ACME, stakes.pop(number))
                it.recorded(ACME, used, count)
        it.check()
        (status,) = it.status(float(now))
        assert status.used == spent
        assert status.calls == sum(s.calls for s in stakes.values())
        assert status.bytes == sum(s.bytes for s in stakes.values())
        assert status.sessions == sum(s.counts for s in stakes.values())
