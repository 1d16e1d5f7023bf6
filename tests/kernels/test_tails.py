import torch

from myna.kernels.reference import dense_attention
from myna.kernels.tails import Tail, TailBlocks
from tests.kernels.cases import PAGE_SIZE, TreeSpan

LAYERS = {0}


class Pool:
    """A pool of one layer, two KV heads, and tails that grow in it on pages of their own."""

    def __init__(self, pages: int = 40) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.pairs = torch.full((4, pages * PAGE_SIZE, 8), torch.nan)
        self.free = torch.randperm(pages, generator=self.generator).tolist()
        self.pages: dict[str, list[int]] = {}
        self.length: dict[str, int] = {}

    def grow(self, name: str, tokens: int) -> torch.Tensor:
        """Append tokens; returns the last one's keys and values [4, 8]."""
        pages = self.pages.setdefault(name, [])
        for _ in range(tokens):
            length = self.length.get(name, 0)
            if length % PAGE_SIZE == 0:
                pages.append(self.free.pop())
            fresh = torch.randn(4, 8, generator=self.generator)
            self.pairs[:, pages[-1] * PAGE_SIZE + length % PAGE_SIZE] = fresh
            self.length[name] = length + 1
        return fresh

    def tail(self, name: str, row: int) -> Tail:
        pages = tuple(self.pages[name])
        slots = torch.tensor([page * PAGE_SIZE + j for page in pages for j in range(PAGE_SIZE)])
        return Tail(row, pages, slots, self.length[name])


def decode(pool: Pool, blocks: TailBlocks, names: str) -> tuple[int, float]:
    """One token for each named sequence; how many of them had to be gathered, and the error of the result."""
    fresh = torch.stack([pool.grow(name, 1) for name in names], dim=1)
    tails = [pool.tail(name, row) for row, name in enumerate(names)]
    plan = blocks.plan(tails, len(names), torch.float32, LAYERS)
    assert plan is not None
    query = torch.randn(6, len(names), 8, generator=pool.generator)
    output, log_sum = blocks.attend(0, plan, query, fresh, pool.pairs, 0.3)
    found = torch.empty(len(names), 6, 8)
    found[plan.batch_rows] = output
    spans = [TreeSpan(tail.pages, 0, tail.length, (tail.row,), own=True) for tail in tails]
    positions = [tail.length - 1 for tail in tails]
    truth = dense_attention(
        query.transpose(0, 1).double(), *pool.pairs.double().chunk(2), spans, positions, PAGE_SIZE, scaling=0.3
    )
    assert log_sum.isfinite().all()
    return len(plan.newcomers), float((found - truth).norm() / truth.norm())


def test_a_sequence_is_gathered_once_and_then_grows_in_place() -> None:
    pool, blocks = Pool(), TailBlocks()
    for name, tokens in zip("abc", (7, 11, 2), strict=True):
        pool.grow(name, tokens)
    gathered = [decode(pool, blocks, "abc") for _ in range(9)]
    assert [count for count, _ in gathered] == [3] + [0] * 8
    assert max(error for _, error in gathered) < 1e-6


def test_one_that_leaves_makes_a_hole_that_a_newcomer_fills() -> None:
    pool, blocks = Pool(), TailBlocks()
    for name in "abcdef":
        pool.grow(name, 5)
    assert decode(pool, blocks, "abcde")[0] == 5
    count, error = decode(pool, blocks, "abde")
    assert count == 0
    assert error < 1e-6
    count, error = decode(pool, blocks, "fabde")
    assert count == 1
    assert error < 1e-6


def test_a_copied_page_is_not_trusted() -> None:
    pool, blocks = Pool(), TailBlocks()
    for name in "ab":
        pool.grow(name, 5)
    decode(pool, blocks, "ab")
    pool.pairs[:, pool.pages["a"][0] * PAGE_SIZE] += 1.0
    blocks.forget(pool.pages["a"][0])
    count, error = decode(pool, blocks, "ab")
    assert count == 1
    assert error < 1e-6


def test_a_step_in_between_ends_the_trust_in_those_who_missed_it() -> None:
    pool, blocks = Pool(), TailBlocks()
    for name in "abcd":
        pool.grow(name, 5)
    decode(pool, blocks, "abcd")
    decode(pool, blocks, "cd")
    assert decode(pool, blocks, "abcd")[0] >= 2


def test_more_tokens_than_there_is_room_for_make_more_room() -> None:
    pool, blocks = Pool(), TailBlocks()
    for name in "ab":
        pool.grow(name, 3)
    decode(pool, blocks, "ab")
    for name in "ab":
        pool.grow(name, 40)
    assert decode(pool, blocks, "ab")[1] < 1e-6
    for _ in range(20):
        assert decode(pool, blocks, "ab")[1] < 1e-6


def test_a_tail_much_longer_than_the_others_is_left_to_the_ordinary_path() -> None:
    pool, blocks = Pool(), TailBlocks()
    for name, tokens in zip("abcd", (3, 4, 90, 5), strict=True):
        pool.grow(name, tokens)
    plan = blocks.plan([pool.tail(name, row) for row, name in enumerate("abcd")], 4, torch.float32, LAYERS)
    assert plan is not None
    assert sorted(plan.batch_rows.tolist()) == [0, 1, 3]
    assert blocks.plan([pool.tail("a", 0)], 1, torch.float32, LAYERS) is None
