from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import myna


def loaded_by(statement: str) -> dict[str, Any]:
    """Which modules a fresh interpreter has after `statement`."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    return dict.fromkeys(json.loads(output.stdout))


def test_importing_the_package_loads_nothing_of_it() -> None:
    loaded = loaded_by("import myna")
    assert not [m for m in loaded if m.startswith("myna.")]
    assert "torch" not in loaded


def test_importing_the_engine_loads_no_sdk_and_no_network() -> None:
    loaded = loaded_by("import myna.engine")
    assert not [m for m in loaded if m.startswith(("myna.sdk", "myna.actors", "nats"))]


def test_every_public_name_loads_without_torch_and_without_the_engine() -> None:
    loaded = loaded_by("import myna\nfor name in myna.__all__: getattr(myna, name)\nimport myna.sdk.serving")
    assert "myna.sdk.session" in loaded
    assert not [m for m in loaded if m.split(".")[0] in ("torch", "triton", "transformers", "numpy")]
    assert not [m for m in loaded if m.startswith(("myna.engine", "myna.kernels"))]


def test_public_names_are_listed_and_unknown_ones_are_refused() -> None:
    assert set(myna.__all__) <= set(dir(myna))
    for name in myna.__all__:
        assert getattr(myna, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = myna.nonsense


def test_type_checkers_see_the_same_names() -> None:
    import inspect
    import re

    declared = set(re.findall(r"    from [\w.]+ import (\w+) as \1", inspect.getsource(myna)))
    assert declared == set(myna.__all__)
