"""Reading, as two pure cores: which values are awaited and must be asked for, and how a token stream is put in order.

Law: events in, commands out; no network, no clock. A message that was lost is found by a direct get: at once where nobody
listened before, with back-off while somebody waits, and after each loss (reconnect, overflow). So no reader depends on
a message that may be lost, and thousands who wait cost a get each half minute.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from myna.actors.messages import Cancellation, Chunk, Failure, Outcome, Value, VarId
from myna.actors.outcomes import Chain

FIRST_GET = 2.0
"""Seconds until a value is asked for that was listened for from the start."""
BACK_OFF = 1.0
LONGEST_BACK_OFF = 30.0
PROBE_AFTER = 8.0
"""Back-off from which a reader also asks whether the session still exists, and how often at most, in seconds."""
FEW = 16
"""Variables awaited at once, up to which a foreign session's values are subscribed to one by one."""


# --- Values: events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Somebody waits for a variable. `fresh`: it is listened for since before it could have a value."""

    variable: VarId
    now: float
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Nobody waits for a variable any more."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Found:
    """A variable has its outcome."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Missing:
    """A get found nothing, or (`answered` is False) got no answer."""

    variable: VarId
    now: float
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Listening:
    """The server knows a subscription: for one variable, or (None) for all of the session."""

    variable: VarId | None
    now: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages may have been lost: the connection was gone, or a mailbox overflowed."""

    now: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The session has ended: what has no value now will have none."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now: float


ValueEvent = Wanted | Unwanted | Found | Missing | Listening | Lost | Gone | Tick


# --- Values: commands -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribe to a variable, or (None) to all of the session."""

    variable: VarId | None


@dataclass(frozen=True, slots=True)
class Unlisten:
    """End the subscription to one variable."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Get:
    """Get a variable's outcome directly."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the session still exists."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell whoever waits that the session has ended."""

    variable: VarId


ValueCommand = Listen | Unlisten | Get | Probe | GiveUp


@dataclass(slots=True)
class _Wait:
    back_off: float = field(default_factory=lambda: BACK_OFF)
    due: float | None = None
    getting: bool = False
    listening: bool = False
    final: bool = False


@dataclass(slots=True)
class ValueReader:
    """What is awaited in one session. `listens`: all its values are subscribed to already."""

    listens: bool
    _waits: dict[VarId, _Wait] = field(default_factory=dict)
    _heap: list[tuple[float, VarId]] = field(default_factory=list)
    _probe_at: float = 0.0
    _asked_all: bool = False
    _lossy: bool = False

    @property
    def due(self) -> float | None:
        """When the next tick is needed."""
        while self._heap and self._stale(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def waiting(self) -> int:
        """How many variables are awaited."""
        return len(self._waits)

    def handle(self, event: ValueEvent) -> list[ValueCommand]:
        """What is to be done about `event`."""
        match event:
            case Wanted():
                return self._wanted(event)
            case Unwanted(variable) | Found(variable):
                return self._forget(variable)
            case Missing():
                return self._missing(event)
            case Listening(variable=None):
                return self._listening_to_all()
            case Listening(variable=variable):
                return self._get([variable] if variable in self._waits else [])
            case Lost():
                self._lossy = True
                return self._get(list(self._waits))
            case Gone():
                return self._gone()
            case Tick(now):
                return self._tick(now)

    def _wanted(self, event: Wanted) -> list[ValueCommand]:
        if event.variable in self._waits:
            return []
        wait = self._waits[event.variable] = _Wait()
        if self.listens:
            if not event.fresh or self._lossy:
                return self._get([event.variable])
            wait.back_off = 2 * FIRST_GET
            self._schedule(event.variable, wait, event.now + FIRST_GET)
            return []
        if self._asked_all:
            return []
        if len(self._waits) > FEW:
            self._asked_all = True
            return [Listen(None)]
        wait.listening = True
        return [Listen(event.variable)]

    def _forget(self, variable: VarId | None) -> list[ValueCommand]:
        wait = self._waits.pop(variable, None) if variable is not None else None
        return [Unlisten(variable)] if wait is not None and wait.listening and variable is not None else []

    def _missing(self, event: Missing) -> list[ValueCommand]:
        wait = self._waits.get(event.variable)
        if wait is None:
            return []
        wait.getting = False
        if wait.final and event.answered:
            return [*self._forget(event.variable), GiveUp(event.variable)]
        self._schedule(event.variable, wait, event.now + wait.back_off)
        wait.back_off = min(wait.back_off * 2, LONGEST_BACK_OFF)
        return []

    def _listening_to_all(self) -> list[ValueCommand]:
        self.listens = True
        commands: list[ValueCommand] = []
        for variable, wait in self._waits.items():
            if wait.listening:
                wait.listening = False
                commands.append(Unlisten(variable))
        return commands + self._get(list(self._waits))

    def _gone(self) -> list[ValueCommand]:
        for wait in self._waits.values():
            wait.final = True
        return self._get(list(self._waits))

    def _tick(self, now: float) -> list[ValueCommand]:
        ready: list[VarId] = []
        while (due := self.due) is not None and due <= now:
            variable = heapq.heappop(self._heap)[1]
            self._waits[variable].due = None
            ready.append(variable)
        commands = self._get(ready)
        if now >= self._probe_at and any(self._waits[v].back_off >= PROBE_AFTER for v in ready):
            self._probe_at = now + PROBE_AFTER
            commands.append(Probe())
        return commands

    def _get(self, variables: Iterable[VarId | None]) -> list[ValueCommand]:
        commands: list[ValueCommand] = []
        for variable in variables:
            if variable is None or self._waits[variable].getting:
                continue
            wait = self._waits[variable]
            wait.getting, wait.due = True, None
            commands.append(Get(variable))
        return commands

    def _schedule(self, variable: VarId, wait: _Wait, due: float) -> None:
        wait.due = due
        heapq.heappush(self._heap, (due, variable))

    def _stale(self, due: float, variable: VarId) -> bool:
        wait = self._waits.get(variable)
        return wait is None or wait.due != due


# --- Streams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server knows the subscription to the chunks."""


@dataclass(frozen=True, slots=True)
class Came:
    """Chunk n: live, or the answer to a get."""

    n: int
    chunk: Chunk
    asked: bool = False


@dataclass(frozen=True, slots=True)
class NoChunk:
    """A get found no chunk n, or (`answered` is False) got no answer."""

    n: int
    now: float
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Ended:
    """The variable has ended; None: it will never, since its session has."""

    outcome: Outcome | None


ChunkEvent = Subscribed | Came | NoChunk | Ended | Lost | Tick


@dataclass(frozen=True, slots=True)
class GetChunk:
    """Get chunk n directly."""

    n: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give this text to the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The stream is over. `complete`: what was delivered is the value. Else `outcome` is the end: failed, cancelled, None where
    its session ended. `torn`: what is stored now does not go on from what was delivered, or the value is another text."""

    complete: bool
    outcome: Outcome | None = None
    torn: bool = False


ChunkCommand = GetChunk | Deliver | Finish


@dataclass(slots=True)
class ChunkReader:
    """One reader of one variable's chunks. What it delivered is always the joined text of chunks 0 to `next - 1`.

    Where servers lost the chunks, another attempt writes them anew. A chunk says where it begins, and after what (`at`, `chain`):
    one that begins earlier is checked against what was delivered, and one that begins later sends the reader back to chunk 0. So
    it delivers nothing twice, leaves nothing out and joins nothing that does not belong together, or the stream is torn.
    The last chunk is not the end: that is the value, and only if it is what was delivered the stream is whole.
    """

    next: int = 0
    due: float | None = None
    finished: bool = False
    _parts: dict[int, Chunk] = field(default_factory=dict)
    _texts: list[str] = field(default_factory=list)
    _last: bool = False
    _ended: bool = False
    _outcome: Outcome | None = None
    _asking: bool = False
    _chain: Chain = field(default_factory=Chain)
    _sent_back: bool = False
    _back_off: float = field(default_factory=lambda: BACK_OFF)

    def handle(self, event: ChunkEvent) -> list[ChunkCommand]:
        """What is to be done about `event`. Nothing after `Finish`."""
        if self.finished:
            return []
        match event:
            case Subscribed() | Lost():
                return self._ask()
            case Came():
                return self._came(event)
            case NoChunk():
                return self._no_chunk(event)
            case Ended(outcome=None):
                return [self._finish(False)]
            case Ended(outcome):
                self._ended, self._outcome = True, outcome
                return self._whole() or self._over() or self._ask()
            case Tick(now):
                return self._ask() if self.due is not None and self.due <= now else []

    def _came(self, event: Came) -> list[ChunkCommand]:
        if event.asked:
            self._asking = False
        if event.n >= self.next and not self._last:
            self._parts.setdefault(event.n, event.chunk)
        before = self.next
        commands = self._in_order()
        if self.finished:
            return commands
        if self.next > before:
            self._back_off, self.due = BACK_OFF, None
        # After an answer there may be more that nobody sent; a live chunk that leaves a gap shows that one is missing.
        if event.asked or self._parts or self._ended:
            commands += self._ask()
        return commands

    def _in_order(self) -> list[ChunkCommand]:
        commands: list[ChunkCommand] = []
        while (chunk := self._parts.pop(self.next, None)) is not None:
            at = self._chain.characters if chunk.at is None else chunk.at
            if at > self._chain.characters and self.next and not self._sent_back:
                self.next, self._sent_back = 0, True
                self._parts.clear()
                return [*commands, *self._ask()]
            text = self._beyond(at, chunk)
            if text is None or (chunk.last and at + len(chunk.text) < self._chain.characters):
                return [*commands, self._finish(False, torn=True)]
            self.next += 1
            if text:
                self._deliver(text)
                commands.append(Deliver(text))
            if chunk.last:
                self._last, self.due = True, None
                self._parts.clear()
                return [*commands, *(self._whole() or self._over())]
        return commands

    def _over(self) -> list[ChunkCommand]:
        """Nothing can follow any more, and what was delivered is not the value."""
        over = self._last and self._ended
        return [self._finish(False, self._outcome, torn=isinstance(self._outcome, Value))] if over else []

    def _beyond(self, at: int, chunk: Chunk) -> str | None:
        """What a chunk that begins at character `at` adds to what was delivered; None if it contradicts that, or leaves a gap."""
        if at > self._chain.characters:
            return None
        chain, known = self._chain, ""
        if at < chain.characters:
            sent = "".join(self._texts)
            chain, known = Chain(sent[:at]), sent[at : at + len(chunk.text)]
        fits = not chunk.chain or chunk.chain == chain.digest
        return chunk.text[len(known) :] if fits and chunk.text.startswith(known) else None

    def _deliver(self, text: str) -> None:
        self._texts.append(text)
        self._chain.add(text)
        self._sent_back = False

    def _no_chunk(self, event: NoChunk) -> list[ChunkCommand]:
        self._asking = False
        if event.n != self.next:
            return self._ask()
        if self._ended and event.answered:
            return [self._finish(False, self._outcome)]
        self.due = event.now + self._back_off
        self._back_off = min(self._back_off * 2, LONGEST_BACK_OFF)
        return []

    def _whole(self) -> list[ChunkCommand]:
        """A value makes the rest of the chunks needless, if it begins with what was delivered."""
        if not isinstance(self._outcome, Value):
            return []
        sent = "".join(self._texts)
        if not self._outcome.text.startswith(sent):
            return []
        rest = self._outcome.text[len(sent) :]
        return [*([Deliver(rest)] if rest else []), self._finish(True)]

    def _ask(self) -> list[ChunkCommand]:
        if self._asking or self._last:
            return []
        self._asking, self.due = True, None
        return [GetChunk(self.next)]

    def _finish(
        self, complete: bool, outcome: Failure | Cancellation | Value | None = None, *, torn: bool = False
    ) -> Finish:
        self.finished = True
        return Finish(complete, outcome, torn)
