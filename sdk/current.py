"""Which session a call belongs to when nobody says: the one whose `async with` (or `with`) is open here."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Protocol

from myna.sdk.errors import NoSession

if TYPE_CHECKING:
    from myna.sdk.function import Prepared


class Submitter(Protocol):
    """What functions need of a session."""

    def submit(self, prepared: Prepared) -> Any:
        """Submit a call, and return its variables."""


CURRENT: ContextVar[Submitter | None] = ContextVar("myna_session", default=None)


def leave(token: Token[Submitter | None]) -> None:
    """Undo `CURRENT.set`. Where the block is left in another context than it was entered in (a generator that is finalized, a
    test's fixture) there is nothing to undo."""
    with contextlib.suppress(ValueError):
        CURRENT.reset(token)


def choose_session(given: Submitter | None, function: str) -> Submitter:
    """`given`, or else the current session. Raises `NoSession`."""
    session = given if given is not None else CURRENT.get()
    if session is None:
        raise NoSession(
            f"function {function!r} was called, but no session is open here: use `async with myna.session():`, "
            "or pass session="
        )
    return session
