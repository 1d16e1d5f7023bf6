from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myna.actors.endpoints.budget import FORGOTTEN, Ledger, Reserve, cost
from myna.actors.endpoints.settings import Budget, BudgetOf, Endpoint, Period, Prices
from myna.actors.messages import ErrorCode, Failure, SessionId, Tenant, Usage

HERE, THERE = (Endpoint(name=n, url="http://h", prices=Prices(input=1.0, output=2.0)) for n in ("here", "there"))
ANN, BOB = Tenant("ann"), Tenant("bob")
NOW = 1_800_000_000.0


def ask(
    ledger: Ledger, tokens: int, tenant: Tenant = ANN, session: str = "s", at: float = NOW, endpoint: Endpoint = HERE
) -> Reserve | Failure:
    usage = Usage(output_tokens=tokens)
    usage += Usage(cost=cost(usage, endpoint.prices))
    return ledger.reserve(endpoint, tenant, SessionId(session), usage, at)


def spend(ledger: Ledger, tokens: int, *who: object, at: float = NOW) -> None:
    reserve = ask(ledger, tokens, *who, at=at)  # type: ignore[arg-type]
    assert isinstance(reserve, Reserve), reserve
    ledger.settle(reserve, reserve.usage, at)


def test_prices_are_for_a_million_and_what_was_cached_has_its_own() -> None:
    usage = Usage(prompt_tokens=1000, cached_tokens=400, output_tokens=10)
    assert cost(usage, Prices(input=0.15, cached=0.075, output=0.6)) == 90 + 30 + 6
    assert cost(usage, Prices(input=1.0)) == 1000
    assert cost(usage, None) == 0


def test_each_tenant_and_each_session_has_a_budget_of_its_own_and_all_together_have_one() -> None:
    scopes = {BudgetOf.TENANT: (ANN, "t"), BudgetOf.SESSION: (ANN, "s"), BudgetOf.ALL: (BOB, "t")}
    for of, (tenant, session) in scopes.items():
        ledger = Ledger([Budget(of=of, tokens=10)])
        spend(ledger, 10)
        assert isinstance(ask(ledger, 1, tenant, session), Failure), of
    assert isinstance(ask(Ledger([Budget(of=BudgetOf.TENANT, tokens=10)]), 10, BOB), Reserve)


def test_what_is_over_a_budget_is_told_with_the_time_when_there_is_a_new_one() -> None:
    ledger = Ledger([Budget(of=BudgetOf.TENANT, per=Period.HOUR, money=0.00002)])
    spend(ledger, 8)
    failure = ask(ledger, 4, at=NOW + 60)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.retryable) == (ErrorCode.OVER_QUOTA, True)
    assert failure.retry_after == 3600 - (NOW + 60) % 3600
    assert isinstance(ask(ledger, 4, at=NOW + 60 + failure.retry_after), Reserve), "an hour later"


def test_what_running_calls_may_use_is_set_aside_and_given_back() -> None:
    ledger = Ledger([Budget(of=BudgetOf.ALL, tokens=100)])
    first = ask(ledger, 60)
    assert isinstance(first, Reserve)
    assert isinstance(ask(ledger, 60), Failure)
    ledger.settle(first, Usage(output_tokens=5), NOW)
    assert isinstance(ask(ledger, 60), Reserve)


def test_a_budget_of_one_endpoint_does_not_concern_another() -> None:
    ledger = Ledger([Budget(of=BudgetOf.ALL, tokens=1, endpoints=("here",))])
    assert isinstance(ask(ledger, 50, endpoint=THERE), Reserve)
    assert isinstance(ask(ledger, 50), Failure)


def test_books_that_were_written_down_go_on_and_what_is_over_is_left_out() -> None:
    budgets = [Budget(of=BudgetOf.SESSION, tokens=10), Budget(of=BudgetOf.TENANT, per=Period.DAY, tokens=99)]
    ledger = Ledger(budgets)
    spend(ledger, 10)
    assert ledger.changed
    again = Ledger(budgets, ledger.written(NOW))
    assert isinstance(ask(again, 1), Failure)
    assert len(again.written(NOW)) == 2
    assert len(again.written(NOW + 86400)) == 1, "another day"
    assert again.written(NOW + FORGOTTEN + 1) == {}
    assert Ledger([], ledger.written(NOW)).written(NOW) == {}, "a budget that is no more"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40)), max_size=60))
def test_no_budget_is_ever_exceeded_by_more_than_calls_take_beyond_what_they_may(
    steps: list[tuple[bool, int, int]],
) -> None:
    ledger = Ledger([Budget(of=BudgetOf.ALL, tokens=100, money=0.00015)])
    running: list[Reserve] = []
    used = 0
    for begins, most, drawn in steps:
        if begins:
            reserve = ask(ledger, most)
            running += [reserve] if isinstance(reserve, Reserve) else []
        elif running:
            reserve = running.pop(0)
            took = min(drawn, reserve.usage.output_tokens)
            ledger.settle(reserve, Usage(output_tokens=took, cost=2 * took), NOW)
            used += took
        assert used + sum(r.usage.output_tokens for r in running) <= 75
    for reserve in running:
        ledger.settle(reserve, Usage(), NOW)
    left = 75 - used
    assert isinstance(ask(ledger, left), Reserve)
    assert isinstance(ask(ledger, left + 1), Failure), "all that was set aside is given back, and no more"
