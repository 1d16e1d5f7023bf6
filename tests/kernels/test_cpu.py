import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from myna.kernels import cpu
from myna.kernels.reference import dense_attention
from tests.kernels.cases import PAGE_SIZE, SHAPES, Case, build

OPTIONS = {
    "plain": {},
    "window": {"window": 5},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all": {"window": 9, "softcap": 2.0, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}
RELATIVE_ERROR = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}


def run(case: Case, *, window: int | None = None, **options: object) -> torch.Tensor:
    plan = cpu.compile_plan(case.spans, case.positions, PAGE_SIZE, window)
    query = case.query.transpose(0, 1)
    return cpu.tree_attention(query, case.keys, case.values, plan, scaling=0.3, **options)


def truth(case: Case, **options: object) -> torch.Tensor:
    arguments = (case.query.double(), case.keys.double(), case.values.double())
    return dense_attention(*arguments, case.spans, case.positions, PAGE_SIZE, scaling=0.3, **options)


def error_of(case: Case, **options: object) -> float:
    expected = truth(case, **options)
    return float((run(case, **options).double() - expected).norm() / expected.norm())


def check(case: Case, **options: object) -> None:
    """The tensors are NaN wherever no key was written, so a read beyond a span shows."""
    assert error_of(case, **options) < RELATIVE_ERROR[case.query.dtype]


@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tree_gives_the_reference(shape: str, options: dict, dtype: torch.dtype) -> None:
    check(build(SHAPES[shape]).to(dtype), **options)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 8), (6, 1, 20), (9, 3, 64), (4, 2, 12)])
def test_every_grouping_and_size_of_heads_gives_the_reference(heads: int, kv_heads: int, size: int) -> None:
    check(build(SHAPES["two levels and a sibling"], heads=heads, kv_heads=kv_heads, size=size).to(torch.float32))


def test_consecutive_pages_are_read_in_place() -> None:
    case = build(SHAPES["a prefix that all share"], contiguous=True).to(torch.float32)
    plan = cpu.compile_plan(case.spans, case.positions, PAGE_SIZE)
    assert all(isinstance(part.keys, slice) for part in (*plan.first, *plan.more))
    check(case)


def test_a_shared_node_is_one_part_whatever_the_number_of_its_rows() -> None:
    case = build([[((40,), 3, 1)] * 9])
    plan = cpu.compile_plan(case.spans, case.positions, PAGE_SIZE)
    assert len(plan.more) == 1
    assert plan.more[0].rows == slice(0, 9)


def test_a_node_behind_every_window_is_not_read() -> None:
    case = build([[((40,), 6, 1), ((40,), 7, 1)]])
    assert cpu.compile_plan(case.spans, case.positions, PAGE_SIZE, window=5).more == ()


def test_thousands_of_shared_tokens_and_large_scores_stay_exact() -> None:
    case = build([[((5000,), 3, 1), ((5000,), 70, 1)]], size=16).to(torch.float32)
    louder = Case(case.query * 30, case.keys, case.values, case.spans, case.positions)
    assert error_of(louder) < 1e-5  # scores of some hundreds lose two digits


branches = st.tuples(st.lists(st.integers(0, 18), max_size=2), st.integers(1, 20), st.integers(1, 20)).map(
    lambda branch: (tuple(branch[0]), branch[1], min(branch[1], branch[2]))
)


@settings(max_examples=60, deadline=None)
@given(
    roots=st.lists(st.lists(branches, min_size=1, max_size=4), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 24),
    contiguous=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_tree_gives_the_reference(roots: list, window: int | None, contiguous: bool, seed: int) -> None:
    check(build(roots, seed=seed, contiguous=contiguous).to(torch.float32), window=window)
