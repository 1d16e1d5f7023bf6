"""A follower: the process of one further device of a divided model. It does what the leader says, and never outlives it.

`python -m myna.engine.parallel.follower --fd N --seat JSON --model …` hears orders over the connected stream socket N. It ends
when the leader says so or is gone, whatever it is waiting for; if it can't go on itself, it says why, and waits for that.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, assert_never

import msgspec
import structlog
import torch

from myna.engine.interface import BatchLimits, StepUnderWay
from myna.engine.parallel import orders
from myna.engine.parallel.ranks import Ranks
from myna.engine.plan import StepPlan


class Seat(msgspec.Struct, frozen=True):
    """A rank's place among them all. `meeting`: the file where they meet."""

    rank: int
    size: int
    device: str
    meeting: str

    def take(self) -> Ranks:
        """Join the others. Waits for them. Raises RanksDiffer."""
        return Ranks(self.rank, self.size, torch.device(self.device), Path(self.meeting))

    def arguments(self, fd: int) -> list[str]:
        """What a follower's command line says of its place, and of the socket to its leader."""
        return ["--fd", str(fd), "--seat", msgspec.json.encode(self).decode()]


class Follows(Protocol):
    """A rank's part of a model, as its follower sees it: see `interface.ModelRunner`."""

    @property
    def ahead(self) -> int: ...  # noqa: D102
    def prepare(self, limits: BatchLimits, *, graphs: bool) -> int: ...  # noqa: D102
    def allocate(self, pages: int, page_size: int) -> None: ...  # noqa: D102
    def copy_page(self, source: int, target: int) -> None: ...  # noqa: D102
    def follow(self, plan: StepPlan) -> StepUnderWay: ...  # noqa: D102
    def release(self) -> None: ...  # noqa: D102


def follow(model: Follows, hear: Callable[[], orders.Order]) -> None:
    """Do what is heard until it is to leave. At most as many steps are under way as at the leader, since memory is reused so."""
    listener = orders.Listener()
    under_way: deque[StepUnderWay] = deque()
    while True:
        match order := hear():
            case orders.Prepare():
                limits = BatchLimits(order.max_sequences, order.step_tokens, order.mixed_tokens, order.ahead_tokens)
                model.prepare(limits, graphs=order.graphs)
            case orders.Allocate(pages, page_size):
                model.allocate(pages, page_size)
            case orders.CopyPage(source, target):
                model.copy_page(source, target)
            case orders.Step():
                under_way.append(model.follow(listener.plan(order)))
                while len(under_way) > model.ahead:
                    under_way.popleft().read()
            case orders.Leave():
                model.release()
                return
            case _:
                assert_never(order)


def serve(options: argparse.Namespace, make: Callable[[Ranks], Follows]) -> int:
    """Be a follower whose part `make` makes. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group; the leader decides
    seat = msgspec.json.decode(options.seat, type=Seat)
    log = structlog.get_logger("myna.engine").bind(device=seat.device)
    channel: Connection[bytes, bytes] = Connection(options.fd)
    heard: SimpleQueue[orders.Order] = SimpleQueue()
    threading.Thread(target=_listen, args=(channel, heard), name="orders", daemon=True).start()
    try:
        ranks = seat.take()
        follow(make(ranks), heard.get)
        ranks.close()
    except Exception as error:  # whatever it is, the ranks are no longer in step
        log.error("a follower can't go on", error=f"{type(error).__name__}: {error}")
        channel.send_bytes(f"device {seat.device}: {type(error).__name__}: {error}".encode())
        threading.Event().wait()  # for the leader's end, which ends this process
    return 0


def _listen(channel: Connection[bytes, bytes], heard: SimpleQueue[orders.Order]) -> None:
    """Pass orders on. With the leader's end this process ends at once: its main thread may be waiting for a GPU that waits for
    another."""
    order: orders.Order | None = None
    while not isinstance(order, orders.Leave):
        try:
            order = orders.decode(channel.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        heard.put(order)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the leader adds to the command line."""
    parser.add_argument("--fd", type=int, required=True, help="the connected stream socket to the leader")
    parser.add_argument("--seat", required=True, help="this rank's place, as JSON")


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a part of the model that the command line names and follow. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="myna.engine.parallel.follower", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache-dir", default=None)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    from myna.engine.loading import load

    return serve(
        options,
        lambda ranks: (
            load(
                options.model, device=str(ranks.device), dtype=options.dtype, cache_dir=options.cache_dir, ranks=ranks
            ).model
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
