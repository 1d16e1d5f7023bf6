"""Ports for servers that tests start and must name beforehand.

Law: they lie below those that a system hands out by itself (from 32,768 on Linux), so that nobody gets one between its choice
and its use, or while its server is down; and test processes that run side by side choose from different ones.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import islice

LOWEST, HIGHEST, BLOCK = 10_000, 32_000, 50


def _candidates() -> Iterator[int]:
    port = LOWEST + os.getpid() * BLOCK % (HIGHEST - LOWEST)
    while True:
        yield port
        port = LOWEST if port == HIGHEST else port + 1


_ahead = _candidates()


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, none of them given before by this process until all others have been."""
    return list(islice(filter(_is_free, _ahead), count))


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
