from __future__ import annotations

from typing import Any

import pytest

import myna
from myna.actors import messages as wire
from myna.actors.messages import SessionId, VarId
from myna.sdk.chat import Conversation
from myna.sdk.client import Client
from myna.sdk.variable import Placeholder


class Kept:
    """A session that keeps what is submitted to it, and makes variables that never end."""

    def __init__(self) -> None:
        self.calls: list[wire.ModelCall] = []

    def submit(self, prepared: Any) -> Placeholder:
        self.calls.append(prepared.call)
        return Placeholder(SessionId("s"), VarId(prepared.results[0].variables[0]), "reply")


def text(message: wire.Message) -> object:
    (segment,) = message.segments
    match segment:
        case wire.Text(text=content):
            return content
        case wire.Input(variables=variables):
            return variables
        case wire.Output(variables=variables):
            return variables


def test_each_turn_holds_all_earlier_ones_with_replies_as_variables() -> None:
    kept = Kept()
    chat = Conversation("Be brief.", session=kept, max_tokens=4)
    first = chat.say("Hi")
    second = chat.say("Why?", max_tokens=9)
    one, two = kept.calls
    assert [(m.role, text(m)) for m in one.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", (first.id,)),
    ]
    assert [(m.role, text(m)) for m in two.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", (first.id,)),
        ("user", "Why?"),
        ("assistant", (second.id,)),
    ]
    assert one.messages[:2] == two.messages[:2], "the prefix is the same, so that the engine has it"
    assert isinstance(two.messages[2].segments[0], wire.Input)
    assert [m.messages[-1].segments[0].sampling.max_tokens for m in kept.calls] == [4, 9]  # type: ignore[union-attr]
    assert chat.turns == 2


def test_a_fork_shares_the_turns_so_far_and_goes_its_own_way() -> None:
    kept = Kept()
    chat = Conversation(session=kept, options={"model": "m", "priority": 2})
    chat.hear("I begin.")
    fork = chat.fork()
    chat.say("a")
    fork.say("b")
    one, two = kept.calls
    assert one.messages[0] == two.messages[0]
    assert (text(one.messages[1]), text(two.messages[1])) == ("a", "b")
    assert (two.models, two.priority) == (("m",), 2)


def test_a_reply_that_is_no_plain_text_is_refused() -> None:
    with pytest.raises(myna.FunctionError, match="no n"):
        Conversation(session=Kept()).say("x", n=2)
    with pytest.raises(myna.FunctionError, match="no setting"):
        Conversation(session=Kept()).say("x", loudness=2)


async def test_turns_are_submitted_before_earlier_ones_have_ended(client: Client) -> None:
    async with client.session() as session:
        topic = session.variable("topic")
        chat = Conversation(max_tokens=2)
        replies = [chat.say(topic), chat.say("and?"), chat.say("so?")]
        assert not any(reply.done for reply in replies)
        await topic.set("owls")
        assert await session.gather(*replies) == ["reply0 reply1"] * 3
