"""The wheel and the source distribution: the same bytes each time, whole, and usable in a clean environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


SHIPPED = (".src", ".ci", "actors", "engine", "kernels", "sdk", "deploy", "README.md", "LICENSE", "pyproject.toml")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is shipped, as it is now."""
    for name in SHIPPED:
        source, copy = ROOT / name, tmp_path / "tree" / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    return tmp_path / "tree"


def built(tree: Path, folder: Path) -> dict[str, bytes]:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--outdir", folder, tree]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.timeout(300)
def test_two_builds_are_equal_byte_by_byte_and_the_wheel_works_where_it_is_installed_alone(
    tree: Path, tmp_path: Path
) -> None:
    first, second = built(tree, tmp_path / "1"), built(tree, tmp_path / "2")
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []
    (wheel,) = (tmp_path / "1").glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    for needed in ("py.typed", "actors/asyncapi.json", "actors/gateway/window/static/index.html"):
        assert f"myna/{needed}" in names
    rooms = [tree / room for room in ("actors", "engine", "kernels", "sdk")]
    modules = {f"myna/{file.relative_to(tree)}" for room in rooms for file in room.rglob("*.py")}
    modules -= {"myna/sdk/docs/conf.py"}
    assert {name for name in names if name.endswith(".py")} == modules | {"myna/__init__.py", "myna/__main__.py"}

    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    # Its dependencies are this environment's: to fetch them again would show nothing about the wheel.
    subprocess.run([home / "bin/pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, timeout=120)
    (packages,) = home.glob("lib/python*/site-packages")
    import msgspec

    (packages / "here.pth").write_text(f"{Path(msgspec.__file__).parents[1]}\n")
    code = "import myna; print(myna.__file__); [getattr(myna, n) for n in myna.__all__]"
    answer = subprocess.run([home / "bin/python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.startswith(str(packages))
    version = subprocess.run([home / "bin/myna", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("myna 0.")
