"""One connection to NATS: nats-py's client, with its dispatch replaced by plain function calls.

What this adds to nats-py 2.16, each for a reason found by reading or measuring it:
- Messages go straight to a `Sink`, without a queue and a task for each subscription: half the cost of an acknowledgement.
- What is sent in one turn of the event loop is written at once, in order. (nats-py's flush may overtake a SUB that it has
  queued, so that its answer proves nothing.)
- Answers that can't come any more fail when the connection is lost, instead of waiting for their time-out.
- An error from the server ends in a reconnect, never in a client that is closed for good.
- A dead connection is aborted, and a subscription has no queue: see `transport.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from nats import errors
from nats.aio.client import Client

from myna.actors.bus import BusError, NotAllowed, Unavailable
from myna.actors.bus.checks import check_pattern, check_subject
from myna.actors.bus.headers import status_of
from myna.actors.bus.transport import Subscribed, Transport

Sink = Callable[[str, str, bytes, bytes], None]
"""Takes a message: subject, reply ("" if none), header block (b"" if none), body. Must neither wait nor raise."""

MAX_UNSENT = 16 * 1024 * 1024
"""Bytes that may wait for the socket; a sender beyond them waits for room."""

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
_REFUSED = "authorization violation"
_CRLF = b"\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back on an inbox."""

    subject: str
    head: bytes
    data: bytes

    @property
    def status(self) -> int | None:
        """The status that the server answered with instead of a message."""
        return status_of(self.head) if self.head else None


class Link(Client):
    """A connection. `up` is set while it is there."""

    def __init__(self) -> None:
        super().__init__()
        self._wire = Transport()
        self._transport = self._wire  # nats-py makes its own only where there is none
        self.up = asyncio.Event()
        self.on_denied: Callable[[NotAllowed], None] = lambda _: None
        self._listeners: dict[int, _Listener] = {}
        self._answers: dict[str, tuple[str, asyncio.Future[Answer]]] = {}
        self._awaited_pongs: set[asyncio.Future[None]] = set()
        self._next_answer = 0
        self._inbox = ""
        self._refused: asyncio.Future[NotAllowed] | None = None
        """While this opens."""
        self._writing = False

    # --- sending ---

    async def send(self, subject: str, data: bytes, *, reply: str = "", head: bytes = b"") -> None:
        """Send one message; waits only for room."""
        check_subject(subject)
        if head:
            line = f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n".encode()
            command = b"".join((line, head, data, _CRLF))
        else:
            command = b"".join((f"PUB {subject} {reply} {len(data)}\r\n".encode(), data, _CRLF))
        if self._pending_data_size > MAX_UNSENT or self._wire.unsent > MAX_UNSENT:
            await self._room()
        self._queue(command)

    def tell(self, subject: str) -> None:
        """Send an empty message whose answer, if any, nobody awaits; never waits."""
        self._queue(f"PUB {subject} {self._inbox}0 0\r\n\r\n".encode())

    def _queue(self, command: bytes) -> None:
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._writing = False
        if self._pending and self.is_connected:
            commands, self._pending, self._pending_data_size = self._pending, [], 0
            self._wire.write(b"".join(commands))

    async def _room(self) -> None:
        if not self.up.is_set():
            raise Unavailable("the connection is down, and what waits to be sent has reached its limit")
        try:
            await self.round_trip(10.0)
        except TimeoutError as error:
            raise Unavailable("the server takes no more data") from error

    async def round_trip(self, timeout: float) -> None:
        """Await the answer to all that was sent before. Raises `TimeoutError`, `Unavailable` if the connection is lost."""
        self._write()
        if not self.up.is_set():
            raise Unavailable("the connection is down")
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self._awaited_pongs.add(pong)
        try:
            self._wire.write(b"PING\r\n")
            async with asyncio.timeout(timeout):  # not `wait_for`: it may swallow a cancellation
                await pong
        finally:
            self._awaited_pongs.discard(pong)

    # --- asking ---

    async def ask(self, subject: str, data: bytes, *, head: bytes = b"", timeout: float) -> Answer:
        """Send, and await one answer. Raises `TimeoutError`, `Unavailable` if the connection is lost, `NotAllowed`."""
        if not self._inbox:
            raise Unavailable("not connected yet")
        loop = asyncio.get_running_loop()
        self._next_answer += 1
        reply = f"{self._inbox}{self._next_answer:x}"
        answer: asyncio.Future[Answer] = loop.create_future()
        self._answers[reply] = (subject, answer)
        timer = loop.call_later(timeout, _expire, answer)
        try:
            await self.send(subject, data, reply=reply, head=head)
            return await answer
        except BaseException:
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, even where `send` failed first
            raise
        finally:
            timer.cancel()
            del self._answers[reply]

    def _answered(self, subject: str, reply: str, head: bytes, data: bytes) -> None:
        waiting = self._answers.get(subject)
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(Answer(subject, head, data))

    # --- listening ---

    async def open_inbox(self) -> None:
        """Listen for answers; once, after connecting."""
        inbox = self.new_inbox()
        await self.listen(f"{inbox}.*", self._answered, timeout=5.0)
        self._inbox = f"{inbox}."

    async def listen(
        self, subject: str, sink: Sink, *, timeout: float, refused: Callable[[NotAllowed], None] | None = None
    ) -> int:
        """Subscribe; the server knows it when this returns. Returns the subscription's number.

        Raises `NotAllowed`, and `Unavailable` after `timeout` seconds. `refused` is called where the server refuses it later,
        on a reconnect.
        """
        check_pattern(subject)
        self._sid += 1
        number = self._sid
        self._listeners[number] = listener = _Listener(subject, sink, refused)
        self._subs[number] = Subscribed(subject)
        self._queue(f"SUB {subject} {number}\r\n".encode())
        try:
            async with asyncio.timeout(timeout):
                await self._confirm()
            if listener.denied is not None:
                raise listener.denied
        except TimeoutError as error:
            self.forget(number)
            raise Unavailable(f"the server did not confirm the subscription to {subject}") from error
        except BaseException:
            self.forget(number)
            raise
        listener.confirmed = True
        return number

    def forget(self, number: int) -> None:
        """Unsubscribe. No message reaches the sink after this."""
        if self._listeners.pop(number, None) is not None and not self.is_closed:
            self._subs.pop(number, None)
            self._queue(f"UNSUB {number}\r\n".encode())

    async def _confirm(self) -> None:
        """Await a round trip on whatever connection is there, as often as it is lost."""
        while True:
            await self.up.wait()
            try:
                return await self.round_trip(60.0)  # the caller's time-out is shorter
            except Unavailable:
                continue

    # --- life ---

    async def open(
        self,
        servers: Sequence[str],
        *,
        timeout: float,
        on_down: Callable[[], None],
        on_up: Callable[[], None],
        **options: Any,
    ) -> None:
        """Connect, and stay connected. Raises `NotAllowed` for a wrong credential, `Unavailable` after `timeout` seconds."""
        last = "no answer"

        async def failed(error: Exception) -> None:
            nonlocal last
            last = str(error) or type(error).__name__
            if self._refused is not None and _REFUSED in last.lower():
                raise self._refuse(last)  # which ends nats-py's attempts

        async def down() -> None:
            self._lost()
            if not self.is_closed:
                on_down()

        async def up() -> None:
            self.up.set()
            self._write()
            on_up()

        async def begin() -> None:
            await self.connect(
                random.sample(servers, len(servers)),
                dont_randomize=True,  # else a reconnect may meet the server that was left
                error_cb=failed,
                disconnected_cb=down,
                reconnected_cb=up,
                max_reconnect_attempts=-1,
                pending_size=0,  # `send` has a limit of its own
                **options,
            )
            self._status = Client.CONNECTED  # nats-py leaves it where an INFO came before the first PONG
            self.up.set()
            await self.open_inbox()

        try:
            await self._until_refused(begin(), timeout)
        except (TimeoutError, Unavailable) as error:
            await self.shut(0.5)
            where = ", ".join(_without_credential(server) for server in servers)
            raise Unavailable(f"no connection to {where} within {timeout:g} s: {last}") from error
        except BaseException:
            await self.shut(0.5)
            raise

    async def _until_refused(self, work: Coroutine[Any, Any, None], timeout: float) -> None:
        """Do what opens this, until a server refuses this user, be it after it let us in. Raises that refusal, TimeoutError."""
        refused = self._refused = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, refused}
        try:
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if refused.done():
                raise refused.result()
            raise TimeoutError
        finally:
            self._refused = None
            await _ended(task)

    def _refuse(self, why: str) -> NotAllowed:
        """The server refuses this user. Once we are open that ends nothing: the credentials file may have changed."""
        error = NotAllowed(f"the server refuses this user: {why}")
        if self._refused is not None and not self._refused.done():
            self._refused.set_result(error)
        return error

    async def leave(self) -> None:
        """Go to another server, if more than one is known: this one is there, and of no use."""
        if len(self._server_pool) > 1:
            await self._process_op_err(errors.Error("the server is cut off from the others"))

    async def shut(self, timeout: float) -> None:
        """Write out what was sent, then close; at most about `timeout` seconds, whatever the server does. Idempotent."""
        if self.is_closed:
            return
        with contextlib.suppress(TimeoutError, BusError, OSError):
            await self.round_trip(timeout)
        self.up.clear()
        if self._reconnection_task is not None:
            await _ended(self._reconnection_task)
        self._pending, self._pending_data_size = [], 0
        self._wire.close()  # aborts, so that nothing below waits for a frozen server
        closing = asyncio.ensure_future(self.close())
        await asyncio.wait({closing}, timeout=1.0)
        closing.cancel()
        self._lost()
        self._listeners.clear()

    def _lost(self) -> None:
        self.up.clear()
        error = "the connection to the server was lost"
        for _, answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable(error))
        for pong in self._awaited_pongs:
            if not pong.done():
                pong.set_exception(Unavailable(error))

    # --- what nats-py calls ---

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        listener = self._listeners.get(sid)
        if listener is not None:
            listener.sink(subject.decode(), reply.decode(), headers or b"", data)

    def _connect_command(self) -> bytes:
        """Where TLS is asked for, nothing of ours is said in the clear, whatever the server, or who stands in for it, demands."""
        server = self._current_server
        asked = self.options.get("tls") is not None or (server is not None and server.uri.scheme == "tls")
        if asked and not self._wire.is_encrypted:
            raise errors.Error("the server does not encrypt the connection, and TLS is asked for")
        command: bytes = super()._connect_command()
        return command

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # its waiter gave up
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        if denied := _DENIED.search(err_msg):
            self._deny(denied[1], denied[2], NotAllowed(err_msg.strip("'")))
        elif "permissions violation" in err_msg:
            self.on_denied(NotAllowed(err_msg.strip("'")))
        else:
            if _REFUSED in err_msg:
                self._refuse(err_msg)
            await self._process_op_err(errors.Error(f"nats: {err_msg}"))

    def _deny(self, what: str, lowered: str, error: NotAllowed) -> None:
        """The server refused to publish on, or to subscribe to, a subject, which nats-py reports in lower case."""
        if what == "publish":
            asked = [answer for subject, answer in self._answers.values() if subject.lower() == lowered]
            for answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            if not asked:
                self.on_denied(error)
            return
        for listener in self._listeners.values():
            if listener.subject.lower() == lowered:
                listener.denied = error
                if listener.confirmed and listener.refused is not None:
                    listener.refused(error)


@dataclass(slots=True)
class _Listener:
    subject: str
    sink: Sink
    refused: Callable[[NotAllowed], None] | None
    confirmed: bool = False
    denied: NotAllowed | None = None


async def _ended(task: asyncio.Task[None]) -> None:
    """End a task of nats-py's, which may miss a cancellation that meets an answer (`wait_for` before 3.12), and see its error."""
    for _ in range(20):
        if task.done():
            break
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if task.done() and not task.cancelled():
        task.exception()


def _expire(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def _without_credential(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
