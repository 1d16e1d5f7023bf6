from __future__ import annotations

import os

# Before torch is loaded: on a busy machine spinning OpenMP threads make small parallel loops 20 times slower (see engine_host).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

pytest_plugins = ["tests.lanes", "tests.kernels.processes"]
