"""An application on a server of another kind, with a real model: llama.cpp's, in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from subprocess import DEVNULL, Popen
from typing import Annotated
from urllib.request import urlopen

import pydantic
import pytest

import myna
from myna import Input, Output
from myna.actors.endpoints.backend import EndpointBackend
from myna.actors.endpoints.budget import Ledger
from myna.actors.endpoints.settings import Dialect, Endpoint
from myna.actors.messages import ErrorCode, FinishReason
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.sdk.client import Client, connect
from myna.sdk.errors import CallFailed
from tests.actors.endpoints.llama_server import NAME
from tests.actors.stage import Stage, stage, until
from tests.network import NatsNetwork

pytestmark = [
    pytest.mark.model,
    pytest.mark.nats,
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("llama_cpp", "sse_starlette")),
        reason="not installed: llama-cpp-python[server]",
    ),
]


@myna.function
def complete(start: Input, rest: Annotated[str, Output(max_tokens=8, temperature=0.0)]) -> None:
    """{{start}}{{rest}}"""


@myna.function
def discuss(
    topic: Input,
    first: Annotated[str, Output(max_tokens=8, temperature=0.0)],
    second: Annotated[str, Output(max_tokens=8, temperature=0.0)],
) -> None:
    """{{#user}}Say a word about {{topic}}.{{/user}}
    {{#assistant}}{{first}}{{/assistant}}
    {{#user}}And another.{{/user}}
    {{#assistant}}{{second}}{{/assistant}}"""


@myna.function
def ramble(topic: Input, text: Annotated[str, Output(max_tokens=400, temperature=0.0)]) -> None:
    """Everything there is to say about {{topic}}: {{text}}"""


class Bird(pydantic.BaseModel):
    """A bird."""

    can_fly: bool


@myna.function
def begin(what: Input, bird: Annotated[Bird, Output(schema=Bird, max_tokens=3, temperature=0.0)]) -> None:
    """{{#user}}Describe {{what}} as JSON.{{/user}}{{#assistant}}{{bird}}{{/assistant}}"""


@myna.function
def describe(what: Input, bird: Annotated[Bird, Output(schema=Bird, max_tokens=60, temperature=0.0)]) -> None:
    """{{#user}}Describe {{what}} as JSON.{{/user}}{{#assistant}}{{bird}}{{/assistant}}"""


class Llama:
    """The server's process."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.start()

    def start(self) -> None:
        module = "tests.actors.endpoints.llama_server"
        self.process = Popen([sys.executable, "-m", module, str(self.port)], stdout=DEVNULL, stderr=DEVNULL)
        until_answered = time.monotonic() + 90
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, "llama.cpp's server has ended"
                assert time.monotonic() < until_answered, "llama.cpp's server does not begin"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def endpoint(self) -> Endpoint:
        url = f"http://127.0.0.1:{self.port}/v1"
        return Endpoint(name="llama", url=url, dialect=Dialect.LLAMACPP, concurrency=1, models={"smollm2": NAME})


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    it = Llama()
    yield it
    it.kill()


@pytest.fixture
async def play(nats: NatsNetwork, llama: Llama) -> AsyncIterator[Stage]:
    async with stage(nats.bus) as it:
        await it.scheduler()
        await it.worker("llama", EndpointBackend(llama.endpoint, Ledger()))
        yield it


@pytest.fixture
async def client(nats: NatsNetwork, play: Stage) -> AsyncIterator[Client]:
    async with connect(bus=await nats.bus()) as it:
        yield it


async def test_a_graph_of_completions_and_chats_runs_on_it_and_streams(client: Client) -> None:
    async with client.session() as session:
        capital = complete("The capital of France is", session=session)
        words = discuss(capital, session=session)
        pieces = [piece async for piece in capital.stream()]
        value = await capital.value()
        assert "Paris" in value.text
        assert "".join(pieces) == value.text
        assert len(pieces) > 1, "it is streamed"
        assert (value.model, value.finish) == ("smollm2", FinishReason.LENGTH)
        # llama.cpp's Python server tells no usage in a stream: what came is counted.
        assert value.usage.output_tokens == 8
        first, second = await session.gather(words.first, words.second)
        assert first
        assert second
        again = await complete("The capital of France is", session=session).value()
        assert again.text == value.text, "drawn greedily"


async def test_an_answer_that_it_leaves_empty_is_a_failure_and_it_goes_on_serving(client: Client) -> None:
    async with client.session() as session:
        with pytest.raises(CallFailed) as error:
            await complete("word " * 3000, session=session).get()  # too long: it begins to answer, and says nothing
        assert error.value.failure.code is ErrorCode.ENGINE_ERROR
        assert "ended before 1 of its choices" in error.value.failure.message
        assert await complete("One, two,", session=session).get()


async def test_an_output_of_a_schema_is_an_object_or_a_failure_that_says_that_it_was_cut(client: Client) -> None:
    async with client.session() as session:
        assert isinstance(await describe("a wren", session=session), Bird)
        with pytest.raises(CallFailed) as error:
            await begin("a wren", session=session).get()
        assert error.value.failure.code is ErrorCode.TRUNCATED


async def test_killed_in_the_middle_of_an_answer_it_is_waited_for_and_used_again(
    play: Stage, client: Client, llama: Llama
) -> None:
    async with client.session() as session:
        long = ramble("the sea", session=session)
        async for _ in long.stream():
            llama.kill()
            break
        with pytest.raises(CallFailed) as error:
            await long.get()
        assert error.value.failure.retryable
        waiting = complete("Two and two are", session=session)

        async def noticed() -> bool:
            return any(w.paused for w in (await play.status()).workers)

        await until(noticed, "nobody noticed that the server is gone")
        await asyncio.to_thread(llama.start)
        assert await waiting.get(timeout=60)


async def test_killed_it_gives_way_to_an_engine_of_ours_that_serves_the_same_model(
    play: Stage, client: Client, llama: Llama
) -> None:
    async with client.session() as session:
        assert (await complete("One, two,", session=session).value()).usage.prompt_tokens > 0
        llama.kill()
        await play.worker("engine", NoopBackend(NoopModel("smollm2")))
        answers = [complete(f"{n}", session=session) for n in range(3)]
        assert await session.gather(*answers) == [" ".join(f"rest{n}" for n in range(8))] * 3
