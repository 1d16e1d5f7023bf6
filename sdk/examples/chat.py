"""A chat that remembers: each turn holds all earlier ones, and the engine has their context in its cache.

On a terminal you talk to the model; elsewhere three questions are asked.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence

import myna
from myna.sdk.examples._common import CONSOLE, connected, show, title

QUESTIONS = (
    "What is a list in Python?",
    "And how is a tuple different from it?",
    "Which of the two would you use for the days of the week, and why?",
)
SYSTEM = "You are a friendly teacher of Python. You answer in one or two short sentences."


async def main(client: myna.Client | None = None, *, questions: Sequence[str] | None = None) -> list[str]:
    """Ask `questions`, or those that are typed. Returns the answers."""
    answers: list[str] = []
    async with connected(client) as connection, connection.session("chat"):
        chat = myna.Conversation(SYSTEM, temperature=0.0, frequency_penalty=0.2, max_tokens=64)
        title("a chat")
        async for question in _asked(questions):
            reply = chat.say(question)
            CONSOLE.print("[bold green]model[/]", end=" ")
            async for piece in reply.stream():
                CONSOLE.print(piece, end="", markup=False, soft_wrap=True)
            value = await reply.value()
            usage = value.usage
            CONSOLE.print(
                f"\n[dim]{usage.prompt_tokens} tokens of context, {usage.cached_tokens} of them in the cache[/]"
            )
            answers.append(value.text)
    return answers


async def _asked(questions: Sequence[str] | None) -> AsyncIterator[str]:
    """The given questions; without any, what a person types, or the standard ones where there is no terminal."""
    if questions is None and sys.stdin.isatty():
        CONSOLE.print("[dim]an empty line ends the chat[/]")
        while question := await asyncio.to_thread(_typed):
            yield question
        return
    for question in QUESTIONS if questions is None else questions:
        show("you  ", question)
        yield question


def _typed() -> str:
    """A line from the terminal; empty at its end."""
    try:
        return CONSOLE.input("[bold cyan]you[/]   ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    asyncio.run(main())
