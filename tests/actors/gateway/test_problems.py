from __future__ import annotations

import pytest

from myna.actors.bus import Unavailable
from myna.actors.codec import TooLarge
from myna.actors.gateway import parrot, problems
from myna.actors.gateway.openai import replies
from myna.actors.gateway.problems import Problem
from myna.actors.messages import Cancellation, ErrorCode, Failure
from myna.actors.subjects import InvalidName
from myna.sdk.errors import AlreadySet, CallFailed, Cancelled, SessionClosed, StreamBroken, SubmitFailed, TimedOut

OURS = {ErrorCode.ENGINE_ERROR}
LATER = {ErrorCode.NO_WORKER, ErrorCode.WORKER_LOST}


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_a_fault_of_the_engine_is_a_500_and_only_what_may_come_later_a_503(code: ErrorCode) -> None:
    problem = problems.of_failure(Failure(code=code, message="why", call="c1", function="f"))
    assert (problem.status == 500) == (code in OURS)
    assert (problem.status == 503) == (code in LATER)
    assert problem.message == "why"
    assert problems.plain(problem)["error"]["call"] == "c1"


def test_over_quota_says_when_to_come_again() -> None:
    problem = problems.of_failure(Failure(code=ErrorCode.OVER_QUOTA, message="too much", retry_after=2.4))
    assert (problem.status, problem.headers) == (429, {"retry-after": "3"})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CallFailed("v", Failure(code=ErrorCode.PROMPT_TOO_LONG, message="x")), 400),
        (Cancelled.of("v", Cancellation(reason="enough")), 409),
        (SessionClosed("gone"), 404),
        (AlreadySet("there"), 409),
        (TimedOut("late"), 408),
        (StreamBroken("torn"), 503),
        (TooLarge("a value", 10), 413),
        (InvalidName("a b"), 400),
        (Unavailable("nobody"), 503),
        (Problem(418, "teapot", "short and stout"), 418),
    ],
)
def test_errors_raised_on_purpose_have_a_status(error: Exception, status: int) -> None:
    problem = problems.of_error(error)
    assert problem is not None
    assert problem.status == status


def test_what_was_not_submitted_is_told_by_its_cause() -> None:
    large, gone = SubmitFailed("no"), SubmitFailed("no")
    large.__cause__, gone.__cause__ = TooLarge("a call", 10), Unavailable("nobody")
    found = [problems.of_error(error) for error in (large, gone)]
    assert [p.status for p in found if p] == [413, 503]


def test_a_defect_is_no_problem_and_its_text_stays_here() -> None:
    assert problems.of_error(KeyError("secret")) is None
    assert "secret" not in problems.fault().message


def test_each_api_tells_a_problem_in_its_own_form() -> None:
    problem = problems.invalid("wrong", "field")
    told = {"message": "wrong", "type": "invalid_request_error", "param": "field", "code": "invalid_request"}
    assert replies.error(problem) == {"error": told}
    assert parrot.tell(problem) == {"error": "wrong", "traceback": ""}
    assert problems.plain(problem) == {"error": {"code": "invalid_request", "message": "wrong", "param": "field"}}
