"""What is told when something goes wrong: one kind of error inside, with an HTTP status; each API writes it in its own form.

Law: whatever the caller did wrong is a 4xx that says what would be right; what we can't do now is a 503 that may be tried again;
a 500 is a fault of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from myna.actors.bus import BusError
from myna.actors.codec import TooLarge, WireError
from myna.actors.messages import ErrorCode, Failure
from myna.actors.subjects import InvalidName
from myna.sdk.errors import (
    AlreadySet,
    CallFailed,
    Cancelled,
    MynaError,
    NotReady,
    SessionClosed,
    StreamBroken,
    SubmitFailed,
    TimedOut,
)


class Problem(Exception):
    """An answer that is an error. `code` names it for programs, `param` the field that is wrong; `failure` is the call's."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        failure: Failure | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.failure = failure
        self.headers = dict(headers or {})


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> Problem:
    """The request can't be right."""
    return Problem(400, code, message, param)


def too_often(message: str, seconds: float) -> Problem:
    """Try again after so many seconds."""
    return Problem(429, "rate_limit_exceeded", message, headers={"retry-after": str(max(1, math.ceil(seconds)))})


_STATUS: dict[str, int] = {
    ErrorCode.INVALID_CALL: 400,
    ErrorCode.UNKNOWN_VARIABLE: 400,
    ErrorCode.CYCLE: 400,
    ErrorCode.PROMPT_TOO_LONG: 400,
    ErrorCode.INVALID_SAMPLING: 400,
    ErrorCode.INVALID_FORMAT: 400,
    ErrorCode.TRUNCATED: 422,
    ErrorCode.TRANSFORM_FAILED: 422,
    ErrorCode.VALUE_TOO_LARGE: 422,
    ErrorCode.NATIVE_ERROR: 422,
    ErrorCode.SESSION_CLOSED: 404,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.WORKER_LOST: 503,
}
_CODES: dict[str, str] = {ErrorCode.PROMPT_TOO_LONG: "context_length_exceeded"}


def of_failure(failure: Failure) -> Problem:
    """What a call's typed failure is over HTTP."""
    if failure.code is ErrorCode.OVER_QUOTA:
        told = too_often(failure.message, failure.retry_after or 1.0)
        return Problem(429, "over_quota", failure.message, failure=failure, headers=told.headers)
    code = _CODES.get(failure.code, failure.code.value)
    return Problem(_STATUS.get(failure.code, 500), code, failure.message, failure=failure)


def of_error(error: Exception) -> Problem | None:
    """What an error that is raised on purpose is over HTTP; None for one that is a fault of ours."""
    match error:
        case Problem():
            return error
        case CallFailed(failure=failure):
            return of_failure(failure)
        case Cancelled():
            return Problem(409, "cancelled", str(error))
        case SessionClosed():
            return Problem(404, "session_closed", str(error))
        case SubmitFailed(__cause__=TooLarge()) | TooLarge():
            return Problem(413, "too_large", str(error))
        case StreamBroken() | NotReady():
            return Problem(503, "unavailable", str(error), headers={"retry-after": "1"})
        case AlreadySet():
            return Problem(409, "already_set", str(error))
        case TimedOut():
            return Problem(408, "timed_out", str(error))
        case InvalidName() | WireError():
            return invalid(str(error))
        case SubmitFailed(__cause__=BusError()) | BusError():
            return Problem(503, "unavailable", str(error), headers={"retry-after": "1"})
        case MynaError():
            return invalid(str(error))
        case _:
            return None


def fault() -> Problem:
    """A defect: what it was is in the log, and not for the caller."""
    return Problem(500, "internal_error", "the gateway has failed at this request; its log says why")


def plain(problem: Problem) -> dict[str, Any]:
    """The form of Myna's own API."""
    told: dict[str, Any] = {"code": problem.code, "message": problem.message}
    if problem.param is not None:
        told["param"] = problem.param
    if (failure := problem.failure) is not None:
        told |= {"call": failure.call, "function": failure.function, "retryable": failure.retryable}
    return {"error": told}
