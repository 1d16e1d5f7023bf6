"""One rank's side of an exchange, in a process of its own; mailboxes are files that all ranks map into their memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.kernels.fused_runs import difference

SIZE, COLUMNS, MOST = 48, 10, 9
CALLS = [(1, 3, False), (1, 9, False), (2, 3, False), (4, 1, False), (1, 5, True), (2, 9, False), (1, 1, False)]
"""Parts, rows, and whether only some of the rows are wanted, of calls that follow one another."""


def _random(shape: tuple[int, ...], *seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(hash(seed))
    return torch.randn(shape, generator=generator)


def exchange_side(rank: int, ranks: int, folder: Path) -> tuple[float, list[list[float]]]:
    """The largest error against a sum and norm in float64, and what the rank's outputs are, in bits that can be compared."""
    from myna.kernels.exchange import Exchange, MailboxShape

    shape = MailboxShape(ranks, MOST, SIZE, MOST, COLUMNS, torch.float32)
    boxes = [
        torch.from_file(str(folder / f"{each}"), shared=True, size=shape.bytes, dtype=torch.uint8)
        for each in range(ranks)
    ]
    exchange = Exchange(shape, rank, boxes[rank], [box.data_ptr() for box in boxes])
    worst, made = 0.0, []
    for call, (parts, count, chosen) in enumerate(CALLS):
        shares = [_random((parts, count, SIZE), call, each) for each in range(ranks)]
        residual, weight = _random((count, SIZE), call), _random((SIZE,), call, call)
        rows = torch.tensor([count - 1, 0, 0], dtype=torch.int32) if chosen else None
        total = (torch.stack([share.double().sum(0) for share in shares]).sum(0) + residual.double()).float()
        exact = total.double() if rows is None else total.double()[rows]
        truth = exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight.double() + (call % 2))
        own, before = shares[rank] if parts > 1 else shares[rank][0], residual.clone()
        output = exchange.sum_and_norm(own, weight, 1e-5, residual, one_plus=bool(call % 2), rows=rows)
        errors = [difference(output, truth), difference(residual, before if chosen else total)]
        logits = [_random((count, COLUMNS), call, each, 1) for each in range(ranks)]
        joined = exchange.join(logits[rank])
        assert torch.equal(joined, torch.cat(logits, dim=1))
        worst = max(worst, *errors)
        made.append(output.flatten().tolist())
    return worst, made
