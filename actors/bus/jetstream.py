"""JetStream's requests and answers, as far as a bus needs them. What can be repeated safely is, until the time-out.

An append is repeated only with a message id, by which the stream knows it again. The order of the server's checks matters:
the message id comes first, so that the same id again is a duplicate within the stream's window, and refused after it.

A repetition is refused too, where the servers took longer than that to agree on a new leader, or where he does not know the id
yet. So whether a refused repetition is `AlreadyAssigned`, the id of the message that the subject has tells.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from myna.actors import codec
from myna.actors.bus import AlreadyAssigned, BusError, NotAllowed, Receipt, Stored, StreamSize, Unavailable
from myna.actors.bus.checks import check_size
from myna.actors.bus.headers import pack_headers, unpack_headers
from myna.actors.bus.link import Answer, Link
from myna.actors.subjects import MESSAGE_ID, Republish, Stream

API = "$JS.API"
MAX_CONSUMERS = 256
"""Consumers that one stream may have: schedulers follow streams, readers never do (Law 8)."""

NO_RESPONDERS = 503
NOT_FOUND = 404

_FIRST_DELAY, _LAST_DELAY = 0.05, 1.0  # seconds between two tries
_FIRST_PATIENCE, _LAST_PATIENCE = 2.0, 10.0  # seconds that one try may take
_SERVER_HEADERS = "Nats-"
_CUT_OFF = 8.0
"""Seconds without anything stored after which a server is taken to be cut off from the others: an election takes up to 7."""


class ApiError(BusError):
    """JetStream answered with an error."""

    def __init__(self, code: int, number: int, description: str) -> None:
        super().__init__(f"{description} (JetStream error {number})")
        self.code = code
        self.number = number
        self.description = description

    @property
    def passing(self) -> bool:
        """Whether trying again may help."""
        return self.code == NO_RESPONDERS or self.number in (_ID_IN_FLIGHT, _SUBJECT_IN_FLIGHT, _NO_PEERS)


# JetStream's error numbers
_STORE_FAILED, _MESSAGE_TOO_LARGE, _ID_IN_FLIGHT = 10077, 10054, 10158
STREAM_NAME_IN_USE, WRONG_LAST_SEQUENCE = 10058, 10071
_NO_MESSAGE = 10037
_SUBJECT_IN_FLIGHT = 10164
"""An earlier write to the subject, perhaps our own, is not agreed on yet; whether it fits what is expected shows once it is."""
_NO_PEERS = 10005
"""Too few servers for the replicas that are asked for: those of a cluster that starts may not have found each other yet."""


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


def sent_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that the sender gave, without those that the server added."""
    return {k: v for k, v in headers.items() if not k.startswith(_SERVER_HEADERS) or k == MESSAGE_ID}


class Tries:
    """When to try again, and when to give up: a deadline, growing delays, growing patience with one try."""

    def __init__(self, link: Link, timeout: float) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout
        self._delay = _FIRST_DELAY
        self._patience = _FIRST_PATIENCE

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.001, self._deadline - self._loop.time())

    @property
    def patience(self) -> float:
        """Seconds that the next try may take."""
        return min(self.left, self._patience)

    async def connected(self, what: str) -> None:
        """Await the connection. Raises `Unavailable` at the deadline."""
        if self._link.up.is_set():
            return
        if self._link.is_closed:
            raise Unavailable(f"{what}: the bus is closed")
        try:
            async with asyncio.timeout(self.left):
                await self._link.up.wait()
        except TimeoutError as error:
            raise Unavailable(f"{what}: not connected to the server") from error

    async def again(self, what: str, problem: str) -> None:
        """Await the moment of the next try. Raises `Unavailable` where it would come too late."""
        if self._loop.time() + self._delay >= self._deadline:
            raise Unavailable(f"{what}: {problem}")
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * 2, _LAST_DELAY)
        self._patience = min(self._patience * 2, _LAST_PATIENCE)
        await self.connected(what)


class JetStream:
    """JetStream over one link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._failing: float | None = None
        """Since when nothing could be stored."""
        self._leaders_forbidden: set[str] = set()
        """Streams whose leaders this user may not ask."""

    async def append(
        self, subject: str, data: bytes, *, message_id: str | None, headers: Mapping[str, str] | None, timeout: float
    ) -> Receipt:
        """Store a message. Raises `AlreadyAssigned`, `Unavailable`, `codec.TooLarge`, `ApiError`, `NotAllowed`."""
        if message_id is not None:
            headers = {MESSAGE_ID: message_id, **headers} if headers else {MESSAGE_ID: message_id}
        head = pack_headers(headers) if headers else b""
        check_size(subject, data, len(head), self.link.max_payload)
        tries = Tries(self.link, timeout)
        earlier: str | None = None
        while True:
            await tries.connected(subject)
            try:
                patience = tries.left if message_id is None else tries.patience
                answer = await self.link.ask(subject, data, head=head, timeout=patience)
                receipt = await self._settle(subject, data, answer, earlier, tries)
                self._failing = None
                return receipt
            except TimeoutError:
                problem: str | BusError = "no acknowledgement in time"
            except Unavailable as error:
                problem = error
            except ApiError as error:
                if not error.passing:
                    raise
                problem = error
            await self._doubt()
            if message_id is None:
                raise Unavailable(f"{subject}: {problem}")
            earlier = message_id
            await tries.again(subject, str(problem))

    async def _settle(self, subject: str, data: bytes, answer: Answer, earlier: str | None, tries: Tries) -> Receipt:
        """What a stream answered. `earlier` is the message id of an earlier try, which may have been stored unseen."""
        try:
            return _receipt(subject, data, answer)
        except AlreadyAssigned as refusal:
            if earlier is None:
                raise
            stored = await self.get_fresh(refusal.stream, subject, tries.patience)
            if stored is None:
                raise Unavailable("the subject is taken, and by whom does not show yet") from refusal
            if stored.headers.get(MESSAGE_ID) != earlier:
                raise
            return Receipt(refusal.stream, stored.sequence, duplicate=True)

    async def _doubt(self) -> None:
        """Nothing was stored. A server that is cut off from the others answers pings all the same: ask another one, then."""
        now = asyncio.get_running_loop().time()
        if self._failing is None or not self.link.up.is_set():
            self._failing = now
        elif now - self._failing >= _CUT_OFF:
            self._failing = None
            await self.link.leave()

    async def get(self, stream: str, subject: str, timeout: float) -> Stored | None:
        """The last message of `subject`, by direct get."""
        tries = Tries(self.link, timeout)
        where = f"{API}.DIRECT.GET.{stream}.{subject}"
        while True:
            await tries.connected(where)
            try:
                answer = await self.link.ask(where, b"", timeout=tries.patience)
            except (TimeoutError, Unavailable) as error:
                await tries.again(where, str(error) or "no answer in time")
                continue
            match answer.status:
                case None:
                    return _stored(answer)
                case 404:
                    return None
                case 503:
                    await tries.again(where, f"no stream {stream} answers")
                case status:
                    raise BusError(f"{where}: status {status}")

    async def get_fresh(self, stream: str, subject: str, timeout: float) -> Stored | None:
        """The last message of `subject`: from the stream's leader, if this user may ask him, else from any replica."""
        if stream not in self._leaders_forbidden:
            try:
                return await self.get_from_leader(stream, subject, timeout)
            except NotAllowed:  # to tenants' users, among them agents: a direct get is all the JetStream that they have
                self._leaders_forbidden.add(stream)
        return await self.get(stream, subject, timeout)

    async def get_from_leader(self, stream: str, subject: str, timeout: float) -> Stored | None:
        """The last message of `subject`, from the stream's leader."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}, timeout=timeout)
        except ApiError as error:
            if error.number == _NO_MESSAGE:
                return None
            if error.code == NOT_FOUND:  # in memory, and not made again yet
                raise Unavailable(f"no stream {stream} answers") from error
            raise
        return _message(answer["message"])

    async def api(self, name: str, request: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Ask JetStream's API, which is repeated where it has no leader. Raises `ApiError`, `Unavailable`, `NotAllowed`."""
        tries = Tries(self.link, timeout)
        where = f"{API}.{name}"
        body = json.dumps(request).encode()
        while True:
            await tries.connected(where)
            try:
                answer = await self.link.ask(where, body, timeout=tries.patience)
                if answer.status == NO_RESPONDERS:
                    raise Unavailable("JetStream does not answer")
                return _result(answer)
            except (TimeoutError, Unavailable) as error:
                problem = str(error) or "no answer in time"
            except ApiError as error:
                if not error.passing:
                    raise
                problem = str(error)
            await tries.again(where, problem)

    async def configure(self, config: Mapping[str, Any], *, timeout: float = 20.0) -> None:
        """Create the stream, or bring it up to date."""
        name = config["name"]
        try:
            await self.api(f"STREAM.CREATE.{name}", config, timeout=timeout)
        except ApiError as error:
            if error.number != STREAM_NAME_IN_USE:
                raise
            await self.api(f"STREAM.UPDATE.{name}", config, timeout=timeout)

    async def measure(self, stream: str, *, timeout: float = 5.0) -> StreamSize:
        """How much a stream holds."""
        return _size_of((await self.api(f"STREAM.INFO.{stream}", {}, timeout=timeout))["state"])

    async def purge(self, stream: str, subject: str, keep: int, *, timeout: float = 20.0) -> int:
        """Delete the messages of `subject` but for the last `keep`; returns how many."""
        answer = await self.api(f"STREAM.PURGE.{stream}", {"filter": subject, "keep": keep}, timeout=timeout)
        return int(answer["purged"])


def _size_of(state: Mapping[str, Any]) -> StreamSize:
    return StreamSize(int(state["messages"]), int(state["bytes"]))


def stream_config(stream: Stream, replicas: int) -> dict[str, Any]:
    """JetStream's configuration of a stream."""
    config: dict[str, Any] = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "retention": "limits",
        "storage": "memory" if stream.memory else "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_consumers": MAX_CONSUMERS,
        "max_age": nanoseconds(stream.max_age or 0.0),
        "duplicate_window": nanoseconds(stream.duplicate_window),
        "allow_direct": True,
    }
    if stream.single:
        config |= {"max_msgs_per_subject": 1, "discard_new_per_subject": True}
    match stream.republish:
        case Republish(source, destination):
            config["republish"] = {"src": source, "dest": destination}
        case None:
            pass
    return config


def nanoseconds(seconds: float) -> int:
    """JetStream's unit of time."""
    return round(seconds * 1e9)


def timestamp(text: str) -> float:
    """Seconds since the epoch of one of JetStream's dates."""
    return datetime.fromisoformat(text).timestamp()


def _receipt(subject: str, data: bytes, answer: Answer) -> Receipt:
    if answer.status == NO_RESPONDERS:
        raise Unavailable("no stream takes this subject now")
    try:
        ack = _decode_ack(answer.data)
    except msgspec.DecodeError as error:
        raise BusError(f"{subject}: what answered is no stream") from error
    if ack.error is None:
        return Receipt(ack.stream, ack.seq, ack.duplicate)
    refusal = ack.error
    if refusal.err_code == _STORE_FAILED and "per subject" in refusal.description:
        raise AlreadyAssigned(subject, ack.stream)
    if refusal.err_code == _MESSAGE_TOO_LARGE:
        raise codec.TooLarge(f"a message to {subject}", len(data))
    raise ApiError(refusal.code, refusal.err_code, refusal.description)


def _result(answer: Answer) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(answer.data)
    if error := result.get("error"):
        raise ApiError(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))
    return result


def _message(message: dict[str, Any]) -> Stored:
    """A message as JetStream's API tells it."""
    data = base64.b64decode(message.get("data", ""))
    headers = unpack_headers(base64.b64decode(message["hdrs"])) if message.get("hdrs") else {}
    return Stored(
        subject=message["subject"],
        data=data,
        headers=sent_headers(headers),
        sequence=int(message["seq"]),
        size=len(data),
        timestamp=timestamp(message["time"]),
    )


def _stored(answer: Answer) -> Stored:
    headers = unpack_headers(answer.head)
    return Stored(
        subject=headers["Nats-Subject"],
        data=answer.data,
        headers=sent_headers(headers),
        sequence=int(headers["Nats-Sequence"]),
        size=len(answer.data),
        timestamp=timestamp(headers["Nats-Time-Stamp"]),
    )
