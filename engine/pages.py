"""One pool owns every KV page; `release` is the only way back to it. No torch here.

A page counts its users. A whole page belongs to one tree node or one context; a partly filled page may be shared by
forked contexts until one of them writes, which copies it. Pages of one owner are kept next to each other where that is
possible, since attention on a CPU reads a contiguous run as a view and anything else through a gather.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NewType

from myna.engine.errors import OutOfPages

PageId = NewType("PageId", int)

_FREE = 0
_TAKEN = 1


class PagePool:
    """`pages` pages of `page_size` tokens each, all free at first."""

    def __init__(self, pages: int, page_size: int) -> None:
        if pages < 1 or page_size < 1:
            raise ValueError(f"a pool needs at least one page of one token, not {pages} pages of {page_size}")
        self.pages = pages
        self.page_size = page_size
        self._users = [0] * pages
        self._taken = bytearray(pages)
        self._free = pages
        self._cursor = 0

    @property
    def free(self) -> int:
        """Pages that nobody uses."""
        return self._free

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` tokens fill, the last one perhaps in part."""
        return -(-tokens // self.page_size)

    def allocate(self, count: int, *, after: PageId | None = None, room: int = 0) -> list[PageId]:
        """Take `count` pages, with one user each: next to `after` where that is free, else in one run, else anywhere.

        `room`: pages that the owner may come to need in all; a gap of that size is preferred, so that it can grow in
        place. Raises OutOfPages, and takes nothing, if fewer than `count` pages are free.
        """
        if count > self._free:
            raise OutOfPages(f"{count} KV pages are wanted, {self._free} of {self.pages} are free")
        start = self._find_run(count, after, max(room, count))
        taken = range(start, start + count) if start is not None else self._scattered(count)
        for page in taken:
            self._taken[page] = _TAKEN
            self._users[page] = 1
        self._free -= count
        return [PageId(page) for page in taken]

    def _find_run(self, count: int, after: PageId | None, room: int) -> int | None:
        if after is not None and self._taken[after + 1 : after + 1 + count] == bytes(count):
            return after + 1
        for size in {room: None, count: None}:
            gap = bytes(size)
            start = self._taken.find(gap, self._cursor)
            if start < 0:
                start = self._taken.find(gap)
            if start >= 0:
                self._cursor = start + size if start + size < self.pages else 0
                return start
        return None

    def _scattered(self, count: int) -> list[int]:
        found: list[int] = []
        page = -1
        while len(found) < count:
            page = self._taken.find(_FREE, page + 1)
            found.append(page)
        return found

    def retain(self, pages: Iterable[PageId]) -> None:
        """Add a user to each page, all of which must be in use."""
        for page in pages:
            if not self._users[page]:
                raise ValueError(f"page {page} is free and can't be shared")
            self._users[page] += 1

    def release(self, pages: Iterable[PageId]) -> None:
        """Take a user off each page; a page without users is free. The one release point."""
        for page in pages:
            if not self._users[page]:
                raise ValueError(f"page {page} is released twice")
            self._users[page] -= 1
            if not self._users[page]:
                self._taken[page] = _FREE
                self._free += 1

    def shared(self, page: PageId) -> bool:
        """Whether more than one user holds the page, so that it must be copied before it is written."""
        return self._users[page] > 1

    def check(self, owners: Iterable[Sequence[PageId]]) -> None:
        """Verify that the pages in use are those of `owners`, counted with repetition. Raises AssertionError."""
        held = Counter(page for pages in owners for page in pages)
        wrong = [page for page in range(self.pages) if self._users[page] != held[PageId(page)]]
        assert not wrong, f"pages whose user count is not their number of users: {wrong[:8]}"
        assert self._free == self._users.count(0), "the count of free pages is wrong"
        assert all(bool(users) == bool(taken) for users, taken in zip(self._users, self._taken, strict=True))
