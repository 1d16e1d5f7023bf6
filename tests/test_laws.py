from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("actors", "engine", "kernels", "sdk")
HEAVY = {"torch", "transformers", "triton", "numpy", "safetensors", "matplotlib"}

ENVIRONMENT_READERS = {
    "actors/config/reading.py",  # with the next, the one place for settings
    "actors/config/environment.py",
    "actors/machine/child.py",  # plumbing between a supervisor and its child
    "actors/server.py",  # where the nats-server binary is
    "engine/parallel/ranks.py",  # torch.distributed is told only so to stay on this machine
    "engine/loading.py",  # the cache folder of an engine that is used without the rest of Myna
}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules, and ours in full, that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd="/"
    )
    names = answer.stdout.split()
    return {name for name in names if name.startswith("myna")} | {name.partition(".")[0] for name in names}


def modules(*parts: str) -> list[str]:
    """Our modules in a folder, but for those that are a process's main."""
    files = sorted(Path(ROOT, *parts).rglob("*.py"))
    dotted = [".".join(("myna", *file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    return [name.removesuffix(".__init__") for name in dotted if not name.endswith("__main__")]


@pytest.mark.parametrize("room", ["sdk", "actors"])
def test_a_client_and_every_actor_but_the_engine_host_load_no_torch(room: str) -> None:
    names = [name for name in modules(room) if "engine_host" not in name and ".examples" not in name]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert loaded & HEAVY == set()
    assert not [name for name in loaded if name.startswith(("myna.engine", "myna.kernels"))]


def test_importing_myna_is_light() -> None:
    assert loaded_by("import myna") & HEAVY == set()


def test_importing_the_engine_loads_neither_the_sdk_nor_an_actor_nor_nats() -> None:
    names = [name for name in modules("engine") if name.count(".") == 2]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert "nats" not in loaded
    assert not [name for name in loaded if name.startswith(("myna.sdk", "myna.actors"))]


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = grimp.build_graph("myna", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a cycle of imports: {' <- '.join(error.args[1])}")


def test_the_import_contracts_hold() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert " 0 broken" in answer.stdout


def test_the_environment_is_read_in_few_known_places() -> None:
    readers = {
        str(file.relative_to(ROOT))
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if any(word in file.read_text() for word in ("os.environ", "os.getenv"))
    }
    assert readers <= ENVIRONMENT_READERS
