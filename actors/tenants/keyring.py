"""The authority of a home folder with the credentials files that it has issued there, each readable by its owner alone.

authority/            signing keys and the table of tenants
keys/tenants/<name>   what a tenant's applications and agents connect with
keys/roles/<role>     what Myna's own processes connect with
"""

from __future__ import annotations

from pathlib import Path

from myna.actors.config import Address, Tls
from myna.actors.messages import Tenant, TenantPolicy
from myna.actors.subjects import token
from myna.actors.tenants import accounts
from myna.actors.tenants.accounts import ADMIN
from myna.actors.tenants.authority import Authority
from myna.actors.tenants.credentials import InvalidCredentials, claims, write_private
from myna.actors.tenants.rights import Role


class Keyring:
    """The keys in `home`."""

    def __init__(self, home: Path, authority: Authority) -> None:
        self._home = home
        self.authority = authority

    @classmethod
    def at(cls, home: Path) -> Keyring:
        """Those in `home`, with an authority, which is made if there is none."""
        return cls(home, Authority.at(home / "authority"))

    def begin(self, tenant: Tenant) -> None:
        """Issue new credentials to all roles, the old ones being void, and to `tenant` if it has none here."""
        self.authority.renew_roles()
        self._issue(*Role, ADMIN)
        self._admit(tenant)

    def complete(self, tenant: Tenant) -> None:
        """Issue what has no file here, or one whose rights are those of another release; what was issued stays valid."""
        self._issue(*(role for role in (*Role, ADMIN) if not self._is_current(role)))
        self._admit(tenant)

    def _issue(self, *roles: str) -> None:
        for role in roles:
            made = self.authority.admin() if role == ADMIN else self.authority.role(Role(role))
            write_private(role_file(self._home, role), made)

    def _is_current(self, role: str) -> bool:
        now = accounts.administrator("", 0) if role == ADMIN else accounts.role_user("", Role(role), 0)
        try:
            return bool(claims(role_file(self._home, role))["nats"] == now["nats"])
        except InvalidCredentials:
            return False

    def _admit(self, tenant: Tenant) -> None:
        if tenant not in self.authority.tenants:
            self.create(tenant)
        elif not tenant_file(self._home, tenant).exists():
            self.rotate(tenant, keep=True)

    def create(self, tenant: Tenant, policy: TenantPolicy | None = None) -> Path:
        """A new tenant; returns its credentials file. Raises `TenancyError`, `InvalidName`."""
        return self._write(tenant, self.authority.create(tenant, policy))

    def rotate(self, tenant: Tenant, *, keep: bool = False) -> Path:
        """New credentials in the tenant's file; see `Authority.rotate`. Clients with that file take them when they reconnect."""
        return self._write(tenant, self.authority.rotate(tenant, keep=keep))

    def remove(self, tenant: Tenant) -> str:
        """The tenant is no more; returns the claims that servers must get. Raises `TenancyError`."""
        public = self.authority.tenant(tenant).public
        self.authority.remove(tenant)
        tenant_file(self._home, tenant).unlink(missing_ok=True)
        return self.authority.removed_claims(public)

    def _write(self, tenant: Tenant, text: str) -> Path:
        path = tenant_file(self._home, tenant)
        write_private(path, text)
        return path


def tenant_file(home: Path, tenant: Tenant) -> Path:
    """Where a tenant's credentials are, if they are here. Raises `InvalidName`."""
    return home / "keys" / "tenants" / f"{token(tenant, 'tenant')}.creds"


def role_file(home: Path, role: str) -> Path:
    """Where a role's credentials are: a `Role`, or `ADMIN`."""
    return home / "keys" / "roles" / f"{role}.creds"


def address_of(home: Path, url: str, role: str, tls: Tls | None = None) -> Address:
    """The servers at `url`, as a role of this home's."""
    return Address(url, credentials=role_file(home, role), tls=tls)
