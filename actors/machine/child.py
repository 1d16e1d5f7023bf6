"""What runs first in a supervised process: it ties its life to its parent's, then becomes the module that it is to run.

    python -m myna.actors.machine PARENT_PID MODULE [ARGUMENT ...]

On Linux the kernel ends the child (SIGKILL) when the thread that started it is gone, even if the child hangs:
PR_SET_PDEATHSIG. A pipe would be inherited by whatever else the parent forks, and a thread that watches can be starved.
Other systems have nothing alike: there the children of a supervisor that was killed outright stay.

A module says that it does its work with `ready()`; run by hand, without a supervisor, that does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys

READY_VARIABLE = "MYNA_READY_FD"
"""Names the file descriptor on which `ready` speaks. Plumbing between parent and child, not a setting."""

_PR_SET_PDEATHSIG = 1


def ready() -> None:
    """Tell the supervisor, if there is one, that this process does its work. Later calls do nothing."""
    descriptor = os.environ.pop(READY_VARIABLE, None)
    if descriptor is None:
        return
    with contextlib.suppress(BrokenPipeError):  # the supervisor is gone, and the kernel is about to end us
        os.write(int(descriptor), b"ready\n")
    os.close(int(descriptor))


def tie_to_parent(parent: int) -> None:
    """Make this process end when its parent, process `parent`, does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Become the module that the command line names."""
    _, parent, module, *arguments = sys.argv
    tie_to_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
