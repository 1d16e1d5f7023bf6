"""Between host and device nothing may wait unless it says so: a copy that blocks would let the GPU run dry.

On a GPU both ways go through pinned memory in stream order; on a CPU they are what they seem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def send(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor on a device, in stream order."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class Moment:
    """When everything that was begun on a device so far is over."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._event.record()

    def wait(self) -> None:
        """Until then."""
        if self._event is not None:
            self._event.synchronize()


class Fetched:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = tensors
        device = tensors[0].device
        if device.type != "cpu":
            self._copies = tuple(torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors)
            for copy, each in zip(self._copies, tensors, strict=True):
                copy.copy_(each, non_blocking=True)
        self._arrived = Moment(device)

    def wait(self) -> list[Any]:
        """The tensors as (nested) lists, once they are there."""
        self._arrived.wait()
        return [copy.tolist() for copy in self._copies]
