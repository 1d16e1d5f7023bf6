"""The names of workers inside the core: a tenant's agent is `<tenant>.<worker>`, so that it can't be taken for anybody else."""

from __future__ import annotations

from myna.actors.messages import Tenant, WorkerId


def of_agent(tenant: Tenant, worker: str) -> str:
    """A tenant's agent, which calls itself `worker`."""
    return f"{tenant}.{worker}"


def parts(worker: WorkerId) -> tuple[Tenant | None, WorkerId]:
    """Whose agent it is, None for a worker of the system, and by what it calls itself."""
    tenant, dot, name = worker.rpartition(".")
    return (Tenant(tenant) if dot else None), WorkerId(name)
