import pytest
import torch

from myna.kernels.reference import dense_attention, merge, tree_attention
from tests.kernels.cases import PAGE_SIZE, SHAPES, build


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options", [{}, {"window": 5}, {"softcap": 1.5}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}], ids=str
)
def test_span_by_span_equals_row_by_row(shape: str, options: dict) -> None:
    case = build(SHAPES[shape])
    arguments = (case.query, case.keys, case.values, case.spans, case.positions, PAGE_SIZE)
    expected = dense_attention(*arguments, scaling=0.3, **options)
    assert expected.isfinite().all()
    torch.testing.assert_close(tree_attention(*arguments, scaling=0.3, **options), expected, rtol=1e-10, atol=1e-12)


def test_it_equals_torchs_own_attention_on_a_plain_causal_prompt() -> None:
    case = build([[((), 16, 16)]], contiguous=True)
    slots = [page * PAGE_SIZE + j for page in case.spans[0].pages for j in range(PAGE_SIZE)]
    keys, values = (pool[:, slots].repeat_interleave(2, dim=0) for pool in (case.keys, case.values))
    expected = torch.nn.functional.scaled_dot_product_attention(
        case.query.transpose(0, 1), keys, values, is_causal=True, scale=0.3
    )
    found = dense_attention(case.query, case.keys, case.values, case.spans, case.positions, PAGE_SIZE, scaling=0.3)
    torch.testing.assert_close(found, expected.transpose(0, 1))


def test_merging_with_nothing_changes_nothing() -> None:
    part = torch.randn(3, 8, dtype=torch.float64)
    log_sum = torch.randn(3, dtype=torch.float64)
    joined, total = merge(part, log_sum, torch.zeros_like(part), torch.full_like(log_sum, -torch.inf))
    torch.testing.assert_close((joined, total), (part, log_sum))
    empty, none = merge(part * 0, log_sum - torch.inf, part * 0, log_sum - torch.inf)
    assert (empty == 0).all()
    assert (none == -torch.inf).all()
