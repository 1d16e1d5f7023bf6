"""The ledger on disk: one small file, written anew when something was spent, at most once in `EVERY` seconds, and at the end.

Law: books that can't be written are a warning, not an error: budgets then hold for as long as the process lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from myna.actors.endpoints.budget import Entry, Ledger
from myna.actors.endpoints.settings import Budget

log = structlog.get_logger(__name__)

EVERY = 1.0
"""Seconds between two writings: what a killed process spent since the last one is forgotten."""


class Books:
    """A ledger that outlives its process."""

    def __init__(self, path: Path, budgets: Sequence[Budget]) -> None:
        self._path = path
        self._told = False
        self.ledger = Ledger(budgets, _read(path))

    async def keep(self) -> None:
        """Write the books whenever they have changed, until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            if self.ledger.changed:
                data = self._data()
                await asyncio.to_thread(self._write, data)

    def close(self) -> None:
        """Write what has changed since."""
        if self.ledger.changed:
            self._write(self._data())

    def _data(self) -> bytes:
        return msgspec.json.encode(self.ledger.written(time.time()))

    def _write(self, data: bytes) -> None:
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(data)
            new.replace(self._path)
        except OSError as error:
            if not self._told:
                log.warning("what was spent can't be written down", path=str(self._path), reason=error.strerror)
            self._told = True


def _read(path: Path) -> dict[str, Entry]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Entry])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("what was spent before can't be read: budgets begin anew", path=str(path), reason=str(error))
        return {}
