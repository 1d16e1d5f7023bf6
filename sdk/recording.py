"""Recordings: what happened in a session, as a value and as a file. Pure, but for `save` and `load`.

Law: a recording holds what the streams held, the log's entries and the outcomes, and derives all else from them: the graph, who
made each value, where and when.

The file is a row of MessagePack arrays, each [kind, seconds since the epoch, name, bytes]: one `session`, then `entry`s in the
order of the log (their bytes are `messages.LogEntry`s), then `outcome`s (`messages.Outcome`s, named by their variable).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack

from myna.actors import codec
from myna.actors.codec import WireError
from myna.actors.messages import Call, LogEntry, Open, Outcome, SessionId, Submit, Tenant, Timing, Value
from myna.actors.program import inputs_of, outputs_of
from myna.sdk.errors import RecordingError

FORMAT = 1
_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Said:
    """An entry of the log, and when the stream took it (seconds since the epoch)."""

    at: float
    entry: LogEntry


@dataclass(frozen=True, slots=True)
class Ended:
    """How a variable ended, and when the stream took that."""

    at: float
    outcome: Outcome


@dataclass(frozen=True)
class Recording:
    """One session: `log` in its order, `outcomes` by variable. `exported`: when, in seconds since the epoch."""

    tenant: Tenant
    session: SessionId
    exported: float
    log: tuple[Said, ...]
    outcomes: dict[str, Ended]

    @property
    def opened(self) -> Open | None:
        """The session's first entry."""
        return next((said.entry for said in self.log if isinstance(said.entry, Open)), None)

    @cached_property
    def calls(self) -> dict[str, Call]:
        """Every call by id, in the order of submission."""
        submitted = (said.entry for said in self.log)
        found: dict[str, Call] = {}
        for entry in submitted:
            if isinstance(entry, Submit):
                for call in entry.calls:
                    found.setdefault(call.id, call)
        return found

    @cached_property
    def producers(self) -> dict[str, str]:
        """The call that makes each variable; variables set by hand have none."""
        return {output: call.id for call in reversed(self.calls.values()) for output in outputs_of(call)}

    @property
    def values(self) -> dict[str, Value]:
        """The variables that have a value."""
        return {name: end.outcome for name, end in self.outcomes.items() if isinstance(end.outcome, Value)}

    @property
    def timings(self) -> dict[str, Timing]:
        """Where and when each value was made: worker, receipt, begin, first and last of it."""
        return {name: value.timing for name, value in self.values.items() if value.timing is not None}

    def downstream(self, variables: Iterable[str]) -> set[str]:
        """These variables, what the same calls make beside them, and all that is made of any of them."""
        found = {output for name in variables for output in self._beside(name)}
        for call in self._ordered():
            if not found.isdisjoint(inputs_of(call)):
                found.update(outputs_of(call))
        return found

    def _beside(self, variable: str) -> tuple[str, ...]:
        producer = self.producers.get(variable)
        return (variable,) if producer is None else outputs_of(self.calls[producer])

    def _ordered(self) -> Iterator[Call]:
        """Every call after those that it needs; what is on a cycle is left out, for it never ran."""
        left = dict(self.calls)
        made = {name for name in self._names() if name not in self.producers}
        while True:
            ready = [call for call in left.values() if made.issuperset(inputs_of(call))]
            if not ready:
                return
            for call in ready:
                del left[call.id]
                made.update(outputs_of(call))
                yield call

    def _names(self) -> set[str]:
        return {name for call in self.calls.values() for name in (*inputs_of(call), *outputs_of(call))}

    # --- the file ---

    def save(self, path: Path) -> None:
        """Write the file. Raises `OSError`."""
        with path.open("wb") as file:
            file.write(_row("session", self.exported, f"{FORMAT} {self.tenant} {self.session}", b""))
            for said in self.log:
                file.write(_row("entry", said.at, "", codec.encode(said.entry)))
            for name, end in self.outcomes.items():
                file.write(_row("outcome", end.at, name, codec.encode(end.outcome)))

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a file that `save` wrote. Raises `OSError`, `RecordingError`."""
        try:
            with path.open("rb") as file:
                rows = list(msgpack.Unpacker(file, raw=False, max_buffer_size=_LARGEST))
            return cls._of(rows)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise RecordingError(f"{path} is no recording: {error}") from error

    @classmethod
    def _of(cls, rows: list[Any]) -> Recording:
        """Raises ValueError, TypeError."""
        if not rows:
            raise ValueError("it is empty")
        kind, exported, title, _ = rows[0]
        version, tenant, session = title.split(" ")
        if kind != "session" or int(version) != FORMAT:
            raise ValueError(f"its format is {kind} {version}, not session {FORMAT}")
        log: list[Said] = []
        outcomes: dict[str, Ended] = {}
        for kind, at, name, data in rows[1:]:
            match kind:
                case "entry":
                    log.append(Said(at, codec.decode(data, LogEntry)))
                case "outcome":
                    outcomes[name] = Ended(at, codec.decode(data, Outcome))
                case _:
                    raise WireError(f"a row of kind {kind!r}")
        return cls(Tenant(tenant), SessionId(session), exported, tuple(log), outcomes)


def _row(kind: str, at: float, name: str, data: bytes) -> bytes:
    packed: bytes = msgpack.packb([kind, at, name, data])
    return packed
