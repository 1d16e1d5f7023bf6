"""Conversations: turns that may be submitted before the earlier ones have ended.

Each turn is one call that holds all earlier turns: the user's texts as they are, the model's as variables. So the turns of a
conversation share an ever longer prefix, which the engine has in its cache, and nothing waits in the application.
"""

from __future__ import annotations

from typing import Any

from myna.actors import messages as wire
from myna.sdk import ids
from myna.sdk.current import Submitter, choose_session
from myna.sdk.errors import FunctionError
from myna.sdk.function import Options, Prepared, Result, input_segments, make_options, placeholders
from myna.sdk.parameters import DEFAULT_JOINER, Output
from myna.sdk.template import Role
from myna.sdk.variable import Placeholder


class Conversation:
    """A chat with a model: `reply = chat.say("…")`, then `await reply`, or `chat.say` again at once.

    `session` is the current one unless given. `sampling` are the settings of every reply (see `Output`); `options` those of a
    function (`model`, `priority`, …). Raises `FunctionError`.
    """

    def __init__(
        self,
        system: Any = None,
        *,
        name: str = "chat",
        session: Submitter | None = None,
        options: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> None:
        self.name = name
        self._session = session
        self._options = Options(**make_options(name, **(options or {})))
        self._sampling = sampling
        self._messages: list[wire.Message] = []
        self._used: list[Placeholder] = []
        if system is not None:
            self._add(Role.SYSTEM, system)

    def say(self, text: Any, **sampling: Any) -> Any:
        """Add a turn: `text` is a string, a variable, or a list of these. Returns the reply's variable at once. `sampling`
        changes the settings for this reply. Raises `NoSession`, `FunctionError`."""
        output = Output(**{**self._sampling, **sampling})
        if output.n != 1 or output.transforms:
            raise FunctionError(
                f"conversation {self.name!r}: a reply is one text as the model wrote it: no n, no transforms"
            )
        session = choose_session(self._session, self.name)
        turn = _message(Role.USER, text)
        label = output.name or "reply"
        reply = ids.new(label)
        place = wire.Output(
            variables=(reply,), name=label, sampling=output.sampling, stream=output.stream, format=output.format
        )
        used = [*self._used, *placeholders(text)]
        answer = wire.Message(segments=(place,), role=Role.ASSISTANT.value)
        call = self._options.call(self.name, (*self._messages, turn, answer))
        variable: Placeholder = session.submit(
            Prepared(call, (Result(label, (reply,), True, parse=output.parse),), tuple(used))
        )
        self._messages.append(turn)
        self._used = used
        self._add(Role.ASSISTANT, variable)
        return variable

    def hear(self, text: Any) -> None:
        """Add a reply that no model made, such as an example, or one that was kept from an earlier conversation."""
        self._add(Role.ASSISTANT, text)

    @property
    def turns(self) -> int:
        """How many replies there are, whether they have come or not."""
        return sum(message.role == Role.ASSISTANT for message in self._messages)

    def fork(self) -> Conversation:
        """A second conversation with the same turns so far; the two share their prefix."""
        copy = Conversation(name=self.name, session=self._session, **self._sampling)
        copy._options = self._options
        copy._messages = list(self._messages)
        copy._used = list(self._used)
        return copy

    def _add(self, role: Role, text: Any) -> None:
        self._messages.append(_message(role, text))
        self._used += placeholders(text)


def _message(role: Role, text: Any) -> wire.Message:
    return wire.Message(segments=tuple(input_segments(text, DEFAULT_JOINER, role.value)), role=role.value)
