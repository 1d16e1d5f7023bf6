"""The state of `myna up` on disk: who runs here, and where; with the keys beside it (`tenants.keyring`), its owner's alone.

`MYNA_HOME/machine.json` (mode 0600) is how `myna status`, agents and the SDK find the machine. `MYNA_HOME/machine.lock`
is locked for as long as the machine runs; the kernel lets go of it however the machine ends, so a stale file is never
believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from myna.actors.config import Address, ConfigError, Settings, Tls, with_address
from myna.actors.messages import Tenant
from myna.actors.tenants.keyring import address_of, tenant_file
from myna.actors.tenants.rights import Role


class AlreadyRunning(Exception):
    """Another machine runs in this home."""


@dataclass(frozen=True, slots=True)
class Info:
    """A running machine: its supervisor's process id, where it listens, by which certificates it is known, and where its gateway
    listens (empty without one)."""

    pid: int
    url: str
    ca: Path | None = None
    gateway: str = ""

    @property
    def tls(self) -> Tls | None:
        """How connections to it are encrypted."""
        return None if self.ca is None else Tls(self.ca)


def info_path(home: Path) -> Path:
    """The file that tells how to reach the machine."""
    return home / "machine.json"


def make_private(folder: Path) -> Path:
    """Create `folder`, if it isn't there, and close it to everybody else."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the home's lock. Raises `AlreadyRunning`, which says who holds it."""
    with (make_private(home) / "machine.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(_who(home)) from None
        info_path(home).unlink(missing_ok=True)  # of a machine that was killed
        yield


def _who(home: Path) -> str:
    info = _read(home)
    who = "another `myna up` that is just starting" if info is None else f"process {info.pid}, at {info.url}"
    return f"a machine runs already in {home}: {who}. Use it, stop it, or set MYNA_HOME to another folder"


@contextlib.contextmanager
def published(home: Path, info: Info) -> Iterator[None]:
    """Let others find the machine, inside the `with` block."""
    path = info_path(home)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(info, enc_hook=str))
    new.replace(path)  # a reader sees the whole file or none
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find(home: Path) -> Info | None:
    """The machine that runs in `home`, None if there is none: a file that a killed machine left is ignored."""
    info = _read(home)
    return info if info is not None and _is_alive(info.pid) and _is_locked(home) else None


def located(settings: Settings, role: Role | None = None) -> Settings:
    """`settings`, with the address of the running machine if they have none and there is one: as their tenant, or as a role.

    Raises `ConfigError` where the machine has no such tenant.
    """
    if settings.address is not None:
        return settings
    info = find(settings.home)
    if info is None:
        return settings
    if role is not None:
        return with_address(settings, address_of(settings.home, info.url, role, info.tls))
    credentials = tenant_file(settings.home, Tenant(settings.tenant))
    if not credentials.exists():
        here = f"the machine at {info.url} has no tenant {settings.tenant!r}"
        raise ConfigError(f"{here}: make it one with `myna tenants create {settings.tenant}`")
    return with_address(settings, Address(info.url, credentials=credentials, tls=info.tls))


def _read(home: Path) -> Info | None:
    try:
        return msgspec.json.decode(info_path(home).read_bytes(), type=Info, dec_hook=lambda kind, text: kind(text))
    except (OSError, msgspec.MsgspecError):
        return None


def _is_alive(pid: int) -> bool:
    """Asked first: to try a lock that nobody holds could get in the way of a machine that is just starting."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_locked(home: Path) -> bool:
    try:
        with (home / "machine.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
