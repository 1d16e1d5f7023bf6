"""A session as its graph in a notebook.

Law: to show a session changes nothing, and never fails or waits long: what can't be drawn is told in a line.

A notebook asks for a picture from inside its running event loop, and can't wait for an answer there. So the question is put by
a thread of its own, with a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from myna.actors import codec, config, subjects
from myna.actors.bus import Bus
from myna.actors.messages import GraphRequest, GraphView, Tenant
from myna.actors.subjects import Question
from myna.sdk.errors import SessionClosed
from myna.sdk.graphs.model import Graph, of_view
from myna.sdk.graphs.svg import draw

if TYPE_CHECKING:
    from myna.actors.config import Settings

PATIENCE = 3.0
"""Seconds that a notebook waits for a picture."""
_AGAIN = 0.05
"""Seconds between two questions to a scheduler that has yet to read of a session."""


class Picture:
    """A graph that a notebook shows: `display(await session.graph())`. `graph` is its data."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state.value}" for state, n in self.graph.counts.items())
        return f"<graph of session {self.graph.session}: {counts or 'no calls'}>"

    @property
    def svg(self) -> str:
        """The picture, as an SVG document."""
        return draw(self.graph)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "image/svg+xml": self.svg}


async def graph_of(bus: Bus, tenant: Tenant, session: str, timeout: float = 5.0, *, held: bool = False) -> Graph:
    """The graph of an open session, as its scheduler sees it. Raises `SessionClosed`, `bus.Unavailable`.

    `held`: who asks holds it open, so that a scheduler which does not know it is about to read of it, and is asked again.
    """
    question = codec.encode(GraphRequest(session=subjects.token(session, "session")))
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        answer = await bus.request(subjects.ask(tenant, Question.GRAPH), question, timeout=timeout)
        view: GraphView = codec.decode(answer.data, GraphView)
        if view.found:
            return of_view(view)
        if not held or asyncio.get_running_loop().time() >= deadline:
            raise SessionClosed(f"session {session} is not open")
        await asyncio.sleep(_AGAIN)


def bundle(text: str, graph: Callable[[], Coroutine[Any, Any, Graph]]) -> dict[str, str]:
    """What a notebook shows: `graph`, drawn, or `text` where it can't be had."""

    async def patiently() -> Graph:
        async with asyncio.timeout(PATIENCE):
            return await graph()

    try:
        with ThreadPoolExecutor(1, "myna-display") as thread:
            found = thread.submit(asyncio.run, patiently()).result()
    except Exception as error:
        return {"text/plain": f"{text} (its graph can't be shown: {error or 'no answer'})"}
    return Picture(found)._repr_mimebundle_()


async def asked(settings: Settings, tenant: Tenant, session: str) -> Graph:
    """The same as `graph_of`, on a connection of its own."""
    bus = await config.connect_bus(settings, "myna-display", patience=PATIENCE)
    try:
        return await graph_of(bus, tenant, session)
    finally:
        await bus.close()
