"""Exporting sessions, and going on from a recording in a new one.

Law: what is kept is kept as it was, tokens and all; what is not kept is computed anew, and nothing else is. The recorded session
is only read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec import structs

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError, NotAllowed, Stored
from myna.actors.messages import (
    Cancellation,
    Declare,
    Failure,
    LogEntry,
    LogPage,
    LogRequest,
    Outcome,
    SessionId,
    Submit,
    Tenant,
    Timing,
    Value,
    VarId,
)
from myna.actors.program import inputs_of, outputs_of
from myna.actors.subjects import Question
from myna.sdk.errors import RecordingError
from myna.sdk.recording import Ended, Recording, Said
from myna.sdk.variable import Variable, as_value

if TYPE_CHECKING:
    from myna.sdk.client import Client
    from myna.sdk.session import Session

READERS = 32
"""Values read, or written, at once."""
ANSWER = 15.0
"""Seconds that a page of a log may take."""


async def export(client: Client, session: str) -> Recording:
    """What the streams hold of a session, running or closed, as long as they hold it (`keep` of `Client.session`).

    An operator reads the log from its stream; a tenant has the scheduler tell it, of its own sessions. Raises `RecordingError` if
    there is nothing, or if it is not this user's to read.
    """
    await client.open()
    tenant, name = client.tenant, SessionId(subjects.token(session, "session"))
    try:
        log = await _follow_log(client.bus, tenant, name)
    except NotAllowed:
        log = await _ask_for_log(client.bus, tenant, name)
    if not log:
        raise RecordingError(
            f"nothing is stored of session {session!r} of tenant {tenant!r}: it was purged, or never was"
        )
    variables = sorted({name for said in log for name in _names(said.entry)})
    limit = asyncio.Semaphore(READERS)

    async def read(variable: str) -> Ended | None:
        async with limit:
            stored = await client.bus.get(subjects.VALUES, subjects.write(tenant, name, VarId(variable)))
        if stored is None:
            return None
        outcome: Outcome = codec.decode(stored.data, Value | Failure | Cancellation)
        return Ended(stored.timestamp, outcome)

    ends = await asyncio.gather(*(read(variable) for variable in variables))
    found = {variable: end for variable, end in zip(variables, ends, strict=True) if end is not None}
    return Recording(tenant, name, time.time(), tuple(log), found)


async def _ask_for_log(bus: Bus, tenant: Tenant, session: SessionId) -> list[Said]:
    log: list[Said] = []
    subject, after, more = subjects.ask(tenant, Question.LOG), 0, True
    while more:
        try:
            question = codec.encode(LogRequest(session=session, after=after))
            answer = await bus.request(subject, question, timeout=ANSWER)
        except BusError as error:
            raise RecordingError(f"the log of session {session!r} can't be read: {error}") from error
        page: LogPage = codec.decode(answer.data, LogPage)
        log += (Said(line.at, codec.decode(line.entry, LogEntry)) for line in page.lines)
        more = page.more and bool(page.lines)
        after = page.lines[-1].sequence if page.lines else after
    return log


async def _follow_log(bus: Bus, tenant: Tenant, session: SessionId) -> list[Said]:
    log: list[Said] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def take(stored: Stored) -> None:
        entry: LogEntry = codec.decode(stored.data, LogEntry)
        log.append(Said(stored.timestamp, entry))

    async def caught_up() -> None:
        if not done.done():
            done.set_result(None)

    def failed(error: BusError) -> None:
        if not done.done():
            done.set_exception(RecordingError(f"the log of session {session!r} can't be read: {error}"))

    follow = await bus.follow(
        subjects.LOG, take, subject=subjects.log(tenant, session), caught_up=caught_up, on_error=failed
    )
    try:
        await done
    finally:
        await follow.close()
    return log


def _names(entry: LogEntry) -> Iterable[str]:
    match entry:
        case Submit(calls=calls):
            return [name for call in calls for name in (*inputs_of(call), *outputs_of(call))]
        case Declare(variables=variables):
            return variables
        case _:
            return ()


async def replay(
    recording: Recording, session: Session, *, recompute: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> dict[str, Variable]:
    """Go on from `recording` in `session`, which is open and new. Returns its variables by their recorded ids.

    What has a value keeps it, and what has none (unfinished, failed, cancelled) is computed: so an application that broke off is
    resumed. `recompute` names variables to be made anew, `values` gives some another value: then all that is made of these is
    made anew too, and nothing upstream or beside them. Raises `RecordingError` for a name that the recording does not know.
    """
    given = {name: as_value(value, f"variable {name!r}") for name, value in (values or {}).items()}
    anew = set(recompute)
    known = {*recording.producers, *recording.outcomes, *(n for said in recording.log for n in _names(said.entry))}
    for name in anew | given.keys():
        if name not in known:
            raise RecordingError(f"session {recording.session!r} has no variable {name!r}")
    changed = recording.downstream(anew)
    for name in given:
        changed |= recording.downstream([name]) - {name}
    kept = {name: value for name, value in recording.values.items() if name not in changed} | given
    calls = [call for call in recording.calls.values() if not kept.keys() >= set(outputs_of(call))]
    if whole := [o for call in calls for o in outputs_of(call) if o in kept and o not in given]:
        kept = {
            name: value for name, value in kept.items() if name not in whole
        }  # a call makes all its outputs, or none
    made = {output for call in calls for output in outputs_of(call)}
    variables = {name: session.declare(name) for name in sorted(known - made)}
    session.resubmit(calls)
    limit = asyncio.Semaphore(READERS)

    async def keep(name: str, value: Value) -> None:
        async with limit:
            await session.lookup(name).set(_moved(value))

    await asyncio.gather(*(keep(name, value) for name, value in kept.items()))
    return variables | {name: session.lookup(name) for name in made}


def _moved(value: Value) -> Value:
    """A value as another session has it: its timing is of another run."""
    return structs.replace(value, timing=None) if isinstance(value.timing, Timing) else value


@asynccontextmanager
async def replayed(
    client: Client, recording: Recording, *, recompute: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[Session, dict[str, Variable]]]:
    """A new session in which `recording` goes on; see `replay`."""
    opened = recording.opened
    async with client.session(opened.name if opened and opened.name else "replay") as session:
        yield session, await replay(recording, session, recompute=recompute, values=values)
