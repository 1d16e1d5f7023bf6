"""Applications: calls that are joined by their results, whatever session they are in the log of.

Law: calls joined by a producer's result belong to one application; ones that only read the same hand-made variable do not.
Applications with the least work left go first, which makes the mean completion time least; inside one the call goes first that
the longest path hangs on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from myna.actors.scheduler.graph import CallNode, SessionGraph
    from myna.actors.scheduler.policies.queue import Waiting

REACH = 64
"""Calls above a new one whose path is measured anew: bounds the cost of appending to a very long chain."""


class Application:
    """A set of calls joined by their results, as a union-find tree; `work` is what is left of it, at the root."""

    __slots__ = ("_parent", "waiting", "work")

    def __init__(self) -> None:
        self._parent: Application | None = None
        self.work = 0.0
        self.waiting: Waiting | None = None

    def root(self) -> Application:
        """The application that this one has become a part of, or itself."""
        top = self
        while top._parent is not None:
            top = top._parent
        node = self
        while node is not top:  # shorten the way for the next
            above, node._parent = node._parent, top
            assert above is not None
            node = above
        return top

    def join(self, other: Application) -> Application:
        """Make one of two. Returns the root of both."""
        a, b = self.root(), other.root()
        if a is b:
            return a
        if b.work > a.work:
            a, b = b, a
        a.work += b.work
        b._parent = a
        return a


def add(graph: SessionGraph, call: CallNode) -> None:
    """A new call joins the applications of its producers."""
    application: Application | None = None
    for producer in graph.producers(call):
        if producer.application is not None:
            theirs = producer.application.root()
            application = theirs if application is None else application.join(theirs)
    application = application or Application()
    for consumer in graph.consumers(call):  # submitted before it, in the same entry
        if consumer.application is not None:
            application = application.join(consumer.application)
    application.work += call.work
    call.application = application


def measure_paths(graph: SessionGraph, added: Iterable[CallNode]) -> None:
    """Set the longest path below each new call and, within reach, below those above it. The last first: entries are mostly
    written in the order in which results flow."""
    for call in reversed(list(added)):
        stack, reached = [call], 0
        while stack and reached < REACH:
            node = stack.pop()
            length = node.path + node.work
            for producer in graph.producers(node):
                if producer.path < length:
                    producer.path = length
                    if producer is not call:
                        stack.append(producer)
                        reached += 1


def done(call: CallNode) -> Application | None:
    """A call has ended: its application has that much less to do. Returns the application, if it has one."""
    if call.application is None:
        return None
    application = call.application.root()
    application.work = max(0.0, application.work - call.work)
    call.application = None
    return application
