"""Identical calls of a tenant are computed once: the first leads, the others follow, and then take its results.

Laws:
- Only a call that asks for it, and whose outputs are all determined (drawn greedily, or with a seed), leads or follows.
- Two calls are identical if all that decides their results is: texts, inputs' texts, models, tools, drawing. Whoever forges a
  digest of a value's text, fools calls of his own tenant only.
- A follower waits for no more than its leader. A failure isn't shared: if the leader ends without its results, or nobody needs it
  any more, the first follower leads.
- Results can be taken for as long as a session that holds them is open. Of an attempt that readers may have seen a part of,
  nothing is replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import msgpack

from myna.actors.messages import Input, ModelCall, Output, SessionId, Source, Tenant, Text, VarId, WorkerId

if TYPE_CHECKING:
    from myna.actors.scheduler.nodes import CallNode

ENTRIES = 100_000
"""Results that are remembered, of all tenants."""

Key = bytes
Digest = Callable[[VarId], str]
"""A digest of a variable's text; empty if it is not known."""

_encode = msgpack.Encoder().encode


def key_of(call: ModelCall, tenant: Tenant, digest: Digest) -> Key | None:
    """What identical calls have in common; None if the call's results are not determined, or an input's text is not known."""
    shape: list[Any] = [tenant, call.models, call.tools, call.tool_choice, call.parallel_tool_calls]
    for message in call.messages:
        shape.append((message.role, message.name, message.tool_call_id, message.tool_calls))
        for segment in message.segments:
            match segment:
                case Text(text=text):
                    shape.append(text)
                case Input(variables=variables, joiner=joiner):
                    digests = [digest(VarId(v)) for v in variables]
                    if not all(digests):
                        return None
                    shape.append((joiner, digests))
                case Output(sampling=sampling):
                    if sampling.temperature != 0 and sampling.seed is None:
                        return None
                    shape.append((len(segment.variables), sampling, segment.transforms, segment.format))
    return hashlib.blake2b(_encode(shape), digest_size=16).digest()


class Entry:
    """One result: who computes it, who waits for it, and who has it."""

    __slots__ = ("followers", "holders", "key", "leader")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.leader: CallNode | None = None
        self.followers: dict[CallNode, None] = {}
        self.holders: dict[tuple[Tenant, SessionId], tuple[Source, WorkerId | None]] = {}


class Memo:
    """All results that are remembered or being made. `call.memo` is the entry that a call has to do with."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._held: dict[tuple[Tenant, SessionId], set[Key]] = {}

    def ready(self, call: CallNode) -> bool:
        """A call could run. Whether it should: else it follows another, and is heard of again from `ended` or `left`."""
        assert call.session is not None
        if call.memo is None:
            call.memo = self._entry(call)
        entry = call.memo
        if entry is None or call.seen or entry.leader is call or entry.holders:
            return True
        if entry.leader is None:
            entry.leader = call
            return True
        entry.followers[call] = None
        return False

    def source(self, call: CallNode) -> tuple[Source, WorkerId | None] | None:
        """Where the results of a call that is about to run stand already, and which worker is likely to have them at hand."""
        if call.memo is None or call.seen:
            return None
        return next(iter(call.memo.holders.values()), None)

    def leader(self, call: CallNode) -> CallNode | None:
        """The call whose results this one waits for."""
        return call.memo.leader if call.memo is not None and call in call.memo.followers else None

    def distrust(self, call: CallNode) -> None:
        """What `source` said could not be copied."""
        if call.memo is not None and call.memo.holders:
            self._drop(next(iter(call.memo.holders)), call.memo)

    def started(self, call: CallNode) -> None:
        """A call runs: it follows nobody."""
        if call.memo is not None:
            call.memo.followers.pop(call, None)

    def ended(self, call: CallNode, *, valued: bool) -> list[CallNode]:
        """A call has ended, with a value of each output or not. Returns followers that may run now."""
        entry = call.memo
        if entry is not None and valued:
            assert call.session is not None
            session = (call.session.tenant, call.session.id)
            entry = self._entries.setdefault(entry.key, entry)
            source = Source(session=call.session.id, call=call.id, variables=call.outputs)
            entry.holders.setdefault(session, (source, call.placed.worker if call.placed else None))
            self._held.setdefault(session, set()).add(entry.key)
        return self.left(call)

    def left(self, call: CallNode) -> list[CallNode]:
        """A call has to do with this no more: it has ended, or nobody needs it. Returns followers that may run now."""
        entry, call.memo = call.memo, None
        if entry is None:
            return []
        entry.followers.pop(call, None)
        freed: list[CallNode] = []
        if entry.leader is call:
            entry.leader = None
            freed, entry.followers = list(entry.followers), {}
        if not freed:
            self._tidy(entry)
        return freed

    def closed(self, session: tuple[Tenant, SessionId]) -> None:
        """A session ends: what it holds can't be read any more."""
        for key in self._held.pop(session, ()):
            entry = self._entries.get(key)
            if entry is not None:
                entry.holders.pop(session, None)
                self._tidy(entry)

    def _entry(self, call: CallNode) -> Entry | None:
        assert call.session is not None
        assert isinstance(call.spec, ModelCall)
        variables = call.session.variables
        key = key_of(call.spec, call.session.tenant, lambda v: variables[v].content)
        if key is None:
            return None
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key)
            if len(self._entries) > ENTRIES:
                self._forget_oldest()
        return entry

    def _forget_oldest(self) -> None:
        oldest = next((e for e in self._entries.values() if e.leader is None and e.holders), None)
        for session in list(oldest.holders) if oldest is not None else ():
            assert oldest is not None
            self._drop(session, oldest)

    def _drop(self, session: tuple[Tenant, SessionId], entry: Entry) -> None:
        del entry.holders[session]
        held = self._held[session]
        held.discard(entry.key)
        if not held:
            del self._held[session]
        self._tidy(entry)

    def _tidy(self, entry: Entry) -> None:
        idle = entry.leader is None and not entry.holders and not entry.followers
        if idle and self._entries.get(entry.key) is entry:  # it may have been forgotten before, and made anew
            del self._entries[entry.key]

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        held = {(session, key) for session, keys in self._held.items() for key in keys}
        assert held == {(s, key) for key, entry in self._entries.items() for s in entry.holders}
        for entry in self._entries.values():
            assert entry.leader is None or entry.leader.memo is entry, "a leader knows nothing of it"
            assert entry.leader is not None or not entry.followers, "calls follow nobody"
            for follower in entry.followers:
                assert follower.memo is entry, "a follower knows nothing of it"
                assert not follower.queued, f"{follower.id} follows, and waits for a worker too"
