"""Questions answered from real text: a native agent searches Python's language reference, the model answers from what it found.

The agent is a plain Python function. Here this process serves it; any number of others could, by
`myna agent myna.sdk.examples.search_agent`.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Annotated

import myna
from myna.sdk.examples._common import GREEDY, connected, show, split, title
from myna.sdk.serving import hosting

QUESTIONS = (
    "What does the assert statement do?",
    "When is the else clause of a for loop executed?",
    "What is a lambda expression?",
)


class Index:
    """Passages, ranked by BM25 (k1 = 1.5, b = 0.75): rare words count for more, long passages for less."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._passages = passages
        self._counts = [Counter(_words(passage)) for passage in passages]
        self._sizes = [sum(counts.values()) for counts in self._counts]
        self._mean = sum(self._sizes) / len(passages)
        found = Counter(word for counts in self._counts for word in counts)
        self._weights = {w: math.log(1 + (len(passages) - n + 0.5) / (n + 0.5)) for w, n in found.items()}

    def best(self, query: str, k: int) -> list[str]:
        """The `k` passages that fit `query` best, best first; fewer if fewer share a word with it."""
        words = set(_words(query))
        scores = [(self._score(words, number), -number) for number in range(len(self._passages))]
        return [self._passages[-n] for score, n in sorted(scores, reverse=True)[:k] if score > 0]

    def _score(self, words: set[str], number: int) -> float:
        counts, norm = self._counts[number], 0.25 + 0.75 * self._sizes[number] / self._mean
        return sum(self._weights[w] * 2.5 * counts[w] / (counts[w] + 1.5 * norm) for w in words if counts[w])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@cache
def reference() -> Index:
    """All chapters of the language reference, in passages of about 600 characters."""
    from pydoc_data.topics import topics

    return Index([passage for text in topics.values() for passage in split(text, 600)])


@myna.agent
def search(question: str, k: int = 2) -> str:
    """The passages of the language reference that fit `question` best, without the underlines of headings."""
    return re.sub(r"\n[*=~-]{3,}\n", "\n", "\n\n".join(reference().best(question, k)))


@myna.function
def answer(
    question: myna.Input, passages: myna.Input, reply: Annotated[str, myna.Output(max_tokens=64, **GREEDY)]
) -> None:
    """
    {{#user}}
    From the Python documentation:
    {{passages}}

    {{question}} Answer in one or two short sentences, from the text above.
    {{/user}}
    {{#assistant}}{{reply}}{{/assistant}}
    """


async def main(client: myna.Client | None = None, *, questions: Sequence[str] = QUESTIONS) -> list[tuple[str, str]]:
    """Answer `questions`. Returns what was found, and the answer, for each."""
    async with (
        connected(client) as connection,
        hosting(connection.bus, search, tenant=connection.tenant),
        connection.session("search-agent"),
    ):
        found = [search(question=question) for question in questions]
        replies = [answer(question, passages) for question, passages in zip(questions, found, strict=True)]
        for question, passages, reply in zip(questions, found, replies, strict=True):
            title(question)
            for passage in (await passages).split("\n\n"):
                show("found ", " ".join(passage.split())[:160])
            show("answer", (await reply).strip())
        return [(await passages, (await reply).strip()) for passages, reply in zip(found, replies, strict=True)]


if __name__ == "__main__":
    asyncio.run(main())
