"""`myna drain`, `cordon` and `uncordon`: what an operator tells a worker, through the scheduler that leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from myna.sdk.cli_parts import Told, located, request

if TYPE_CHECKING:
    from myna.actors.messages import CordonRequest, DrainRequest, WorkerStatus
    from myna.actors.subjects import Question


def _of_a_worker(command: Callable[..., None]) -> Any:
    timeout = click.FloatRange(0.1, 600)
    command = click.option("--timeout", type=timeout, default=5.0, show_default=True, help="Seconds to wait.")(command)
    return click.command()(click.argument("worker")(command))


@_of_a_worker
def drain(worker: str, timeout: float) -> None:
    """Have WORKER take no more calls, finish what it runs, and leave."""
    from myna.actors.messages import DrainRequest
    from myna.actors.subjects import Question

    found = _tell(Question.DRAIN, DrainRequest(worker=_named(worker)), timeout)
    click.echo(f"{worker} drains: {found.running} calls still run there")


@_of_a_worker
def cordon(worker: str, timeout: float) -> None:
    """Have WORKER take no more calls, finish what it runs, and stay until `myna uncordon`."""
    from myna.actors.messages import CordonRequest
    from myna.actors.subjects import Question

    found = _tell(Question.CORDON, CordonRequest(worker=_named(worker)), timeout)
    click.echo(f"{worker} is cordoned: {found.running} calls still run there")


@_of_a_worker
def uncordon(worker: str, timeout: float) -> None:
    """Have WORKER take calls again."""
    from myna.actors.messages import CordonRequest
    from myna.actors.subjects import Question

    _tell(Question.CORDON, CordonRequest(worker=_named(worker), lift=True), timeout)
    click.echo(f"{worker} takes calls again")


def _named(worker: str) -> str:
    from myna.actors import subjects

    try:
        return subjects.token(worker, "worker")
    except subjects.InvalidName as error:
        raise Told(str(error)) from None


def _tell(what: Question, order: DrainRequest | CordonRequest, timeout: float) -> WorkerStatus:
    """Ask the leading scheduler to tell the worker; returns the worker as it is seen. Raises `Told` if there is none."""
    from myna.actors import codec
    from myna.actors.messages import Status

    answer = asyncio.run(request(located(operator=True), what, codec.encode(order), timeout))
    seen: Status = codec.decode(answer, Status)
    for worker in seen.workers:
        if worker.worker == order.worker:
            return worker
    there = ", ".join(w.worker for w in seen.workers) or "none"
    raise Told(f"there is no worker {order.worker!r}; there are: {there}")
