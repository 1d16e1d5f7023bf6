"""Everything that the SDK raises on purpose: one tree under `MynaError`, every text saying what to do."""

from __future__ import annotations

from myna.actors.messages import Cancellation, ErrorCode, Failure


class MynaError(Exception):
    """Base of all errors of the SDK."""


class TemplateError(MynaError, ValueError):
    """A prompt that can't be parsed; names the function and the placeholder."""


class FunctionError(MynaError, TypeError):
    """A semantic or native function that is declared or called wrongly; names the function and the parameter."""


class NoSession(MynaError):
    """A function was called, but no session is open here."""


class WrongLoop(MynaError):
    """A session was used from another event loop or thread than the one that opened it."""


class SessionClosed(MynaError):
    """The session has ended, so this variable will have no value, or this call can't be submitted."""


class SubmitFailed(MynaError):
    """A call, or what was said about a variable, could not be written to the session's log. `__cause__` says why."""


class AlreadySet(MynaError):
    """A variable has a value, and it is another than the one given to `set`."""


class InvalidValue(MynaError, ValueError):
    """A value that the type of its output refuses, though its schema lets it through (a validator of one's own)."""


class TimedOut(MynaError, TimeoutError):
    """A result was not there within the time-out; the call goes on."""


class StreamBroken(MynaError):
    """A token stream can't be continued without a gap, or the value proved to be another text. It can still be awaited."""


class RecordingError(MynaError):
    """A session that can't be recorded, a file that is no recording, or a variable that a recording does not know."""


class NotReady(MynaError):
    """An agent process or the embedded machine could not start; says why."""


class Cancelled(MynaError):
    """The variable's call was cancelled, or one that it needs."""

    def __init__(self, variable: str, reason: str, call: str) -> None:
        by = f" (call {call})" if call else ""
        super().__init__(f"variable {variable!r} was cancelled{by}: {reason or 'no reason given'}")
        self.variable = variable
        self.reason = reason
        self.call = call

    @classmethod
    def of(cls, variable: str, cancellation: Cancellation) -> Cancelled:
        """What a reader of `variable` gets for `cancellation`."""
        return cls(variable, cancellation.reason, cancellation.call)


class CallFailed(MynaError):
    """The variable will never have a value. `call`, `function` and `message` are those of the call that failed first;
    `variable` is the one that was read."""

    def __init__(self, variable: str, failure: Failure) -> None:
        origin = f"call {failure.call!r}" if failure.call else "the system"
        if failure.function:
            origin = f"function {failure.function!r} ({origin})"
        super().__init__(f"variable {variable!r} has no value: {origin} failed with {failure.code}: {failure.message}")
        self.code: ErrorCode = failure.code
        self.call = failure.call
        self.function = failure.function
        self.variable = variable
        self.message = failure.message
        self.failure = failure
