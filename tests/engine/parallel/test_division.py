from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from myna.engine.errors import ModelRefused
from myna.engine.parallel.division import Cut, divide
from tests.engine import tiny_models


class Threads:
    """Ranks that are threads: what each brings is there when all have brought it."""

    def __init__(self, rank: int, size: int, table: Any) -> None:
        self.rank, self.size, self._table = rank, size, table

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self._table.brought[self.rank] = tensor
        self._table.barrier.wait(20)
        brought = list(self._table.brought)
        self._table.barrier.wait(20)
        return brought

    def add_up(self, shares: Tensor) -> Tensor:
        return torch.stack(self._all(shares)).sum(0)

    def join(self, columns: Tensor) -> Tensor:
        return torch.cat(self._all(columns), dim=-1)


def ranks(size: int) -> list[Any]:
    from threading import Barrier

    table = SimpleNamespace(brought=[None] * size, barrier=Barrier(size))
    return [Threads(rank, size, table) for rank in range(size)]


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", HEADS),
        ("llama", {**HEADS, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {**HEADS, "vocab_size": 161}),
        ("gemma2", HEADS),
        ("olmo2", HEADS),
        ("phi3", HEADS),
    ],
    ids=["llama", "with biases", "an odd vocabulary", "gemma2", "norms over all heads", "merged projections"],
)
@pytest.mark.parametrize("size", [2, 4])
def test_a_divided_network_computes_what_the_whole_one_does(
    architecture: str, changes: dict[str, Any], size: int
) -> None:
    tokens = torch.randint(3, 150, (1, 11), generator=torch.Generator().manual_seed(1))

    def logits_of(network: Any, rank: Any = None) -> Tensor:
        whole = sum(parameter.numel() for parameter in network.parameters())
        if rank is not None:
            divide(network, architecture, rank)
            assert sum(parameter.numel() for parameter in network.parameters()) < 0.9 * whole
        with torch.no_grad():
            logits: Tensor = network(input_ids=tokens).logits
        return logits

    networks = [tiny_models.build(architecture, **changes) for _ in range(size + 1)]
    expected = logits_of(networks.pop())
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(logits_of, networks, ranks(size)))
    for logits in found:
        assert float((logits - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "changes", "size", "reason"),
    [
        ("llama", {}, 4, "its 2 KV heads can't be divided among 4 devices"),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48}, 4, "its 6 attention heads"),
        ("llama", {"intermediate_size": 51}, 2, r"the 51 numbers of model.layers.0.mlp.gate_proj can't be divided"),
        ("mixtral", {}, 2, "which isn't supported: use one device"),
        ("gpt2", {}, 2, "its configuration has no tp_plan"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_its_reason(
    architecture: str, changes: dict[str, Any], size: int, reason: str
) -> None:
    with pytest.raises(ModelRefused, match=reason):
        divide(tiny_models.build(architecture, **changes), architecture, ranks(size)[0])


def test_an_odd_vocabulary_is_computed_whole_by_all() -> None:
    network: Any = tiny_models.build("llama", vocab_size=161)
    division = divide(network, "llama", ranks(2)[1])
    assert division.of("lm_head") is None
    assert network.lm_head.out_features == 161
    assert division.of("model.layers.1.mlp.down_proj") is Cut.ROWS
    assert type(network.model.embed_tokens) is nn.Embedding
