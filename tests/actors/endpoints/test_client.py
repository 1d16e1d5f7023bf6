"""What each failure of a real server is told as, and that none of them holds a call or tells a key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from myna.actors.endpoints.client import Client, Fault, Trouble
from myna.actors.endpoints.pieces import Answer
from myna.actors.endpoints.requests import Request
from myna.actors.messages import ErrorCode, VarId
from tests.actors.endpoints.faulty import (
    Act,
    Asked,
    Faulty,
    Gate,
    breaks_off,
    event,
    faulty,
    head,
    piece,
    refuses,
    says,
    sends,
)

KEY = "sk-0123456789"


def request(chat: bool = True, limit: int = 8) -> Request:
    prompt: Mapping[str, Any] = {"messages": []} if chat else {"prompt": "?"}
    return Request(chat, {"model": "m", "stream": True, **prompt}, (VarId("a"),), 10, limit)


async def ask(server: Faulty, what: Request | None = None, **options: Any) -> str:
    """The text of one answer, read as the backend does."""
    client, what = Client(server.endpoint(**{"first_seconds": 5.0} | options)), what or request()
    answer, text = Answer(what), ""
    try:
        await client.models()
        async with client.answer(what) as stream:
            async for data in stream.events:
                text += "".join(piece.text for piece in answer.feed(data))
            answer.check_whole()
    finally:
        await client.close()
    return text


async def trouble(act: Act, what: Request | None = None, **options: Any) -> Trouble:
    async with faulty(act) as server:
        with pytest.raises(Trouble) as error:
            await ask(server, what, **options)
    return error.value


async def test_a_key_is_sent_and_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    async with faulty(says("x"), refuses(400, f"what is {KEY}?")) as server:
        assert await ask(server, key_env="THE_KEY") == "x"
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
        with pytest.raises(Trouble) as error:
            await ask(server, key_env="THE_KEY")
    assert "(key)" in str(error.value)
    assert KEY not in str(error.value)
    assert KEY not in repr(error.value.failure)


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (400, None, Fault.REJECTED),
        (422, None, Fault.REJECTED),
        (401, None, Fault.BROKEN),
        (403, None, Fault.BROKEN),
        (404, "model_not_found", Fault.BROKEN),
        (429, "rate_limit_exceeded", Fault.LIMITED),
        (429, "insufficient_quota", Fault.BROKEN),
        (500, None, Fault.FAILED),
        (503, None, Fault.ABSENT),
        (529, None, Fault.ABSENT),
        (307, None, Fault.FAILED),
    ],
)
async def test_each_status_is_somebody_s_fault(status: int, code: str | None, fault: Fault) -> None:
    told = await trouble(refuses(status, "sorry", code=code, location="http://127.0.0.1:1/"))
    assert told.fault is fault
    assert told.failure.retryable == (fault is not Fault.REJECTED)
    assert str(status) in str(told)


async def test_a_server_without_completions_says_so_to_who_gave_a_plain_prompt() -> None:
    told = await trouble(refuses(404, "Not Found"), request(chat=False))
    assert (told.fault, told.failure.code) == (Fault.REJECTED, ErrorCode.INVALID_CALL)
    assert "give the prompt roles" in str(told)


async def test_when_to_come_again_is_told_on() -> None:
    assert (await trouble(refuses(429, retry_after="7"))).after == 7
    allowance = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "3s"}
    assert (await trouble(refuses(429, **allowance))).after == 3
    async with faulty(
        says("x", headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"})
    ) as s:
        client = Client(s.endpoint())
        async with client.answer(request()) as stream:
            assert stream.exhausted == 2
        await client.close()


def _chunked(*data: bytes) -> Act:
    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream"))
        for part in data:
            writer.write(part)
            await writer.drain()

    return act


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (breaks_off("x"), "cut in the middle"),
        (sends(event(b"{nonsense")), "no stream of events in JSON"),
        (sends(b"data: \xff\xfe\n\n"), "no stream of events in JSON"),
        (sends(event(b"[" * 100_000)), "no stream of events in JSON"),
        (sends(event({"choices": "many"})), "not as OpenAI's API has it"),
        (sends(event({"error": {"message": "out of memory"}})), "out of memory"),
        (sends(event(b"[DONE]")), "ended before 1 of its choices"),
        (sends(), "ended before 1 of its choices"),
        (_chunked(*[b"x" * 2**16] * 64), "far more bytes"),
        (_chunked(*[event({"choices": []})] * 100_000), "far more bytes"),
        (sends(*[event({"choices": [{"delta": {"content": "word " * 100}}]})] * 20), "goes on"),
    ],
    ids=[
        "cut",
        "nonsense",
        "no text",
        "deep",
        "form",
        "error",
        "nothing",
        "empty",
        "endless line",
        "endless events",
        "words",
    ],
)
async def test_what_is_no_whole_answer_fails_with_a_reason(act: Act, told: str) -> None:
    error = await trouble(act)
    assert error.fault is Fault.FAILED
    assert told in str(error)


@pytest.mark.parametrize("words", [(), ("begun",)], ids=["at first", "in the middle"])
async def test_an_endpoint_that_hangs_is_given_up(words: tuple[str, ...]) -> None:
    error = await trouble(Gate(*words), first_seconds=0.15, idle_seconds=0.15)
    assert error.fault is Fault.FAILED
    assert "it hangs: nothing came for 0.15 s" in str(error)


async def test_a_server_that_never_answers_its_first_line_is_given_up() -> None:
    async def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    assert "it hangs" in str(await trouble(silent, first_seconds=0.15))


async def test_nobody_there_is_told_apart_from_somebody_who_fails() -> None:
    async with faulty() as server:
        pass
    client = Client(server.endpoint(connect_seconds=1.0))
    with pytest.raises(Trouble) as error:
        async with client.answer(request()):
            pass
    assert error.value.fault is Fault.ABSENT
    await client.close()


async def test_leaving_an_answer_leaves_the_server_too() -> None:
    gate = Gate("x")
    async with faulty(gate) as server:
        client = Client(server.endpoint())
        async with client.answer(request()) as stream:
            await anext(aiter(stream.events))
        await asyncio.wait_for(gate.left.wait(), 5)
        await client.close()


async def test_a_server_that_has_no_list_of_models_is_there_all_the_same() -> None:
    for look in (refuses(404), refuses(405), refuses(500), _json(b'{"data": 7}')):
        async with faulty(looks=[look]) as server:
            client = Client(server.endpoint())
            assert await client.models() == ()
            await client.close()


def _json(body: bytes) -> Act:
    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "application/json", {"content-length": str(len(body))}) + body)

    return act


async def test_a_comment_between_events_is_no_event() -> None:
    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream") + b": hello\n\n" + piece(asked, 0, "x"))
        writer.write(b": still there\n\n" + piece(asked, 0, None, "stop") + event(b"[DONE]"))

    async with faulty(act) as server:
        assert await ask(server) == "x"
