from collections.abc import Callable
from functools import cache

import pytest
import torch

from myna.kernels.compiled import tiles
from myna.kernels.compiled.elements import FLOAT, HALF, Elements, elements_for
from myna.kernels.compiled.emit import compiled
from myna.kernels.compiled.lanes import LANES, load

FORMATS = [
    pytest.param(FLOAT, marks=pytest.mark.avx512),
    pytest.param(HALF, marks=pytest.mark.amx),
]


def test_a_format_is_offered_only_where_the_machine_has_it() -> None:
    assert (elements_for(torch.bfloat16) is HALF) == tiles.available()
    assert (elements_for(torch.float32) is FLOAT) == torch.cpu._is_avx512_supported()
    assert elements_for(torch.float64) is None


@pytest.mark.parametrize("elements", FORMATS)
@pytest.mark.parametrize("rows", [1, 5, 16, 17, 40, 64])
def test_rows_are_multiplied_by_every_block_of_a_weight(elements: Elements, rows: int) -> None:
    depth, outputs = 96, 40
    left, weight = (torch.randn(n, depth).to(elements.dtype) for n in (rows, outputs))
    packed = elements.pack(weight)
    out = torch.full((-(-rows // LANES) * LANES, 48), 7.0)
    _multiply(elements, left, packed, out)
    torch.testing.assert_close(out[:rows, :outputs], left.float() @ weight.float().T, rtol=1e-5, atol=1e-4)
    assert not out[:rows, outputs:].any()


@pytest.mark.parametrize("elements", FORMATS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_scores_are_keys_times_columns(elements: Elements, head_dim: int) -> None:
    keys, queries = (torch.randn(LANES, head_dim).to(elements.dtype) for _ in range(2))
    columns = queries.view(LANES, -1, elements.together).transpose(0, 1).contiguous()
    out, configuration = torch.zeros(LANES, LANES), _configuration(LANES)
    addresses = [tensor.data_ptr() for tensor in (configuration, keys, columns, out)]
    _scorer(elements.dtype)(*addresses, head_dim)
    torch.testing.assert_close(out, keys.float() @ queries.float().T, rtol=1e-5, atol=1e-4)


def _multiply(elements: Elements, left: torch.Tensor, packed: torch.Tensor, out: torch.Tensor) -> None:
    rows, depth = left.shape
    operand = torch.zeros(-(-rows // LANES) * LANES * depth, dtype=elements.dtype)
    tensors = (_configuration(min(rows, LANES)), left.float().contiguous(), operand, packed, out)
    addresses = [tensor.data_ptr() for tensor in tensors]
    _multiplier(elements.dtype)(*addresses, rows, depth, len(packed), packed[0].nbytes, out.shape[1] * 4)


@cache
def _scorer(dtype: torch.dtype) -> Callable[..., None]:
    elements = elements_for(dtype)
    assert elements is not None
    score, enter, leave = elements.scores, elements.enter, elements.leave

    @compiled
    def run(tile: int, keys: int, columns: int, out: int, head_dim: int) -> None:
        enter(tile)
        score(keys, head_dim, columns, out)
        leave()

    return run


@cache
def _multiplier(dtype: torch.dtype) -> Callable[..., None]:
    elements = elements_for(dtype)
    assert elements is not None
    put, product, enter, leave = elements.put, elements.product, elements.enter, elements.leave

    @compiled
    def run(
        tile: int, source: int, operand: int, weight: int, out: int,
        rows: int, depth: int, blocks: int, block_bytes: int, stride: int,
    ) -> None:  # fmt: skip
        for row in range(rows):
            for column in range(0, depth, LANES):
                put(operand, depth, row, column, load(source + (row * depth + column) * 4))
        enter(tile)
        for block in range(blocks):
            product(operand, rows, depth, weight + block * block_bytes, out + block * 64, stride)
        leave()

    return run


def _configuration(rows: int) -> torch.Tensor:
    return torch.tensor(list(tiles.configuration(rows)), dtype=torch.uint8)
