"""The bus that settings name."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from myna.actors.config.identity import identity_of
from myna.actors.config.settings import ConfigError, Settings, Tls
from myna.actors.subjects import HELLO

if TYPE_CHECKING:
    from myna.actors.bus import Bus


async def connect_bus(
    settings: Settings, name: str, *, on_reconnect: Callable[[], None] | None = None, patience: float = 10.0
) -> Bus:
    """Connect to the servers of `settings` under `name`, which the servers' monitoring shows. Raises `ConfigError`
    without an address, `bus.Unavailable` if nobody is there for `patience` seconds, `bus.NotAllowed` for a wrong password."""
    if settings.address is None:
        raise ConfigError("no NATS server is configured: set MYNA_URL, or start one with `myna up`")
    from myna.actors.bus.nats import NatsBus  # here, so that a reader of settings loads no client

    address = settings.address
    who = identity_of(address)
    return await NatsBus.connect(
        address.url.split(","),
        name=name,
        user=address.user,
        password=address.password,
        credentials=address.credentials,
        inbox_prefix="_INBOX" if who is None else who.inbox_prefix,
        pulse=HELLO,
        tls=None if address.tls is None else tls_context(address.tls),
        replicas=address.replicas,
        on_reconnect=on_reconnect,
        timeout=patience,
    )


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The client's side of TLS, which knows servers by `tls.ca` alone. Raises `ConfigError` for files that are none."""
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS files of {tls} can't be used: {error}") from None
    return context
