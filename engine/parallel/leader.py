"""The leader's side of a divided model: it starts a process for each further device, and tells them each thing before it does it.

To the engine it is a model like any other. Nothing comes back from a follower but its end: then this process ends at once, since
a GPU that waits for another can't be called back. Its host knows what to do about an engine that died.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import structlog

from myna.engine.errors import ModelRefused
from myna.engine.interface import BatchLimits, StepUnderWay
from myna.engine.loading import load, resolve_device
from myna.engine.parallel import orders
from myna.engine.parallel.follower import Seat
from myna.engine.parallel.ranks import Ranks, RanksDiffer
from myna.engine.plan import StepPlan
from myna.engine.sampler import Row

if TYPE_CHECKING:
    from myna.engine.gpu_model import GpuModel
    from myna.engine.model import Model

_GRACE = 5.0
"""Seconds that the leader has to say itself what is wrong, where a follower has found something wrong while loading."""

_PATIENCE = 10.0
"""Seconds that followers have to leave."""

Loss = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedDivided:
    """As `loading.Loaded`, over several devices."""

    model: DividedModel
    tokenizer: Any


@contextmanager
def load_divided(
    reference: str | Path,
    devices: Sequence[str],
    *,
    dtype: str = "auto",
    cache_dir: str | Path | None = None,
    threads: int | None = None,
) -> Iterator[LoadedDivided]:
    """Load a model divided among devices of one kind, the first of which is this process's. It lives as long as the context.

    `threads`: of torch, in each process. The rest is as in `loading.load`. Raises `ModelRefused`.
    """
    name = str(reference)
    places = [resolve_device(name, device) for device in devices]
    if len({place.type for place in places}) > 1:
        raise ModelRefused(name, f"devices {', '.join(devices)} are not of one kind")
    if places[0].type == "cuda" and len(set(places)) < len(places):
        raise ModelRefused(name, f"devices {', '.join(devices)} name one twice")
    options = {"--model": name, "--dtype": dtype, "--cache-dir": cache_dir, "--threads": threads}
    given = [str(text) for option, value in options.items() if value is not None for text in (option, value)]
    command = [sys.executable, "-P", "-m", "myna.engine.parallel.follower", *given]
    with gather([str(place) for place in places], command, name) as group:
        loaded = load(name, device=devices[0], dtype=dtype, cache_dir=cache_dir, ranks=group.ranks)
        yield LoadedDivided(DividedModel(loaded.model, group), loaded.tokenizer)
        loaded.model.release()


@contextmanager
def gather(devices: Sequence[str], command: Sequence[str], name: str, on_loss: Loss | None = None) -> Iterator[Group]:
    """Start a follower for each device but the first, and join them. They leave when the context ends.

    `command` starts one; `follower.add_arguments` says what is added. `on_loss`: what to do when one is lost, told why; by
    default this process ends. Raises `ModelRefused`, about the model `name`.
    """
    with TemporaryDirectory(prefix="myna-ranks-") as folder:
        meeting = Path(folder) / "meeting"
        seats = [Seat(rank, len(devices), device, str(meeting)) for rank, device in enumerate(devices)]
        followers = _Followers(command, seats[1:], on_loss or _end)
        try:
            ranks = seats[0].take()
            yield Group(ranks, followers)
            followers.dismiss()
            ranks.close()
        except RanksDiffer as error:
            raise ModelRefused(name, str(error)) from error
        finally:
            followers.close()


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks as the leader sees them, and how it tells its followers what to do."""

    ranks: Ranks
    followers: _Followers


class DividedModel:
    """A model divided among several devices; implements `interface.ModelRunner`. `model`: the leader's part."""

    def __init__(self, model: Model | GpuModel, group: Group) -> None:
        self.spec = replace(model.spec, device=",".join(group.followers.devices(model.spec.device)))
        self.suits = model.suits
        self.ahead = model.ahead
        self._model = model
        self._followers = group.followers
        self._teller = orders.Teller()

    def prepare(self, limits: BatchLimits, *, graphs: bool) -> int:
        """As `ModelRunner.prepare`; the bytes are those of all devices."""
        self._followers.tell(
            orders.Prepare(limits.max_sequences, limits.step_tokens, limits.mixed_tokens, limits.ahead_tokens, graphs)
        )
        return self._model.prepare(limits, graphs=graphs)

    def allocate(self, pages: int, page_size: int) -> None:
        """As `ModelRunner.allocate`: each device holds its part of every page."""
        self._followers.tell(orders.Allocate(pages, page_size))
        self._model.allocate(pages, page_size)

    def copy_page(self, source: int, target: int) -> None:
        """As `ModelRunner.copy_page`."""
        self._followers.tell(orders.CopyPage(source, target))
        self._model.copy_page(source, target)

    def begin(self, plan: StepPlan, rows: Sequence[Row]) -> StepUnderWay:
        """As `ModelRunner.begin`; but a step that fails here was begun elsewhere, and ends the engine."""
        self._followers.tell(self._teller.step(plan))
        try:
            return self._model.begin(plan, rows)
        except Exception as error:
            self._followers.lose(f"the leader can't do a step that its followers do: {type(error).__name__}: {error}")
            raise


class _Followers:
    """The processes of the other ranks."""

    def __init__(self, command: Sequence[str], seats: Sequence[Seat], on_loss: Loss) -> None:
        self._on_loss = on_loss
        self._leaving = threading.Event()
        self._seats = seats
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Connection[bytes, bytes]] = []
        for seat in seats:
            ours, theirs = socket.socketpair()
            with theirs:
                self._processes.append(
                    subprocess.Popen(
                        [*command, *seat.arguments(theirs.fileno())],
                        pass_fds=(theirs.fileno(),),
                        stdin=subprocess.DEVNULL,
                    )
                )
            self._channels.append(Connection(ours.detach()))
        self._watch = threading.Thread(target=self._watch_them, name="followers", daemon=True)
        self._watch.start()

    def devices(self, first: str) -> list[str]:
        """All devices, the leader's `first`."""
        return [first, *(seat.device for seat in self._seats)]

    def tell(self, order: orders.Order) -> None:
        """Tell all of them. One that is gone is noticed elsewhere."""
        data = orders.encode(order)
        for channel in self._channels:
            with contextlib.suppress(OSError):
                channel.send_bytes(data)

    def lose(self, reason: str) -> None:
        """The ranks can't go on together."""
        if not self._leaving.is_set():
            self._on_loss(reason)

    def dismiss(self) -> None:
        """Have them leave when they have done what they were told."""
        self._leaving.set()
        self.tell(orders.Leave())

    def close(self) -> None:
        """Have them leave whatever they do; those that don't are killed."""
        self._leaving.set()
        for channel in self._channels:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(channel.fileno())) as ours:
                ours.shutdown(socket.SHUT_WR)
        for process in self._processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._watch.join()
        for channel in self._channels:
            channel.close()

    def _watch_them(self) -> None:
        """Until one of them is gone, or says that it can't go on."""
        (gone, *_) = wait(self._channels)
        assert isinstance(gone, Connection)
        try:
            reason = gone.recv_bytes().decode()
            self._leaving.wait(_GRACE)  # mostly the leader has found the same, and says it better
        except (EOFError, OSError):
            reason = "a follower's process has ended"
        self.lose(reason)


def _end(reason: str) -> None:
    """End this process, whatever its threads are waiting for."""
    structlog.get_logger("myna.engine").error("a device is lost, and the engine with it", reason=reason)
    sys.stderr.flush()
    os._exit(1)
