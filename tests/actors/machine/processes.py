"""Looking at processes from outside, without sleeping: through /proc and process file descriptors."""

from __future__ import annotations

import os
import select
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Process id and command line of every living descendant of `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it has just ended
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: dict[int, str] = {}
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= {child: command(child) for child in level}
    return found


def command(pid: int) -> str:
    """Its command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def ended(pid: int, seconds: float = 20.0) -> bool:
    """Wait until a process has ended, at most so long. Says whether it has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports on which a process takes TCP connections; IPv6 addresses in the kernel's hexadecimal."""
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    found: set[tuple[str, int]] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            if state == "0A" and f"socket:[{inode}]" in sockets:
                shown = ".".join(str(n) for n in reversed(bytes.fromhex(address))) if table == "tcp" else address
                found.add((shown, int(port, 16)))
    return found
