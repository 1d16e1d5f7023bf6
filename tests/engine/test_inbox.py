from __future__ import annotations

from myna.engine.frames import CallFrame, Cancel, Query, Retain, Submit, Unpin
from myna.engine.inbox import Inbox

CALL = CallFrame(())


def inbox_with(*commands: Submit | Cancel | Query | Retain | Unpin) -> Inbox:
    inbox = Inbox()
    for command in commands:
        inbox.add(command)
    return inbox


def test_what_is_waited_for_comes_first_and_in_its_order() -> None:
    inbox = inbox_with(Retain("kept", CALL), Submit("a", CALL), Cancel("a"), Query())
    assert list(inbox.keeping()) == []
    assert list(inbox.awaited()) == [Submit("a", CALL), Cancel("a"), Query()]
    assert list(inbox.keeping()) == [Retain("kept", CALL)]
    assert not inbox


def test_of_prompts_to_keep_one_is_taken_at_a_time_and_their_order_stays() -> None:
    inbox = inbox_with(Retain("one", CALL), Unpin("one"), Retain("two", CALL))
    assert list(inbox.awaited()) == []
    assert list(inbox.keeping()) == [Retain("one", CALL)]
    assert list(inbox.keeping()) == [Unpin("one"), Retain("two", CALL)]


def test_a_name_is_let_go_at_once_where_nothing_is_to_be_kept_before() -> None:
    inbox = inbox_with(Unpin("old"), Submit("a", CALL))
    assert list(inbox.awaited()) == [Unpin("old"), Submit("a", CALL)]
