"""A question to every model that is served, and one answer made of their drafts.

With one model it is asked once. More of them: `myna up --model A --model B`, or endpoints (`myna endpoints --help`).
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import myna
from myna.sdk.examples._common import GREEDY, connected, show, title

QUESTION = "Why do leaves change their colour in autumn?"


@myna.function
def draft(question: myna.Input, answer: Annotated[str, myna.Output(max_tokens=64, **GREEDY)]) -> None:
    """
    {{#user}}{{question}}{{/user}}
    {{#assistant}}{{answer}}{{/assistant}}
    """


@myna.function
def merge(
    question: myna.Input, drafts: myna.Input, answer: Annotated[str, myna.Output(max_tokens=64, **GREEDY)]
) -> None:
    """
    {{#user}}
    {{question}}

    Some have answered:
    {{drafts}}

    Write one answer, with what is best in these.
    {{/user}}
    {{#assistant}}{{answer}}{{/assistant}}
    """


async def main(client: myna.Client | None = None, *, question: str = QUESTION, most: int = 4) -> str:
    """Ask `most` models at most; the first of them writes the answer. Returns it."""
    async with connected(client) as connection:
        names = (await connection.models())[:most]
        async with connection.session("several-models", model=names[:1]):
            drafts = [draft.with_options(model=name)(question) for name in names]
            answer = merge(question, drafts=drafts)
            title(f"{question} ({', '.join(names)})")
            for name, text in zip(names, drafts, strict=True):
                show(f"{name}:", (await text).strip())
            show("together:", (await answer).strip())
            return str(await answer).strip()


if __name__ == "__main__":
    asyncio.run(main())
