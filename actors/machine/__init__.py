"""One machine: NATS server, scheduler and engines as supervised child processes, on loopback, with a made-up password.

`supervisor` is the core, `process` and `shell` are the thin shell around it, `child` is what runs first inside a child,
`programs` says what the children are, `home` keeps the state on disk. `myna up` uses `up`, the SDK uses `embedded`.
"""

from __future__ import annotations

from myna.actors.machine.run import AlreadyRunning, MachineFailed, Plan, embedded, up

__all__ = ["AlreadyRunning", "MachineFailed", "Plan", "embedded", "up"]
