from __future__ import annotations

from tests.actors.scheduler.world import opened
from tests.actors.stage import call


def test_status_tells_workers_sessions_and_what_waits() -> None:
    world = opened(*(call(f"c{i}") for i in range(4)), call("d", "c0"), capacity=1)
    status = world.core.status(world.now, rejected=3)
    (session,) = status.sessions
    assert (session.calls, session.waiting, session.ready, session.running) == (5, 1, 3, 1)
    assert (status.queued, status.rejected, status.lease) == (3, 3, world.lease)
    assert [(w.worker, w.running, w.capacity) for w in status.workers] == [("w0", 1, 1)]


def test_status_tells_how_many_calls_have_failed() -> None:
    world = opened(call("a"), call("b"), call("c", "a", "b"))
    (worker,) = world.workers.values()
    world.carry_out_all()
    world.take_orders(worker)
    world.fail(worker, next(key for key in worker.held if key[2] == "call-a"), retryable=False)
    world.read_mail()
    for _ in range(3):
        world.step()
    (session,) = world.core.status(world.now, rejected=0).sessions
    assert (session.calls, session.done, session.failed) == (3, 3, 2), "one has failed, and one for want of its value"
