import pytest
import torch
from torch.nn import functional

from myna.kernels.linear import ACTIVATIONS, PackedLinear, PlainLinear, can_pack, make_linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
REFERENCE = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_every_fused_tail_equals_the_operations_one_by_one(
    kind: type, dtype: torch.dtype, biased: bool, count: int
) -> None:
    if kind is PackedLinear and not can_pack(dtype):
        pytest.skip(f"oneDNN takes no {dtype} weights on this machine")
    generator = torch.Generator().manual_seed(count)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    weight, rows, other = draw(24, 16), draw(count, 16), draw(count, 24)
    bias = draw(24) if biased else None
    linear = kind(weight, bias)
    exact = functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    results = {"plain": (linear.plain(rows), exact)}
    for name in ACTIVATIONS:
        results[name] = (linear.activated(rows, name), REFERENCE[name](exact))
    results["times"] = (linear.times(rows, other), exact * other.double())
    results["plus"] = (linear.plus(rows, other), exact + other.double())
    for name, (found, expected) in results.items():
        assert found.dtype == dtype
        assert (found.double() - expected).norm() / expected.norm() < TOLERANCE[dtype], name


def test_the_machine_decides_whether_weights_are_packed() -> None:
    kind = PackedLinear if can_pack(torch.float32) else PlainLinear
    assert type(make_linear(torch.zeros(4, 4), None)) is kind
    assert type(make_linear(torch.zeros(4, 4, dtype=torch.float64), None)) is PlainLinear
