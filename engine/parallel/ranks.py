"""The ranks of a divided model: one process for each device of this machine, joined by torch.distributed.

NCCL joins GPUs, gloo CPUs. Whatever goes between them stays on this machine: they meet in a folder and talk over loopback.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_MACHINE_ALONE = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class RanksDiffer(RuntimeError):
    """Ranks that have to be alike, and aren't. Says what of whom."""


class Ranks:
    """One rank's view of them all. Calls are collective: every rank makes the same ones, in the same order."""

    def __init__(self, rank: int, size: int, device: torch.device, meeting: Path) -> None:
        """Join the others at `meeting`, a file that none of them has made before. Waits for them.

        Raises RanksDiffer where devices are not of one kind.
        """
        self.rank = rank
        self.size = size
        self.device = device
        os.environ.update(_MACHINE_ALONE)
        # We write into peers' memory, but never through a switch's multicast, which needs rights that not every machine gives.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        store = torch._C._distributed_c10d.FileStore(str(meeting), size)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", store=store, rank=rank, world_size=size, device_id=device)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        kinds = self._gathered(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
        for other, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise RanksDiffer(f"device 0 is a {kinds[0]!r}, device {other} a {kind!r}: they have to be alike")

    def close(self) -> None:
        """Leave the others. They leave as well. NCCL waits for captured steps that hold its operations: let go of them before."""
        dist.destroy_process_group()

    def add_up(self, shares: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place where it is contiguous."""
        shares = shares.contiguous()
        dist.all_reduce(shares)
        return shares

    def join(self, columns: Tensor) -> Tensor:
        """All ranks' tensors [..., N], side by side in the order of the ranks: [..., ranks * N]."""
        columns = columns.contiguous()
        parts = [torch.empty_like(columns) for _ in range(self.size)]
        dist.all_gather(parts, columns)
        return torch.cat(parts, dim=-1)

    def hear(self, values: Tensor) -> None:
        """Make everybody's values the leader's."""
        dist.broadcast(values, src=0)

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        found = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found)

    def meet(self) -> None:
        """Until all are here."""
        self.least(0)

    def reach_each_other(self) -> bool:
        """Whether each GPU can write the memory of every other."""
        if self.device.type != "cuda":
            return False
        others = [int(index) for index in self._gathered(str(self.device.index)) if int(index) != self.device.index]
        return bool(self.least(all(torch.cuda.can_device_access_peer(self.device, other) for other in others)))

    def _gathered(self, text: str) -> list[str]:
        """Every rank's text."""
        texts: list[Any] = [None] * self.size
        dist.all_gather_object(texts, text)
        return texts
