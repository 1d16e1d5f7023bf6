"""What ranks do together between the parts of a layer, on GPUs: small steps through each other's memory, large ones by NCCL.

Where GPUs can't reach each other's memory, NCCL does all of it. So it does for the second group of a process's life: torch shares
memory once for a group's name, and every process's first group has the same.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric_memory

from myna.engine.parallel.ranks import Ranks
from myna.kernels.exchange import Exchange, MailboxShape
from myna.kernels.fused import rms_norm


class Sums:
    """Sums and joins over the ranks. `exchange`: the quick way, for as many rows as it takes."""

    def __init__(self, ranks: Ranks, exchange: Exchange | None) -> None:
        self._ranks = ranks
        self._exchange = exchange

    @classmethod
    def open(cls, ranks: Ranks, *, rows: int, size: int, logit_rows: int, columns: int, dtype: torch.dtype) -> Sums:
        """With an exchange, if GPUs can reach each other, of up to `rows` rows of `size` numbers and `logit_rows` rows of logits.

        Each rank has `columns` of these."""
        shape = MailboxShape(ranks.size, rows, size, logit_rows, columns, dtype)
        return cls(ranks, _exchange(ranks, shape) if ranks.reach_each_other() and _is_first(ranks) else None)

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor, *, one_plus: bool, rows: Tensor | None
    ) -> Tensor:
        """`fused.rms_norm` of the sum over all ranks' `x` [T, N] or [S, T, N], `residual` [T, N] added to it."""
        if self._exchange is not None and self._exchange.takes(x.shape[-2] if rows is None else len(rows)):
            return self._exchange.sum_and_norm(x, weight, eps, residual, one_plus=one_plus, rows=rows)
        share = x.sum(0).to(weight.dtype) if x.dim() == 3 else x
        return rms_norm(self.of(share), weight, eps, residual, one_plus=one_plus, rows=rows)

    def of(self, share: Tensor) -> Tensor:
        """The sum over all ranks' tensors."""
        return self._ranks.add_up(share)

    def join(self, columns: Tensor) -> Tensor:
        """All ranks' columns of logits [R, V], side by side. Good until the next step."""
        if self._exchange is not None and self._exchange.joins(len(columns)):
            return self._exchange.join(columns)
        return self._ranks.join(columns)


def _is_first(ranks: Ranks) -> bool:
    """Whether no rank has shared memory under the group's name before."""
    return bool(ranks.least(not symmetric_memory.is_symm_mem_enabled_for_group(_group().group_name)))


def _group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None, "the ranks have met"
    return group


def _exchange(ranks: Ranks, shape: MailboxShape) -> Exchange:
    mailbox = symmetric_memory.empty(shape.bytes, dtype=torch.uint8, device=ranks.device)
    mailbox.zero_()
    handle = symmetric_memory.rendezvous(mailbox, _group())
    torch.cuda.synchronize(ranks.device)
    ranks.meet()  # nobody writes before all are zeroed
    return Exchange(shape, ranks.rank, mailbox, list(handle.buffer_ptrs), keep=handle)
