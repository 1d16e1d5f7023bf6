"""A long text, summarized in parallel: a call for each part, and one that joins their results.

The parts' calls run side by side; the last one begins the moment all of them have ended, and its text is streamed.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import myna
from myna.sdk.examples._common import CONSOLE, GREEDY, connected, show, split, title, topic


@myna.function
def note(part: myna.Input, sentence: Annotated[str, myna.Output(max_tokens=40, **GREEDY)]) -> None:
    """
    {{#user}}
    Text:
    {{part}}

    Say in one sentence what this text is about.
    {{/user}}
    {{#assistant}}{{sentence}}{{/assistant}}
    """


@myna.function
def join(
    notes: Annotated[str, myna.Input(joiner="\n- ")],
    summary: Annotated[str, myna.Output(max_tokens=80, **GREEDY)],
) -> None:
    """
    {{#user}}
    Notes on the parts of one document:
    - {{notes}}

    Rewrite the notes as one short paragraph.
    {{/user}}
    {{#assistant}}{{summary}}{{/assistant}}
    """


async def main(client: myna.Client | None = None, *, chapter: str = "objects", size: int = 1000, most: int = 8) -> str:
    """Summarize at most `most` parts of about `size` characters. Returns the joined summary."""
    parts = split(topic(chapter), size)[:most]
    async with connected(client) as connection, connection.session("map-reduce"):
        notes = [note(part) for part in parts]
        summary = join(notes)
        title(f"{len(parts)} parts of the chapter {chapter!r}, side by side")
        for number, text in enumerate(notes, start=1):
            show(f"{number}.", (await text).strip())
        title("joined")
        async for piece in summary.stream():
            CONSOLE.print(piece, end="", markup=False, soft_wrap=True)
        CONSOLE.print()
        return str(await summary).strip()


if __name__ == "__main__":
    asyncio.run(main())
