"""What a launch may use on a device: decided once.

Law: what differs from step to step compiles no kernel anew, which takes a second in the middle of somebody's output. Triton
compiles one for numbers that 16 divides, another for those that it doesn't, and so with addresses: numbers of rows are exempt
from that (`do_not_specialize`), and inputs lie at multiples of 16 bytes.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def overlaps(device: torch.device) -> bool:
    """Whether a kernel may begin before the one before it has ended (programmatic dependent launch): from sm_90 on.

    Every kernel that is launched so waits for the one before (`gdc_wait`) ahead of the first read of what others write.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU. Of a CPU, for the interpreter: as many as a test can wait for."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
