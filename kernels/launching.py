"""What a launch may use on a device: decided once."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def overlaps(device: torch.device) -> bool:
    """Whether a kernel may begin before the one before it has ended (programmatic dependent launch): from sm_90 on.

    Every kernel that is launched so waits for the one before (`gdc_wait`) ahead of the first read of what others write.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
