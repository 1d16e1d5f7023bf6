"""Prefixes that are kept in the tree because they will be used. Law: a pin is one lock on one node, from `keep` to `let_go`."""

from __future__ import annotations

from dataclasses import dataclass

from myna.engine.context import Context
from myna.engine.request import RequestId
from myna.engine.stubs import Stub, Stubs
from myna.engine.tree import Node, PrefixTree


@dataclass(frozen=True, slots=True)
class _Pin:
    node: Node
    stub: Stub | None
    due: float


class Pins:
    """The pins over one tree, and the stubs behind them."""

    def __init__(self, tree: PrefixTree, stubs: Stubs) -> None:
        self._tree = tree
        self._stubs = stubs
        self._pins: dict[RequestId, _Pin] = {}

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def nodes(self) -> list[Node]:
        """What they hold, for `check`."""
        return [pin.node for pin in self._pins.values()]

    def keep(self, name: RequestId, context: Context, due: float) -> None:
        """Keep a context that is wholly computed and published, in place of an earlier pin of that name. `due`: when it is
        thought to be used, in seconds of any one clock."""
        node = self._tree.acquire(context.namespace, context.tokens)
        stub = None
        if context.tail and context.node is node:
            stub = Stub(node, tuple(context.tokens[node.end :]), context.tail[0])
            self._stubs.keep(stub)
        self.let_go(name)
        self._pins[name] = _Pin(node, stub, due)

    def let_go(self, name: RequestId) -> None:
        """Names that keep nothing do nothing."""
        pin = self._pins.pop(name, None)
        if pin is None:
            return
        if pin.stub is not None:
            self._stubs.let_go(pin.stub)
        self._tree.unlock(pin.node)

    def yield_farthest(self) -> bool:
        """Let that one go whose use is farthest away; False if there is none."""
        if not self._pins:
            return False
        self.let_go(max(self._pins, key=lambda name: self._pins[name].due))
        return True
