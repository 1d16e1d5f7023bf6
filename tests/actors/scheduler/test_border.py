from __future__ import annotations

import pytest

from myna.actors import codec, subjects
from myna.actors.bus import Delivery
from myna.actors.codec import WireError
from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Beat,
    Event,
    EventKind,
    Frozen,
    Leave,
    Running,
    Tenant,
    WorkerId,
    WorkerKind,
)
from myna.actors.scheduler import border, names
from myna.actors.subjects import FromWorker, Question, ToWorker

ACME, W = Tenant("acme"), WorkerId("w-1")


def announce(kind: WorkerKind = WorkerKind.AGENT, running: tuple[Running, ...] = (), **more: object) -> Announce:
    offer = {"incarnation": "i", "serves": ("f",), "capacity": 1, "running": running, **more}
    return Announce(protocol=PROTOCOL, worker=W, kind=kind, **offer)  # type: ignore[arg-type]


def running(tenant: str) -> tuple[Running, ...]:
    return (Running(tenant=tenant, session="s", call="c", attempt=1),)


def event(tenant: str) -> Event:
    return Event(worker=W, kind=EventKind.FAILED, tenant=tenant, session="s", call="c", attempt=1)


LEAVES = {Announce: FromWorker.ANNOUNCE, Beat: FromWorker.BEAT, Event: FromWorker.EVENT, Leave: FromWorker.LEAVE}


def from_agent(message: Frozen, worker: str = W) -> Delivery:
    leaf = LEAVES[type(message)]  # type: ignore[index]
    return Delivery(subjects.from_agent(ACME, WorkerId(worker), leaf), codec.encode(message))


def from_worker(message: Frozen) -> Delivery:
    return Delivery(subjects.from_worker(W, LEAVES[type(message)]), codec.encode(message))  # type: ignore[index]


def test_a_worker_of_the_system_is_known_by_its_own_name() -> None:
    heard = border.from_worker(from_worker(announce(WorkerKind.ENGINE)))
    assert heard == announce(WorkerKind.ENGINE)
    assert border.to_worker(W, ToWorker.RUN) == subjects.to_worker(W, ToWorker.RUN)


@pytest.mark.parametrize(
    "message",
    [
        announce(running=running(ACME)),
        Beat(worker=W, incarnation="i", running=running(ACME)),
        event(ACME),
        Leave(worker=W, incarnation="i"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_tenants_agent_has_a_name_that_no_worker_of_the_system_has(message: Announce | Beat | Event | Leave) -> None:
    heard = border.from_worker(from_agent(message))
    assert heard.worker == names.of_agent(ACME, W) == "acme.w-1"
    assert names.parts(WorkerId(heard.worker)) == (ACME, W)
    assert border.to_worker(WorkerId(heard.worker), ToWorker.RUN) == subjects.to_agent(ACME, W, ToWorker.RUN)


def test_an_agent_serves_its_tenant_whatever_it_says() -> None:
    for said in (None, "other"):
        heard = border.from_worker(from_agent(announce(tenant=said)))
        assert isinstance(heard, Announce)
        assert heard.tenant == ACME


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (announce(WorkerKind.ENGINE), "can't offer an engine"),
        (announce(running=running("other")), "speaks of calls of other"),
        (Beat(worker=W, incarnation="i", running=running("other") + running(ACME)), "speaks of calls of other"),
        (event("other"), "speaks of calls of other"),
    ],
)
def test_an_agent_that_speaks_of_what_is_not_its_tenants_is_not_heard(message: Frozen, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        border.from_worker(from_agent(message))


def test_nobody_speaks_as_another() -> None:
    with pytest.raises(WireError, match="worker 'w-2' speaks as 'w-1'"):
        border.from_worker(from_agent(announce(), worker="w-2"))
    with pytest.raises(WireError, match="no worker's message is called 'run'"):
        border.from_worker(Delivery("myna-workers.w-1.run", codec.encode(announce())))
    with pytest.raises(WireError):
        border.from_worker(Delivery(subjects.from_worker(W, FromWorker.BEAT), b"\xc1"))


def test_a_question_says_who_asks() -> None:
    for question in Question:
        assert border.question(subjects.question(question)) == (question, None)
        assert border.question(subjects.ask(ACME, question)) == (question, ACME)
    with pytest.raises(WireError, match="no question is called 'else'"):
        border.question("myna-ask.acme.else")
