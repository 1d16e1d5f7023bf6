from __future__ import annotations

import pytest

from myna.engine.pages import PagePool
from myna.engine.tree import Node, PrefixTree


def make(pages: int = 32) -> tuple[PagePool, PrefixTree]:
    pool = PagePool(pages, 4)
    return pool, PrefixTree(pool)


def put(pool: PagePool, tree: PrefixTree, tokens: range | list[int], namespace: str = "") -> Node:
    return tree.insert(tree.root(namespace), tuple(tokens), pool.allocate(len(tokens) // 4))


def check(pool: PagePool, tree: PrefixTree, *held: Node) -> None:
    tree.check(held)
    pool.check(tree.owned_pages())


def test_whole_pages_of_a_prefix_are_found() -> None:
    pool, tree = make()
    node = put(pool, tree, range(12))
    assert tree.match("", list(range(12))) == 12
    assert tree.match("", list(range(11))) == 8
    assert tree.match("", [0, 1, 2, 3, 4, 99, 6, 7]) == 4
    assert tree.match("", [9, 9, 9, 9]) == 0
    check(pool, tree, node)


def test_nothing_is_shared_between_namespaces() -> None:
    pool, tree = make()
    put(pool, tree, range(8), "one")
    assert tree.match("two", list(range(8))) == 0
    assert tree.match("one", list(range(8))) == 8


def test_a_node_is_split_where_a_sequence_leaves_it_and_its_holders_keep_their_end() -> None:
    pool, tree = make()
    node = put(pool, tree, range(12))
    version = tree.version
    other = tree.acquire("", [0, 1, 2, 3, 4, 5, 6, 7, 50, 51, 52, 53])
    assert (other.end, node.end, node.parent) == (8, 12, other)
    assert tree.version > version
    check(pool, tree, node, other)
    tree.unlock(other)
    check(pool, tree, node)


def test_inserting_what_is_there_keeps_the_old_pages_and_releases_the_new() -> None:
    pool, tree = make()
    first = put(pool, tree, range(8))
    free = pool.free
    second = put(pool, tree, [*range(8), 20, 21, 22, 23])
    assert pool.free == free - 1
    assert second.parent is first
    check(pool, tree, first, second)


def test_only_free_leaves_are_evicted_and_the_longest_unused_goes_first() -> None:
    pool, tree = make()
    old = put(pool, tree, [1, 1, 1, 1])
    young = put(pool, tree, [2, 2, 2, 2])
    held = put(pool, tree, [3, 3, 3, 3])
    tree.unlock(young)
    tree.unlock(old)
    tree.unlock(tree.acquire("", [2, 2, 2, 2]))
    assert tree.evict(1) == 1
    assert tree.match("", [1, 1, 1, 1]) == 0
    assert tree.match("", [2, 2, 2, 2]) == 4
    assert tree.evict(5) == 1
    assert tree.match("", [3, 3, 3, 3]) == 4
    assert tree.statistics.evicted_tokens == 8
    check(pool, tree, held)


def test_a_parent_is_evicted_after_its_children() -> None:
    pool, tree = make()
    parent = put(pool, tree, range(4))
    child = put(pool, tree, range(8))
    tree.unlock(parent)
    assert tree.evictable_pages == 0
    tree.unlock(child)
    assert tree.evictable_pages == 2
    assert tree.evict(2) == 2
    assert pool.free == pool.pages
    check(pool, tree)


def test_a_dropped_namespace_gives_its_pages_back_at_once() -> None:
    pool, tree = make()
    tree.unlock(put(pool, tree, range(8), "private"))
    tree.drop("private")
    assert pool.free == pool.pages
    check(pool, tree)


def test_a_namespace_in_use_is_not_dropped() -> None:
    pool, tree = make()
    put(pool, tree, range(8), "private")
    with pytest.raises(AssertionError, match="in use"):
        tree.drop("private")


def test_check_finds_a_lock_without_a_holder() -> None:
    pool, tree = make()
    put(pool, tree, range(4))
    with pytest.raises(AssertionError, match="1 locks and 0 holders"):
        tree.check([])
