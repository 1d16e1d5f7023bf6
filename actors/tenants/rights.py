"""The subjects that each role and each tenant may use: nothing else is allowed to anybody.

Law: a tenant's rights name the tenant in every subject, but for the scheduler's greeting. A role has what its actor does,
and nothing for convenience. Nobody, not even a scheduler, may delete a stream or publish on what streams republish.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from myna.actors import subjects
from myna.actors.messages import Tenant

_GET = "$JS.API.DIRECT.GET"
_WRITES = ("myna.*.*.log", "myna.*.*.set.*", "myna.*.*.put.*.*", "myna.*.*.alive", subjects.ASK, subjects.FROM_AGENTS)
_READS = ("myna.*.*.var.*", "myna.*.*.tok.*.*", subjects.TO_AGENTS)
_GETS = tuple(f"{_GET}.{stream.name}.{name}" for stream in subjects.SESSION_STREAMS for name in stream.subjects)

SERVICES = (*_WRITES, *_GETS)
"""What tenants ask of the streams' account, with a wildcard for the tenant."""
FEEDS = (*_READS, subjects.HELLO)
"""What tenants hear from it."""


class Role(StrEnum):
    """What a process of Myna's own is."""

    SCHEDULER = "scheduler"
    ENGINE = "engine"
    GATEWAY = "gateway"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects to publish and to subscribe to; `answers`: it may also answer whoever asks it."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """A tenant lets another one read a variable: of one session or all, one variable or all. Raises `InvalidName`."""

    owner: Tenant
    session: str = "*"
    variable: str = "*"

    def __post_init__(self) -> None:
        subjects.token(self.owner, "tenant")
        for name in (self.session, self.variable):
            if name != "*":
                subjects.token(name)


def services(tenant: Tenant, grants: tuple[Grant, ...] = ()) -> tuple[str, ...]:
    """What a tenant may ask of the streams' account."""
    values, chunks = subjects.VALUES.name, subjects.CHUNKS.name
    granted = [
        name
        for g in grants
        for name in (
            f"{_GET}.{values}.myna.{g.owner}.{g.session}.set.{g.variable}",
            f"{_GET}.{chunks}.myna.{g.owner}.{g.session}.put.{g.variable}.*",
        )
    ]
    return (*(within(pattern, tenant) for pattern in SERVICES), *granted)


def feeds(tenant: Tenant, grants: tuple[Grant, ...] = ()) -> tuple[str, ...]:
    """What a tenant may hear from it."""
    granted = [
        name
        for g in grants
        for name in (
            f"myna.{g.owner}.{g.session}.var.{g.variable}",
            f"myna.{g.owner}.{g.session}.tok.{g.variable}.*",
        )
    ]
    return (*(within(pattern, tenant) for pattern in FEEDS), *granted)


def of_tenant(tenant: Tenant, grants: tuple[Grant, ...] = ()) -> Rights:
    """A tenant's users."""
    return Rights(services(tenant, grants), (*feeds(tenant, grants), f"{subjects.inbox(tenant)}.>"))


def of_role(role: Role) -> Rights:
    """A role's users, in the streams' account."""
    rights = _ROLES[role]
    return Rights(rights.publish, (*rights.subscribe, f"{subjects.inbox(role)}.>"), rights.answers)


def within(pattern: str, tenant: Tenant) -> str:
    """`pattern` with the tenant in place of its first wildcard: that of a tenant, in all our subjects."""
    name = subjects.token(tenant, "tenant")
    return pattern.replace("*", name, 1)


def _api(*names: str) -> tuple[str, ...]:
    return tuple(f"$JS.API.{name}" for name in names)


_STREAMS = tuple(stream.name for stream in subjects.STREAMS)
_BUCKET = f"KV_{subjects.LEASES}"
_ALL_GETS = tuple(f"{_GET}.{stream}.>" for stream in _STREAMS)
_FOLLOWS = tuple(
    name
    for stream in _STREAMS
    for name in (*_api(f"CONSUMER.CREATE.{stream}", f"CONSUMER.DELETE.{stream}.*"), f"$JS.FC.{stream}.>")
)

_ROLES = {
    Role.SCHEDULER: Rights(
        publish=(
            *("myna.*.*.log", "myna.*.*.set.*"),
            *(subjects.HELLO, subjects.TO_WORKERS, subjects.TO_AGENTS, subjects.USAGE.subjects[0]),
            *_api(*(f"STREAM.{verb}.{name}" for verb in ("CREATE", "UPDATE") for name in (*_STREAMS, _BUCKET))),
            *_api("INFO", *(f"STREAM.{verb}.{name}" for verb in ("INFO", "PURGE") for name in _STREAMS)),
            *_api(*(f"STREAM.MSG.GET.{stream.name}" for stream in subjects.SESSION_STREAMS)),
            *(*_ALL_GETS, *_FOLLOWS, f"{_GET}.{_BUCKET}.>", f"$KV.{subjects.LEASES}.>"),
        ),
        subscribe=(
            *(subjects.FROM_WORKERS, subjects.FROM_AGENTS, subjects.ALIVE_ALL, subjects.ASK, subjects.QUESTIONS),
            subjects.HELLO,
        ),
        answers=True,
    ),
    Role.ENGINE: Rights(
        publish=(
            *("myna.*.*.set.*", "myna.*.*.put.*.*", subjects.FROM_WORKERS, subjects.SIGHTS, *_GETS),
            *_api(*(f"STREAM.MSG.GET.{stream.name}" for stream in (subjects.VALUES, subjects.CHUNKS))),
        ),
        subscribe=(subjects.TO_WORKERS, subjects.HELLO),
    ),
    Role.GATEWAY: Rights(
        publish=("myna.*.*.log", "myna.*.*.set.*", "myna.*.*.alive", subjects.ASK, subjects.STATUS, *_GETS),
        subscribe=("myna.*.*.var.*", "myna.*.*.tok.*.*", subjects.SIGHTS, subjects.HELLO),
    ),
    Role.OPERATOR: Rights(
        publish=(
            *(subjects.QUESTIONS, subjects.ASK, subjects.TENANTS.subjects[0]),
            *_api("INFO", *(f"STREAM.INFO.{name}" for name in _STREAMS)),
            *(*_ALL_GETS, *_FOLLOWS),
        ),
        subscribe=(subjects.SIGHTS, subjects.HELLO),
    ),
}
