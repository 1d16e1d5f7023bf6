from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from myna.actors.messages import Tenant
from myna.actors.scheduler.policies.tenants import Accounts, Share

A, B = Tenant("a"), Tenant("b")


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.1, 10.0), st.lists(st.tuples(st.floats(1.0, 50.0), st.floats(1.0, 50.0)), min_size=200, max_size=300)
)
def test_two_tenants_that_always_have_work_are_served_by_their_weights(
    weight: float, works: list[tuple[float, float]]
) -> None:
    accounts = Accounts({A: Share(weight), B: Share(1.0)})
    given_work = {A: 0.0, B: 0.0}
    for work_a, work_b in works:
        tenant, work = (A, work_a) if accounts.of(A).served <= accounts.of(B).served else (B, work_b)
        accounts.serve(accounts.of(tenant), work)
        given_work[tenant] += work
    assert abs(given_work[A] / weight - given_work[B]) <= 50.0 + 50.0 / weight


def test_a_share_that_is_set_counts_at_once_for_a_tenant_that_is_there_and_for_one_to_come() -> None:
    accounts = Accounts({})
    account = accounts.of(A)
    accounts.serve(account, 10.0)
    accounts.set(A, Share(2.0, most_running=1))
    assert account.full
    accounts.serve(account, 10.0)
    assert account.served == pytest.approx(15.0)
    accounts.set(B, Share(4.0))
    assert accounts.of(B).share == Share(4.0)


def test_a_tenant_that_was_idle_has_earned_nothing() -> None:
    accounts = Accounts({})
    idle = accounts.of(B)
    for _ in range(10):
        accounts.serve(accounts.of(A), 100.0)
    accounts.wake(idle)
    assert idle.served >= accounts.of(A).served - 100.0
