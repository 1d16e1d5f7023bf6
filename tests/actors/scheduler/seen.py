"""What a test asks of a world, and how it moves it on."""

from __future__ import annotations

from typing import Any, TypeVar

from myna.actors.messages import CallId
from myna.actors.scheduler.commands import Dispatch
from myna.actors.scheduler.nodes import CallNode
from tests.actors.scheduler.world import SESSION, HeldKey, World

C = TypeVar("C")


def of(kind: type[C], world: World, **fields: Any) -> list[C]:
    """The commands of a kind, so far not carried out, whose fields (by a dotted path) have these values."""
    return [c for c in world.commands if isinstance(c, kind) and all(_at(c, p) == v for p, v in fields.items())]


def _at(thing: Any, path: str) -> Any:
    for step in path.split("__"):
        thing = getattr(thing, step)
    return thing


def dispatched(world: World) -> list[tuple[str, str]]:
    return [(c.worker, c.run.call.id) for c in of(Dispatch, world)]


def node(world: World, name: str) -> CallNode:
    return world.core.sessions[SESSION].graph.calls[CallId(f"call-{name}")]


def key(name: str) -> HeldKey:
    return (*SESSION, CallId(f"call-{name}"))


def deliver(world: World) -> None:
    """Commands are carried out, and workers take their orders."""
    world.carry_out_all()
    for worker in world.workers.values():
        world.take_orders(worker)


def settled(world: World) -> World:
    while world.core.settling:
        world.tick()
    return world
