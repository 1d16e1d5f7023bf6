"""What a session says to the scheduler: entries of its log, in order, gathered and written by one task.

Law: what is said in one turn of the event loop goes out as few entries as fit; each is stored, or fails for those whom it
concerns; none is lost silently. `pack` and `halves` are pure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from myna.actors import codec
from myna.actors.bus import BusError
from myna.actors.messages import Cancel, Close, Declare, LogEntry, Open, Submit, Tried, Unwant, Want
from myna.actors.program import outputs_of

MOST_CALLS = 1024
"""Calls in one entry."""

Append = Callable[[bytes], Awaitable[object]]
Fail = Callable[[Sequence[str], Exception], None]


def pack(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """The same history in fewer entries: neighbours of one kind are joined. Of what was said at once, variables are declared and
    wanted before calls are submitted: a call may start as soon as it is, and what it is needed for should be known then."""
    packed: list[LogEntry] = []
    run: list[LogEntry] = []
    for entry in _in_order(entries):
        if run and not _joins(run, entry):
            packed.append(_join(run))
            run = []
        run.append(entry)
    return [*packed, _join(run)] if run else packed


def _in_order(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Between two entries of other kinds: declarations, then wants, then calls, each in their order."""
    ordered: list[LogEntry] = []
    declared: list[LogEntry] = []
    wanted: list[LogEntry] = []
    calls: list[LogEntry] = []
    for entry in entries:
        match entry:
            case Declare():
                declared.append(entry)
            case Want():
                wanted.append(entry)
            case Submit():
                calls.append(entry)
            case _:
                ordered += [*declared, *wanted, *calls, entry]
                declared, wanted, calls = [], [], []
    return [*ordered, *declared, *wanted, *calls]


def _joins(run: Sequence[LogEntry], entry: LogEntry) -> bool:
    match run[0], entry:
        case Submit(), Submit():
            return len(run) < MOST_CALLS
        case Declare(), Declare():
            return True
        case Want() as first, Want():
            return (first.objective, first.reader) == (entry.objective, entry.reader)
        case Unwant() as first, Unwant():
            return first.reader == entry.reader
        case _:
            return False


def _join(run: Sequence[LogEntry]) -> LogEntry:
    if len(run) == 1:
        return run[0]
    match run[0]:
        case Submit():
            return Submit(calls=tuple(call for e in run if isinstance(e, Submit) for call in e.calls))
        case Declare():
            return Declare(
                variables=tuple(dict.fromkeys(v for e in run if isinstance(e, Declare) for v in e.variables))
            )
        case Want(objective=objective, reader=reader):
            wanted = dict.fromkeys(v for e in run if isinstance(e, Want) for v in e.variables)
            return Want(variables=tuple(wanted), objective=objective, reader=reader)
        case Unwant(reader=reader):
            dropped = dict.fromkeys(v for e in run if isinstance(e, Unwant) for v in e.variables)
            return Unwant(variables=tuple(dropped), reader=reader)
        case first:
            return first


def halves(entry: LogEntry) -> tuple[LogEntry, LogEntry] | None:
    """`entry` as two, for one that is too large; None if it can't be divided."""
    match entry:
        case Submit(calls=calls) if len(calls) > 1:
            middle = len(calls) // 2
            return Submit(calls=calls[:middle]), Submit(calls=calls[middle:])
        case Declare(variables=names) if len(names) > 1:
            middle = len(names) // 2
            return Declare(variables=names[:middle]), Declare(variables=names[middle:])
        case Want(variables=names) | Unwant(variables=names) if len(names) > 1:
            middle = len(names) // 2
            return replace(entry, variables=names[:middle]), replace(entry, variables=names[middle:])
        case _:
            return None


def concerned(entry: LogEntry) -> tuple[str, ...]:
    """The variables that can't end as they should if `entry` is not stored."""
    match entry:
        case Submit(calls=calls):
            return tuple(v for call in calls for v in outputs_of(call))
        case Declare(variables=variables) | Want(variables=variables):
            return variables
        case Open() | Unwant() | Cancel() | Close() | Tried():
            return ()


class Outbox:
    """Gathers entries and appends them; `run` is its task. `fail` hears of the variables whose entry was not stored."""

    def __init__(self, append: Append, fail: Fail) -> None:
        self._append = append
        self._fail = fail
        self._pending: list[LogEntry] = []
        self._wake: asyncio.Future[None] | None = None
        self._said = 0
        self._done = 0
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._told: dict[int, asyncio.Future[None]] = {}

    def say(self, *entries: LogEntry) -> None:
        """Have `entries` appended, after all that was said before."""
        self._pending += entries
        self._said += len(entries)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def tell(self, entry: Cancel | Close) -> None:
        """Have `entry` appended after all that was said before, and wait until it is. Raises `BusError` if it is not stored."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._told[id(entry)] = stored  # these entries are never joined or divided, and live until they are stored
        self.say(entry)
        await stored

    async def flush(self) -> None:
        """Wait until all that was said so far is stored, or has failed."""
        if self._done >= self._said:
            return
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((self._said, flushed))
        await flushed

    async def run(self) -> None:
        """Append what is said, for ever."""
        while True:
            if not self._pending:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            batch, self._pending = self._pending, []
            for entry in pack(batch):
                await self._store(entry)
            self._done += len(batch)
            self._wake_flushes()

    async def _store(self, entry: LogEntry) -> None:
        try:
            data = codec.encode(entry)
        except codec.WireError as error:
            parts = halves(entry)
            if parts is None:
                self._fail(concerned(entry), error)
                return
            for part in parts:
                await self._store(part)
            return
        try:
            await self._append(data)
        except (BusError, codec.WireError) as error:
            self._fail(concerned(entry), error)
            self._answer(entry, error)
        else:
            self._answer(entry, None)

    def _answer(self, entry: LogEntry, error: Exception | None) -> None:
        told = self._told.pop(id(entry), None)
        if told is None or told.done():
            return
        if error is None:
            told.set_result(None)
        else:
            told.set_exception(error)

    def _wake_flushes(self) -> None:
        waiting, self._flushes = self._flushes, []
        for target, flushed in waiting:
            if self._done < target:
                self._flushes.append((target, flushed))
            elif not flushed.done():
                flushed.set_result(None)
