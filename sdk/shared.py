"""Variables of another tenant's, which the operator lets this one read (`myna tenants share`).

    async with client.shared("acme", session_id) as theirs:
        text = await theirs.text(variable_id, timeout=10)

Law: they are read where they stand, as their own tenant's readers read them (Law 8); nothing is copied, and nothing written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from myna.actors.messages import Outcome, SessionId, Tenant, Value, VarId
from myna.actors.subjects import token
from myna.sdk.errors import SessionClosed, TimedOut
from myna.sdk.reading import Reading
from myna.sdk.variable import as_end

if TYPE_CHECKING:
    from myna.sdk.client import Client

_Ended = asyncio.Future[Outcome | None]


class SharedSession:
    """Another tenant's session, open for reading; made by `Client.shared`."""

    def __init__(self, client: Client, owner: Tenant, session: SessionId, tasks: asyncio.TaskGroup) -> None:
        self._owner = owner
        self._session = session
        self._ends: dict[VarId, _Ended] = {}
        self._reading = Reading(client.bus, owner, session, self, tasks)

    async def text(self, variable: str, timeout: float | None = None) -> str:
        """A variable's text; see `value`."""
        return (await self.value(variable, timeout)).text

    async def value(self, variable: str, timeout: float | None = None) -> Value:
        """A variable's value, once it has one. Raises `TimedOut`, `CallFailed`, `Cancelled`, `SessionClosed`. One that was not
        granted has no value for us, ever: give a `timeout`, in seconds."""
        try:
            async with asyncio.timeout(timeout):
                return _value(variable, await asyncio.shield(self._end(variable)))
        except TimeoutError as error:
            what = f"variable {variable!r} of tenant {self._owner!r}"
            raise TimedOut(f"{what} has no value after {timeout:g} s, or is not granted") from error

    async def stream(self, variable: str) -> AsyncGenerator[str, None]:
        """A variable's text as it is made, from its beginning. Raises as `value` does, and `StreamBroken`."""
        ended = self._end(variable)

        def when_ended(tell: Callable[[Outcome | None], None]) -> None:
            ended.add_done_callback(lambda done: None if done.cancelled() else tell(done.result()))

        async with aclosing(self._reading.chunks(VarId(variable), when_ended)) as pieces:
            async for piece in pieces:
                yield piece
        _value(variable, await asyncio.shield(ended))

    def _end(self, variable: str) -> _Ended:
        name = VarId(token(variable, "variable"))
        if name not in self._ends:
            self._ends[name] = asyncio.get_running_loop().create_future()
            self._reading.want(name, fresh=False)
        return self._ends[name]

    # --- as the connection sees it ---

    def lost(self) -> None:
        """The connection was gone."""
        self._reading.lost()

    async def close(self) -> None:
        """Read nothing more."""
        await self._reading.close()
        for variable in self._ends:
            self.give_up(variable)

    # --- as the reading sees it ---

    def expects(self, variable: VarId) -> bool:
        """Whether somebody waits for it."""
        return variable in self._ends and not self._ends[variable].done()

    def deliver(self, variable: VarId, outcome: Outcome) -> None:
        """It has its outcome."""
        if self.expects(variable):
            self._ends[variable].set_result(outcome)

    def give_up(self, variable: VarId) -> None:
        """There will be none."""
        if self.expects(variable):
            self._ends[variable].set_result(None)


class _Left(Exception):
    """The block has ended, and the tasks with it."""


@asynccontextmanager
async def opened(client: Client, owner: str, session: str) -> AsyncIterator[SharedSession]:
    """Another tenant's session, for the time of a block."""
    failed: Exception | None = None
    names = Tenant(token(owner, "tenant")), SessionId(token(session, "session"))
    try:
        async with asyncio.TaskGroup() as tasks:
            it = SharedSession(client, *names, tasks)
            client.remember(it)
            try:
                yield it
            except Exception as error:  # it leaves the block as it is, not in a group
                failed = error
            finally:
                client.forget(it)
                await it.close()
            raise _Left
    except* _Left:
        pass
    if failed is not None:
        raise failed


def _value(variable: str, outcome: Outcome | None) -> Value:
    end = (
        SessionClosed(f"the session of variable {variable!r} has ended")
        if outcome is None
        else as_end(variable, outcome)
    )
    if isinstance(end, Value):
        return end
    raise end
