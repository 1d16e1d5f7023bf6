"""How a transformers network is divided: its own `tp_plan` says which modules are cut by columns and which by rows.

A module cut by columns computes some of the heads, of the MLP's inner numbers or of the vocabulary; one cut by rows takes them
in, and its outputs are shares of a sum. Each rank keeps its part of the weights and nothing of the rest. What a plan doesn't
name, or names as replicated, every rank computes whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from myna.engine.errors import ModelRefused
from myna.engine.parallel.ranks import Ranks


class Cut(StrEnum):
    """transformers' names of what we know how to do. The last two belong to modules between which all ranks know everything."""

    COLUMNS = "colwise"
    ROWS = "rowwise"
    COLUMNS_JOINED = "colwise_gather_output"
    ROWS_OF_WHOLE = "rowwise_split_input"


_OLDER = {"colwise_rep": Cut.COLUMNS_JOINED, "rowwise_rep": Cut.ROWS_OF_WHOLE}
_WHOLE = re.compile("replicate|sequence_parallel|embedding")  # an embedding is looked up, not computed


@dataclass(frozen=True)
class Division:
    """A divided network: which modules are cut, by their full names, and among whom."""

    ranks: Ranks
    cuts: Mapping[str, Cut]

    def of(self, name: str) -> Cut | None:
        """How a module is cut; None where every rank has the whole of it."""
        return self.cuts.get(name)


@torch.no_grad()
def divide(network: Any, name: str, ranks: Ranks) -> Division:
    """Cut a network to this rank's part, in place; its own forward then gives what the whole one does.

    Raises `ModelRefused`, naming the module, where it can't be divided so.
    """
    styles = _styles(network, name)
    _expect_whole_heads(network.config, name, ranks.size)
    cuts: dict[str, Cut] = {}
    for path, module, style in styles:
        cut = _cut_of(name, path, style)
        if cut is None:
            continue
        if type(module) is not nn.Linear:
            raise ModelRefused(
                name, f"module {path} is a {type(module).__name__}, which can't be divided among devices"
            )
        numbers = module.out_features if cut in (Cut.COLUMNS, Cut.COLUMNS_JOINED) else module.in_features
        if numbers % ranks.size:
            if cut is Cut.COLUMNS_JOINED:  # an odd vocabulary: computed whole by all
                continue
            raise ModelRefused(name, f"the {numbers} numbers of {path} can't be divided among {ranks.size} devices")
        _cut(module, cut, ranks)
        cuts[path] = cut
    return Division(ranks, cuts)


def fits_fusing(network: Any, division: Division) -> bool:
    """Whether every layer of a network that `fuse.py` knows is cut inside of attention and inside of its MLP."""
    prefix = f"{network.base_model_prefix}.layers"
    wanted = {f"self_attn.{name}_proj": Cut.COLUMNS for name in "qkv"} | {"self_attn.o_proj": Cut.ROWS}
    wanted |= {"mlp.gate_proj": Cut.COLUMNS, "mlp.up_proj": Cut.COLUMNS, "mlp.down_proj": Cut.ROWS}
    return all(
        division.of(f"{prefix}.{index}.{name}") is cut
        for index in range(len(network.base_model.layers))
        for name, cut in wanted.items()
    )


def _styles(network: Any, name: str) -> list[tuple[str, Any, str]]:
    """The modules that the network's plan names, with the plan's word for each."""
    prefix = network.base_model_prefix
    plan = {f"{prefix}.{key}": style for key, style in (network.config.base_model_tp_plan or {}).items()}
    if not plan:
        raise ModelRefused(name, "its configuration has no tp_plan, which says how to divide it among devices")
    plan |= dict(type(network)._tp_plan or {})
    found = {re.compile(re.escape(key).replace(r"\*", "[0-9]+")): style for key, style in plan.items()}
    return [
        (path, module, style) for path, module in _named(network) for key, style in found.items() if key.fullmatch(path)
    ]


def _named(network: Any) -> Iterator[tuple[str, Any]]:
    """Modules and parameters by name: a plan may name either."""
    yield from network.named_modules()
    yield from network.named_parameters()


def _cut_of(name: str, path: str, style: str) -> Cut | None:
    if _WHOLE.match(style):
        return None
    try:
        return _OLDER.get(style) or Cut(style)
    except ValueError:
        raise ModelRefused(
            name, f"{path} would be divided by {style!r}, which isn't supported: use one device"
        ) from None


def _expect_whole_heads(config: Any, name: str, size: int) -> None:
    """A head is on one device."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    for count, what in ((heads, "attention heads"), (kv_heads, "KV heads")):
        if count % size:
            raise ModelRefused(name, f"its {count} {what} can't be divided among {size} devices")


def _cut(module: nn.Linear, cut: Cut, ranks: Ranks) -> None:
    """Leave a linear module its part, and have its forward do what belongs to it."""
    match cut:
        case Cut.COLUMNS | Cut.COLUMNS_JOINED:
            module.out_features //= ranks.size
            module.weight = _part(module.weight, 0, ranks)
            if module.bias is not None:
                module.bias = _part(module.bias, 0, ranks)
            if cut is Cut.COLUMNS_JOINED:
                module.register_forward_hook(lambda _, __, output: ranks.join(output))
        case Cut.ROWS | Cut.ROWS_OF_WHOLE:
            module.in_features //= ranks.size
            module.weight = _part(module.weight, 1, ranks)
            if module.bias is not None and ranks.rank:  # added once
                module.register_parameter("bias", None)
            if cut is Cut.ROWS_OF_WHOLE:
                module.register_forward_pre_hook(lambda _, inputs: (_slice(inputs[0], -1, ranks),))
            module.register_forward_hook(lambda _, __, output: ranks.add_up(output))


def _part(parameter: Tensor, dimension: int, ranks: Ranks) -> nn.Parameter:
    """This rank's part of a parameter, in memory of its own, so that the whole can go."""
    return nn.Parameter(_slice(parameter.data, dimension, ranks).clone(), requires_grad=False)


def _slice(whole: Tensor, dimension: int, ranks: Ranks) -> Tensor:
    return whole.chunk(ranks.size, dimension)[ranks.rank]
