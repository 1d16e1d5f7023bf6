"""Applications that run through the SDK and the gateways while the cluster under them is broken and restarted.

Their texts are known beforehand. A value is lost when whoever awaits it gets none or an error, changed when it is another text or
the pieces of a stream are not the value.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

import openai

import myna
from myna import Input, Output
from myna.sdk.client import Client

MODEL = "noop"


@myna.function(model=MODEL, retries=20)
def write(parts: Input, word: Annotated[str, Output()]) -> None:
    """{{parts}}{{word}}"""


@myna.agent(name="count_words")
def count_words(text: str) -> str:
    """Served in the cluster."""
    raise AssertionError("it runs there, not here")


def words(tokens: int) -> str:
    """What the modelled engines write."""
    return " ".join(f"word{n}" for n in range(tokens))


@dataclass
class Tally:
    """What became of the applications."""

    applications: int = 0
    requests: int = 0
    wrong: list[str] = field(default_factory=list)
    longest: float = 0.0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def count(self, *, applications: int = 0, requests: int = 0) -> None:
        """Write down what is done."""
        async with self.moved:
            self.applications += applications
            self.requests += requests
            self.moved.notify_all()

    async def progress(self, applications: int = 6, requests: int = 4, *, within: float = 240.0) -> None:
        """Wait until so many more are done: nothing hangs on what is broken now. Raises TimeoutError."""
        goal = self.applications + applications, self.requests + requests
        async with asyncio.timeout(within), self.moved:
            await self.moved.wait_for(lambda: self.applications >= goal[0] and self.requests >= goal[1])


class Load:
    """Applications, one after another in each of several tasks, until stopped. Every wrong value is written down."""

    def __init__(self, client: Client, gateways: list[openai.AsyncOpenAI]) -> None:
        self._client = client
        self._gateways = gateways
        self.tally = Tally()
        self._stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self, *, applications: int = 4, requests: int = 2) -> AsyncIterator[Tally]:
        """Run them inside the block; it ends when each has ended its last."""
        self._stop.clear()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(applications):
                tasks.create_task(self._again(self._application))
            for _ in range(requests):
                tasks.create_task(self._again(self._request))
            try:
                yield self.tally
            finally:
                self._stop.set()

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began = loop.time()
            try:
                async with asyncio.timeout(240.0):
                    await work()
            except Exception as error:
                self.tally.wrong.append(f"{type(error).__name__}: {error}")
            self.tally.longest = max(self.tally.longest, loop.time() - began)

    async def _application(self) -> None:
        """Texts side by side, joined, counted by an agent, and written on, all of it submitted at once."""
        async with self._client.session("deploy"):
            parts = [write(f"part {n}", word=Output(max_tokens=5 + 5 * n)) for n in range(4)]
            whole = write(parts, word=Output(max_tokens=12))
            count = count_words(text=whole)
            last = write([whole, count], word=Output(max_tokens=30))
            pieces = "".join([piece async for piece in last.stream()])
            got = [await each.get() for each in (*parts, whole, count, last)]
        right = [*(words(5 + 5 * n) for n in range(4)), words(12), "12", words(30)]
        if got != right or pieces != right[-1]:
            self.tally.wrong.append(f"{got} and {pieces!r} in place of {right}")
        await self.tally.count(applications=1)

    async def _request(self) -> None:
        """A completion by whichever gateway answers: one that does not is asked no further, as a balancer in front would do."""
        for gateway in (*self._gateways, *self._gateways):
            try:
                answer = await gateway.completions.create(model=MODEL, prompt="Begin", max_tokens=20)
            except openai.APIConnectionError:
                self._gateways.reverse()
                continue
            if len(answer.choices[0].text.split()) != 20:
                self.tally.wrong.append(f"a gateway answered {answer.choices[0].text!r}")
            await self.tally.count(requests=1)
            return
        self.tally.wrong.append("no gateway answered")
