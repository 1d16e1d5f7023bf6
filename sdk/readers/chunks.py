"""How the chunks of one variable are put in order, and when its stream is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from myna.actors.messages import Cancellation, Chunk, Failure, Outcome, Value
from myna.actors.outcomes import Chain
from myna.sdk import readers
from myna.sdk.readers import Lost, Tick


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
    _back_off: float = field(default_factory=lambda: readers.BACK_OFF)

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
            self._back_off, self.due = readers.BACK_OFF, None
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
        self._back_off = min(self._back_off * 2, readers.LONGEST_BACK_OFF)
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
