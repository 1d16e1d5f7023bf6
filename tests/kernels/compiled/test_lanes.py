import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from myna.kernels.compiled.emit import compiled
from myna.kernels.compiled.lanes import (
    exp2,
    flush_subnormals,
    largest,
    load,
    load_half,
    mean_square,
    row,
    silu,
    splat,
    spread,
    store,
    store_column,
    store_half,
    total,
    where_larger,
    zeros4,
)

SIXTEEN = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=16, max_size=16)


@compiled
def _unary(source: int, powers: int, activated: int, halves: int) -> float:
    value = load(source)
    store(powers, exp2(value))
    store(activated, silu(value))
    store_half(halves, value)
    return total(value)


@compiled
def _binary(left: int, right: int, larger: int, chosen: int) -> None:
    one, other = load(left), load(right)
    store(larger, largest(one, other))
    store(chosen, where_larger(one, other, splat(1.0), splat(2.0)))


@compiled
def _widen(source: int, target: int) -> None:
    store(target, load_half(source))


@compiled
def _outer(factors: int, stride: int, value: int, out: int) -> None:
    block = spread(spread(zeros4(), factors, stride, load(value)), factors, stride, load(value))
    store(out, row(block, 0))
    store(out + 64, row(block, 3))


@compiled
def _column(source: int, target: int) -> None:
    store_column(target, 12, load(source))


@compiled
def _halve_twice_the_least(source: int, target: int) -> None:
    flush_subnormals(1)
    store(target, load(source) * splat(0.5))
    flush_subnormals(0)
    store(target + 64, load(source) * splat(0.5))


def test_powers_of_two_are_right_to_two_in_ten_million() -> None:
    value = torch.linspace(-125.9, 126.9, 1600)
    found = _map_unary(value)[0]
    assert ((found - value.double().exp2()) / value.double().exp2()).abs().max() < 2e-7


def test_powers_of_two_end_at_the_bounds_and_keep_what_is_no_number() -> None:
    value = torch.tensor([-math.inf, -1e30, 1e30, math.inf, math.nan] + [0.0] * 11)
    found = _map_unary(value)[0]
    assert found[:2].tolist() == [2.0**-126] * 2
    assert found[2:4].tolist() == [2.0**127] * 2
    assert found[4].isnan()


def test_silu_is_torchs() -> None:
    value = torch.linspace(-90, 90, 1600)
    torch.testing.assert_close(_map_unary(value)[1], torch.nn.functional.silu(value), rtol=1e-6, atol=1e-7)


@given(SIXTEEN)
def test_bfloat16_is_rounded_as_torch_rounds_it(numbers: list[float]) -> None:
    value = torch.tensor(numbers)
    found = _map_unary(value)[2]
    assert torch.equal(found, value.bfloat16())
    widened = torch.zeros(16)
    _widen(found.data_ptr(), widened.data_ptr())
    assert torch.equal(widened, value.bfloat16().float())


def test_lanes_are_added_up() -> None:
    value = torch.arange(16.0) - 3
    room = torch.zeros(3, 16)
    assert _unary(value.data_ptr(), *(part.data_ptr() for part in room)) == value.sum()


@given(SIXTEEN, SIXTEEN)
def test_lanes_are_compared_one_by_one(left: list[float], right: list[float]) -> None:
    one, other, larger, chosen = torch.tensor([left, right, left, left])
    _binary(one.data_ptr(), other.data_ptr(), larger.data_ptr(), chosen.data_ptr())
    assert torch.equal(larger, torch.maximum(one, other))
    assert torch.equal(chosen, torch.where(one > other, 1.0, 2.0))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_block_adds_an_outer_product(stride: int) -> None:
    factors, value, out = torch.randn(4 * stride), torch.randn(16), torch.zeros(2, 16)
    _outer(factors.data_ptr(), 4 * stride, value.data_ptr(), out.data_ptr())
    torch.testing.assert_close(out, 2 * factors[[0, 3 * stride], None] * value)


def test_a_column_is_written_at_its_stride() -> None:
    value, target = torch.randn(16), torch.zeros(48)
    _column(value.data_ptr(), target.data_ptr())
    assert torch.equal(target[::3], value)
    assert not target[1::3].any()
    assert not target[2::3].any()


def test_the_mean_square_is_over_all_numbers() -> None:
    value = torch.randn(96)
    assert mean_square(value.data_ptr(), 96) == pytest.approx(float(value.square().mean()), rel=1e-6)


def test_subnormal_numbers_are_zero_only_while_they_are_flushed() -> None:
    value, found = torch.full((16,), 2.0**-126), torch.ones(2, 16)
    _halve_twice_the_least(value.data_ptr(), found.data_ptr())
    assert found[0].tolist() == [0.0] * 16
    assert found[1].tolist() == [2.0**-127] * 16


def _map_unary(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    powers, activated = torch.zeros_like(value), torch.zeros_like(value)
    halves = torch.zeros(len(value), dtype=torch.bfloat16)
    for at in range(0, len(value), 16):
        _unary(*(part[at:].data_ptr() for part in (value, powers, activated, halves)))
    return powers, activated, halves
