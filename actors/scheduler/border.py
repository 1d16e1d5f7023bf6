"""Who speaks to a scheduler: workers of the system, agents of a tenant, the operator, a tenant.

Law: what a message says of its sender is believed only where the subject says it too, for the server has checked the subject.
"""

from __future__ import annotations

from msgspec import structs

from myna.actors import codec, subjects
from myna.actors.bus import Delivery
from myna.actors.codec import WireError
from myna.actors.messages import Announce, Beat, Event, Leave, Tenant, WorkerId, WorkerKind, WorkerMessage
from myna.actors.scheduler import names
from myna.actors.subjects import FromWorker, Question, ToWorker

_KINDS: dict[str, type[Announce | Beat | Event | Leave]] = {
    FromWorker.ANNOUNCE: Announce,
    FromWorker.BEAT: Beat,
    FromWorker.EVENT: Event,
    FromWorker.LEAVE: Leave,
}


def from_worker(delivery: Delivery) -> WorkerMessage:
    """What a worker, or a tenant's agent, says. Raises `WireError` for what it can't say."""
    root, *sender, leaf = delivery.subject.split(".")
    kind = _KINDS.get(leaf)
    if kind is None:
        raise WireError(f"no worker's message is called {leaf!r}")
    message: WorkerMessage = codec.decode(delivery.data, kind)
    if message.worker != sender[-1]:
        raise WireError(f"worker {sender[-1]!r} speaks as {message.worker!r}")
    return message if root == _WORKERS else _of_tenant(message, Tenant(sender[0]))


def _of_tenant(message: WorkerMessage, tenant: Tenant) -> WorkerMessage:
    """An agent's message, under the name that it has inside. Raises `WireError` where it speaks of another tenant's calls."""
    match message:
        case Announce(kind=kind, running=running):
            if kind is not WorkerKind.AGENT:
                raise WireError(f"tenant {tenant!r} can't offer an {kind.value}")
            tenants = {r.tenant for r in running}
            message = structs.replace(message, tenant=tenant)
        case Beat(running=running):
            tenants = {r.tenant for r in running}
        case Event():
            tenants = {message.tenant}
        case Leave():
            tenants = set()
    if tenants - {tenant}:
        raise WireError(f"an agent of tenant {tenant!r} speaks of calls of {', '.join(sorted(tenants - {tenant}))}")
    return structs.replace(message, worker=names.of_agent(tenant, message.worker))


def to_worker(worker: WorkerId, leaf: ToWorker) -> str:
    """Where a worker of the core's hears us."""
    tenant, name = names.parts(worker)
    return subjects.to_worker(name, leaf) if tenant is None else subjects.to_agent(tenant, name, leaf)


def question(subject: str) -> tuple[Question, Tenant | None]:
    """What is asked, and the tenant who asks; None is the operator. Raises `WireError`."""
    root, *tenant, leaf = subject.split(".")
    try:
        return Question(leaf), Tenant(tenant[0]) if root == _TENANTS_ASK else None
    except ValueError:
        raise WireError(f"no question is called {leaf!r}") from None


_WORKERS = subjects.FROM_WORKERS.partition(".")[0]
_TENANTS_ASK = subjects.ASK.partition(".")[0]
