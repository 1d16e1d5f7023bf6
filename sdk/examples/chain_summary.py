"""A long text, summarized part by part: each summary goes into the next call.

All calls are submitted at once. Each begins the moment the summary before it is there, without asking the application.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import myna
from myna.sdk.examples._common import GREEDY, connected, show, split, title, topic


@myna.function
def summarize(part: myna.Input, summary: Annotated[str, myna.Output(max_tokens=56, **GREEDY)]) -> None:
    """
    {{#user}}
    Text:
    {{part}}

    Say in one or two sentences what this text is about.
    {{/user}}
    {{#assistant}}{{summary}}{{/assistant}}
    """


@myna.function
def go_on(before: myna.Input, part: myna.Input, summary: Annotated[str, myna.Output(max_tokens=72, **GREEDY)]) -> None:
    """
    {{#user}}
    The summary of a text so far:
    {{before}}

    The text goes on:
    {{part}}

    Write a summary of all of it, in two or three sentences.
    {{/user}}
    {{#assistant}}{{summary}}{{/assistant}}
    """


async def main(client: myna.Client | None = None, *, chapter: str = "objects", size: int = 1200, most: int = 5) -> str:
    """Summarize at most `most` parts of about `size` characters. Returns the last summary."""
    parts = split(topic(chapter), size)[:most]
    async with connected(client) as connection, connection.session("chain-summary"):
        summaries = [summarize(parts[0])]
        for part in parts[1:]:
            summaries.append(go_on(summaries[-1], part))
        title(f"{len(parts)} parts of the chapter {chapter!r}, each summary made from the one before")
        for number, summary in enumerate(summaries, start=1):
            show(f"{number}.", (await summary).strip())
        return str(await summaries[-1]).strip()


if __name__ == "__main__":
    asyncio.run(main())
