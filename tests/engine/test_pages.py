from __future__ import annotations

import pytest

from myna.engine.errors import OutOfPages
from myna.engine.pages import PagePool


def test_pages_of_one_allocation_lie_next_to_each_other() -> None:
    pool = PagePool(8, 4)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.free == 5


def test_an_owner_grows_in_place_where_room_was_left() -> None:
    pool = PagePool(16, 4)
    first = pool.allocate(1, room=4)
    second = pool.allocate(1, room=4)
    assert pool.allocate(1, after=first[-1]) == [first[0] + 1]
    assert pool.allocate(1, after=second[-1]) == [second[0] + 1]


def test_scattered_pages_are_used_when_there_is_no_run() -> None:
    pool = PagePool(6, 4)
    pages = pool.allocate(6)
    pool.release([pages[1], pages[3], pages[5]])
    assert pool.allocate(3) == [1, 3, 5]


def test_an_allocation_that_does_not_fit_takes_nothing() -> None:
    pool = PagePool(4, 4)
    pool.allocate(2)
    with pytest.raises(OutOfPages, match="3 KV pages are wanted, 2 of 4 are free"):
        pool.allocate(3)
    assert pool.free == 2


def test_a_shared_page_is_free_after_its_last_user_lets_go() -> None:
    pool = PagePool(2, 4)
    pages = pool.allocate(1)
    pool.retain(pages)
    assert pool.shared(pages[0])
    pool.release(pages)
    assert not pool.shared(pages[0])
    assert pool.free == 1
    pool.release(pages)
    assert pool.free == 2


def test_releasing_twice_and_sharing_a_free_page_are_errors() -> None:
    pool = PagePool(2, 4)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(ValueError, match="released twice"):
        pool.release(pages)
    with pytest.raises(ValueError, match="can't be shared"):
        pool.retain(pages)


def test_check_finds_a_leak_and_a_forgotten_user() -> None:
    pool = PagePool(4, 4)
    pages = pool.allocate(2)
    pool.check([pages])
    with pytest.raises(AssertionError, match="user count"):
        pool.check([pages[:1]])
    with pytest.raises(AssertionError, match="user count"):
        pool.check([pages, pages[:1]])
