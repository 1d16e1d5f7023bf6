"""What a worker reads from the streams and writes to them; each answer is an event for its core.

Law: a value never changes, so that one lately read or written here is not read again. What decides where an attempt goes on,
chunks and outcomes, is asked of the stream's leader: a replica may be behind.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import structlog

from myna.actors import codec, outcomes, subjects
from myna.actors.bus import AlreadyAssigned, Bus, BusError
from myna.actors.codec import TooLarge, WireError
from myna.actors.messages import (
    Anticipate,
    Cancellation,
    Chunk,
    ErrorCode,
    Failure,
    Outcome,
    Retain,
    SessionId,
    Tenant,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.program import inputs_of
from myna.actors.worker.backend import RunKey
from myna.actors.worker.events import (
    Fetched,
    NotStored,
    PutChunk,
    PutValue,
    Read,
    ReadInputs,
    Refused,
    Stored,
    WorkerEvent,
)

log = structlog.get_logger(__name__)

PATIENCE = 15.0
"""Seconds that an input's value may take to appear on a replica, and a write to be acknowledged."""
READS = 64
"""Values of one call that are asked for at once."""
CACHE_BYTES = 64 * 1024 * 1024
"""Values lately read or written here, kept so that a consumer beside its producer reads nothing over the network."""


_ENTRY = 2048
"""Bytes that a cached value takes beside its body: the decoded message, its subject and the books."""


class _ValueCache:
    """Values by subject, least recently used out first. A value never changes, so this is never wrong."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def get(self, subject: str) -> Value | None:
        found = self._values.get(subject)
        if found is None:
            return None
        self._values.move_to_end(subject)
        return found[0]

    def put(self, subject: str, value: Value, size: int) -> None:
        size += _ENTRY
        if subject in self._values or size > self._limit // 4:
            return
        self._values[subject] = (value, size)
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, old) = self._values.popitem(last=False)
            self._bytes -= old


class Storage:
    """See the module. `incarnation` names this life of the worker, and nobody but schedulers knows it."""

    def __init__(self, bus: Bus, worker: WorkerId, incarnation: str) -> None:
        self._bus = bus
        self._worker = worker
        self._incarnation = incarnation
        self._values = _ValueCache(CACHE_BYTES)
        self._asked: dict[str, asyncio.Event] = {}
        """Set when the value that is being asked for has come, or can't be had."""

    # --- reading ---

    async def read(self, command: ReadInputs) -> Read:
        """All that an attempt begins with."""
        key = command.key
        inputs: dict[VarId, Value] = {}
        chunks: dict[VarId, tuple[Chunk, ...]] = {}
        already: dict[VarId, Outcome] = {}
        taken: list[Value] = []
        failure: Failure | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                if command.source is not None:
                    origin = (key[0], SessionId(command.source.session))
                    copied = [VarId(v) for v in command.source.variables]
                    found = await self._read(*origin, copied)
                    taken = [found[variable] for variable in copied]
                inputs = await self._read(*key[:2], command.inputs)
                for variable in command.outputs:
                    chunks[variable] = await self._chunks(key, variable)
                    outcome = await self._outcome(subjects.write(*key[:2], variable), fresh=True)
                    if outcome is not None:
                        already[variable] = outcome
        except (BusError, WireError, TimeoutError) as error:
            message = f"worker {self._worker!r} could not read the inputs of call {key[2]!r}: {error or 'time-out'}"
            failure = Failure(code=ErrorCode.WORKER_LOST, message=message, retryable=True)
        return Read(key, inputs, chunks, already, failure, _now(), tuple(taken))

    async def fetch(self, order: Retain | Anticipate) -> Fetched:
        """The inputs that there are of what is done for calls to come: a hint, so that nothing is tried twice."""
        coming = order.stream if isinstance(order, Retain) else order.awaits
        try:
            async with asyncio.timeout(PATIENCE):
                wanted = [v for v in dict.fromkeys(inputs_of(order.call)) if v != coming]
                inputs = await self._read(Tenant(order.tenant), SessionId(order.session), wanted)
        except (BusError, WireError, TimeoutError) as error:
            log.debug("nothing is done ahead", call=order.call.id, reason=str(error) or "time-out")
            return Fetched(order, None)
        return Fetched(order, inputs)

    async def _read(self, tenant: Tenant, session: SessionId, variables: Sequence[VarId]) -> dict[VarId, Value]:
        """The values of variables, in their order; those that aren't known here are asked for side by side."""
        limit = asyncio.Semaphore(READS)

        async def fetch(variable: VarId) -> Value:
            async with limit:
                return await self._value(subjects.write(tenant, session, variable), variable)

        known = {variable: self._values.get(subjects.write(tenant, session, variable)) for variable in variables}
        try:
            async with asyncio.TaskGroup() as group:
                reads = {v: group.create_task(fetch(v)) for v, value in known.items() if value is None}
        except* (BusError, WireError) as errors:
            raise errors.exceptions[0] from None
        return {v: reads[v].result() if value is None else value for v, value in known.items()}

    async def _value(self, subject: str, variable: VarId) -> Value:
        """A variable's value. Of the calls that begin together and read one, the first asks for all."""
        asked = self._asked.get(subject)
        if asked is not None:
            await asked.wait()
            if (value := self._values.get(subject)) is not None:
                return value
        answered = self._asked[subject] = asyncio.Event()
        try:
            return await self._ask(subject, variable)
        finally:
            self._asked.pop(subject, None)
            answered.set()

    async def _ask(self, subject: str, variable: VarId) -> Value:
        """It is stored, or the call would not run; but a replica may be behind for a moment."""
        pause = 0.005
        while True:
            outcome = await self._outcome(subject)
            match outcome:
                case Value():
                    return outcome
                case None:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 0.5)
                case _:
                    raise WireError(f"input {variable!r} has no value, but ended in {outcome!r}")

    async def _outcome(self, subject: str, *, fresh: bool = False) -> Outcome | None:
        stored = await self._bus.get(subjects.VALUES, subject, fresh=fresh)
        if stored is None:
            return None
        outcome: Outcome = codec.decode(stored.data, Value | Failure | Cancellation)
        if isinstance(outcome, Value):
            self._values.put(subject, outcome, stored.size)
        return outcome

    async def _chunks(self, key: RunKey, variable: VarId) -> tuple[Chunk, ...]:
        found: list[Chunk] = []
        while True:
            subject = subjects.write_chunk(*key[:2], variable, len(found))
            stored = await self._bus.get(subjects.CHUNKS, subject, fresh=True)
            if stored is None:
                return tuple(found)
            found.append(codec.decode(stored.data, Chunk))

    # --- writing ---

    def _id(self, subject: str, key: RunKey) -> str:
        """By which the stream knows a repeated publish. Ids are a whole stream's, so that one who could guess it could make the
        stream take ours for a repetition; nobody but schedulers knows our incarnation."""
        return f"{subject}:{key[3]}:{self._incarnation}"

    async def put_chunk(self, command: PutChunk) -> WorkerEvent:
        """Store a chunk, once."""
        key, variable, n = command.key, command.variable, command.n
        subject = subjects.write_chunk(*key[:2], variable, n)
        try:
            data = codec.encode(command.chunk)
            await self._bus.append(subject, data, message_id=self._id(subject, key), timeout=PATIENCE)
            return Stored(key, variable, n, _now())
        except AlreadyAssigned:
            return await self._compare(key, variable, n, subject, data)
        except (BusError, WireError) as error:
            return NotStored(key, variable, _unstored(variable, error), _now())

    async def put_value(self, command: PutValue) -> WorkerEvent:
        """Store a value, once."""
        key, variable = command.key, command.variable
        subject = subjects.write(*key[:2], variable)
        try:
            data, headers = outcomes.pack(command.value)
            headers |= outcomes.streamed_headers(command.streamed)
            await self._bus.append(subject, data, message_id=self._id(subject, key), headers=headers, timeout=PATIENCE)
            self._values.put(subject, command.value, len(data))
            return Stored(key, variable, None, _now())
        except AlreadyAssigned:
            return await self._compare(key, variable, None, subject, data)
        except (BusError, WireError) as error:
            return NotStored(key, variable, _unstored(variable, error), _now())

    async def _compare(self, key: RunKey, variable: VarId, n: int | None, subject: str, data: bytes) -> WorkerEvent:
        """The subject is taken: by ourselves, in an earlier try whose acknowledgement was lost, or by another attempt."""
        stream = subjects.VALUES if n is None else subjects.CHUNKS
        ours = False
        try:
            stored = await self._bus.get(stream, subject, fresh=True)
            ours = stored is not None and stored.data == data
        except BusError as error:
            log.warning("could not read back", subject=subject, reason=str(error))
        return (Stored if ours else Refused)(key, variable, n, _now())


def _now() -> float:
    """By the clock that events are told in."""
    return asyncio.get_running_loop().time()


def _unstored(variable: VarId, error: Exception) -> Failure:
    if isinstance(error, TooLarge):
        return Failure(code=ErrorCode.VALUE_TOO_LARGE, message=f"output {variable!r}: {error}")
    if isinstance(error, WireError):
        return Failure(code=ErrorCode.ENGINE_ERROR, message=f"output {variable!r} is no plain data: {error}")
    return Failure(code=ErrorCode.WORKER_LOST, message=f"output {variable!r} was not stored: {error}", retryable=True)
