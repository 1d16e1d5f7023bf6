from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from myna.actors.machine.process import ModuleProgram

CHILD = """
import os, pathlib, signal, sys, threading
from myna.actors.machine.child import ready
{before}
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
ready()
print("at work", flush=True)
ended.wait()
{after}
"""

MakeChild = Callable[..., ModuleProgram]


@pytest.fixture
def make_child(tmp_path: Path) -> MakeChild:
    """Make a program out of a few lines of Python, which run before it is ready and when it was asked to end."""

    def make(name: str, *, before: str = "", after: str = "") -> ModuleProgram:
        (tmp_path / f"{name}.py").write_text(CHILD.format(before=before, after=after))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        return ModuleProgram(name, environment=lambda: environment, log=tmp_path / f"{name}.log")

    return make
