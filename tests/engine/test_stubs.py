from __future__ import annotations

from myna.engine.pages import PagePool
from myna.engine.stubs import Stub, Stubs
from myna.engine.tree import PrefixTree


def test_a_page_is_the_stubs_until_it_is_taken_or_let_go() -> None:
    pool = PagePool(4, 4)
    node = PrefixTree(pool).root("a")
    stubs = Stubs(pool)
    first, second = (Stub(node, (1, 2, end), page) for end, page in zip((3, 4), pool.allocate(2), strict=True))
    for stub in (first, second):
        stubs.keep(stub)
        pool.release([stub.page])  # whoever computed it has gone
    assert stubs.find(node, [1, 2, 4, 9]) is second
    assert stubs.find(node, [1, 2, 5]) is None, "who leaves it would spoil it for others"
    page = stubs.take(second)
    stubs.let_go(second)
    stubs.let_go(first)
    pool.check([[page]])
    assert list(stubs.pages()) == []


def test_the_one_that_has_most_is_found() -> None:
    pool = PagePool(4, 4)
    node = PrefixTree(pool).root("a")
    stubs = Stubs(pool)
    short, long = (Stub(node, tokens, page) for tokens, page in zip(((1,), (1, 2)), pool.allocate(2), strict=True))
    stubs.keep(long)
    stubs.keep(short)
    assert stubs.find(node, [1, 2, 3]) is long
    assert stubs.find(node, [1, 5]) is short
    assert stubs.find(node, [5]) is None
    assert stubs.find(node, []) is None
    short_of = stubs.find(node, [1])
    assert short_of is not None
    assert short_of.common([1]) == 1
