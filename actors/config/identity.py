"""Whose settings are: a tenant's, or the operator's, as the credentials in them say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from myna.actors.config.settings import Address, ConfigError, Settings
from myna.actors.subjects import token

if TYPE_CHECKING:
    from myna.actors.tenants.credentials import Identity


def identity_of(address: Address) -> Identity | None:
    """Whose the credentials are, if there are any. Raises `ConfigError`."""
    if address.credentials is None:
        return None
    from myna.actors.tenants import credentials  # here: it needs the messages, which a reader of settings does not

    try:
        return credentials.identity(address.credentials)
    except credentials.InvalidCredentials as error:
        raise ConfigError(str(error)) from None


def asks_as_operator(settings: Settings) -> bool:
    """Whether questions go to the scheduler as the operator's, about all tenants: with an operator's credentials, and where
    servers know only one user."""
    who = None if settings.address is None else identity_of(settings.address)
    return who is None or who.is_operator


def with_address(settings: Settings, address: Address) -> Settings:
    """`settings` at another address; credentials of a tenant there say whose sessions these are."""
    who = identity_of(address)
    tenant = settings.tenant if who is None or who.tenant is None else who.tenant
    return replace(settings, address=address, tenant=tenant)


def with_tenant(settings: Settings, tenant: str | None) -> Settings:
    """`settings` of another tenant, if there is one. Raises `InvalidName`."""
    return settings if tenant is None else replace(settings, tenant=token(tenant, "tenant"))
