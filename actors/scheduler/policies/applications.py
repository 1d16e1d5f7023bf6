"""Applications: calls that are joined by their results, whatever session they are in the log of.

Law: calls joined by a producer's result belong to one application; ones that only read the same hand-made variable do not.
Applications with the least work left go first, which makes the mean completion time least, and each second of age counts as
`AGEING` of work, so that the largest fall no further behind than that; inside one the call goes first that the longest path hangs
on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from myna.actors.scheduler.graph import SessionGraph
    from myna.actors.scheduler.nodes import CallNode
    from myna.actors.scheduler.policies.queue import Waiting

AGEING = 100.0
"""Work, in generated tokens, that a second of age makes up for: about what one sequence draws in it."""
REACH = 64
"""Calls above a new one whose path is measured anew: bounds the cost of appending to a very long chain."""


class Application(Struct, eq=False):
    """A set of calls joined by their results, as a union-find tree; `work` is what is left of it, `born` when its first call was
    submitted; both at the root."""

    born: float = 0.0
    work: float = 0.0
    waiting: Waiting | None = None
    parent: Application | None = None

    @property
    def rank(self) -> float:
        """Its place among others, the least first. Time changes no order: all age alike."""
        return self.work + AGEING * self.born

    def root(self) -> Application:
        """The application that this one has become a part of, or itself."""
        top = self.parent
        if top is None:
            return self
        if top.parent is None:
            return top
        while top.parent is not None:
            top = top.parent
        node = self
        while node is not top:  # shorten the way for the next
            above, node.parent = node.parent, top
            assert above is not None
            node = above
        return top

    def join(self, other: Application) -> Application:
        """Make one of two, which are roots. Returns that of both."""
        if other is self:
            return self
        a, b = self, other
        if b.work > a.work:
            a, b = b, a
        a.work += b.work
        a.born = min(a.born, b.born)
        b.parent = a
        return a


def add(graph: SessionGraph, call: CallNode, now: float) -> None:
    """A new call joins the applications of its producers."""
    application: Application | None = None
    for producer in graph.producers(call) if call.inputs else ():
        theirs = producer.application
        if theirs is not None and theirs is not application:
            theirs = theirs if theirs.parent is None else theirs.root()
            application = theirs if application is None else application.join(theirs)
    application = application or Application(_born(graph, call, now))
    for output in call.outputs:
        for consumer in graph.variables[output].consumers:  # submitted before it, in the same entry
            if consumer.application is not None:
                application = application.join(consumer.application.root())
    application.work += call.work
    call.application = application


def _born(graph: SessionGraph, call: CallNode, now: float) -> float:
    """When an application began whose first call this is: what reads results of the session's calls goes on with them."""
    if graph.born is None:
        graph.born = now
    if not call.inputs:
        return now
    goes_on = any(graph.variables[v].producer is not None for v in call.inputs)
    return graph.born if goes_on else now


def measure_paths(graph: SessionGraph, added: Iterable[CallNode]) -> None:
    """Set the longest path below each new call and, within reach, below those above it. The last first: entries are mostly
    written in the order in which results flow."""
    for call in reversed(list(added)):
        if not call.inputs:
            continue
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
    application = call.application
    if application.parent is not None:
        application = application.root()
    left = application.work - call.work
    application.work = left if left > 0.0 else 0.0
    call.application = None
    return application
