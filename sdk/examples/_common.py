"""What the examples share: a connection, a console, real text to work on, and how outputs are drawn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console

import myna

CONSOLE = Console(highlight=False)

GREEDY: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 0.2, "stop": ("\n\n",)}
"""The likeliest token at each place, so that a run can be repeated; the penalty keeps a small model from going in circles."""


@asynccontextmanager
async def connected(client: myna.Client | None) -> AsyncIterator[myna.Client]:
    """`client`, which stays open, or a connection for the block. Raises `NotReady`, `bus.Unavailable`."""
    if client is not None:
        yield await client.open()
        return
    with CONSOLE.status("connecting (if no machine runs, one is started; the first time, its model is converted)"):
        own = await myna.connect()
    async with own:
        yield own


def topic(name: str) -> str:
    """A chapter of Python's language reference, as every Python carries it. Raises KeyError."""
    from pydoc_data.topics import topics

    text: str = topics[name]
    return text.strip()


def split(text: str, size: int) -> list[str]:
    """`text` in pieces of whole paragraphs, each of about `size` characters at most (a longer paragraph stays whole)."""
    pieces: list[str] = []
    for paragraph in text.split("\n\n"):
        if pieces and len(pieces[-1]) + len(paragraph) + 2 <= size:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces.append(paragraph)
    return pieces


def title(text: str) -> None:
    """A heading on the console."""
    CONSOLE.print()
    CONSOLE.rule(f"[bold]{text}", align="left")


def show(name: str, text: str) -> None:
    """A named text on the console."""
    CONSOLE.print(f"[bold cyan]{name}[/]", end=" ")
    CONSOLE.print(text, markup=False)
