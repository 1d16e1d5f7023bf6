"""What commands have in common: errors that are for people, whom to ask, and how answers look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from myna.actors import config

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from myna.actors.bus import Bus
    from myna.actors.subjects import Question
    from myna.sdk.recording import Recording


class Told(click.ClickException):
    """An error that is a person's to mend: shown as one message, exit status 1."""


class Unreachable(Told):
    """There is nobody to ask."""

    exit_code = 3


def located(*, operator: bool = False) -> config.Settings:
    """The settings with an address: the configured one, or that of the machine that runs here, as its operator or tenant. Raises
    `Unreachable`."""
    from myna.actors.machine import home
    from myna.actors.tenants.rights import Role

    settings = home.located(config.read(), Role.OPERATOR if operator else None)
    if settings.address is None:
        raise Unreachable(f"no machine runs in {settings.home}; start one with `myna up`, or set MYNA_URL")
    return settings


async def request(settings: config.Settings, question: Question, data: bytes, seconds: float) -> bytes:
    """A question to the leading scheduler, on a connection of its own. Raises `BusError`."""
    bus = await config.connect_bus(settings, "myna-question", patience=seconds)
    try:
        return await ask(bus, settings, question, data, seconds)
    finally:
        await bus.close()


async def ask(bus: Bus, settings: config.Settings, question: Question, data: bytes, seconds: float) -> bytes:
    """A question to the leading scheduler: about all tenants as the operator, else about one's own. Raises `BusError`."""
    from myna.actors import subjects
    from myna.actors.bus import Unavailable
    from myna.actors.messages import Tenant

    operator = config.asks_as_operator(settings)
    subject = subjects.question(question) if operator else subjects.ask(Tenant(settings.tenant), question)
    try:
        answer = await bus.request(subject, data, timeout=seconds)
    except Unavailable as error:
        address = settings.address and settings.address.url
        raise Unavailable(f"the server at {address} is there, but no scheduler leads: {error}") from error
    return answer.data


async def exported(settings: config.Settings, session: str, tenant: str | None) -> Recording:
    """What is stored of a session. Raises `RecordingError`, `BusError`, `Told`."""
    from myna.actors.subjects import InvalidName
    from myna.sdk.client import Client
    from myna.sdk.replaying import export

    bus = await config.connect_bus(settings, "myna-export")
    try:
        return await export(Client(bus=bus, tenant=tenant or settings.tenant), session)
    except InvalidName as error:
        raise Told(str(error)) from None
    finally:
        await bus.close()


def terminal(*, stderr: bool = False) -> Console:
    """Where people read."""
    from rich.console import Console

    return Console(stderr=stderr)


def plain_table(*columns: str) -> Table:
    """A table without frames."""
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(*columns, box=SIMPLE, pad_edge=False)
