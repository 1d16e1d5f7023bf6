from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty(tmp_path: Path) -> dict[str, str]:
    """An environment whose home has no settings file."""
    return {"MYNA_HOME": str(tmp_path)}
