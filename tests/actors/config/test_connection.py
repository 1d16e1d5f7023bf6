from __future__ import annotations

import pytest

from myna.actors import config
from myna.actors.config import ConfigError


async def test_without_an_address_there_is_nothing_to_connect_to(empty: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="set MYNA_URL, or start one with `myna up`"):
        await config.connect_bus(config.read(empty), "test")
