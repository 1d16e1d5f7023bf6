"""What a NATS server is configured with, so that it lets in whom the authority has signed: one generator for every server.

The server keeps the accounts' claims in a folder of its own, and takes newer ones from the administrator while it runs; a
cluster's servers tell each other. So tenants come and go without a reload, let alone a restart. (A reload of accounts written
into the configuration does not do: nats-server 2.15 leaves the imports of a new account dead until the next reload.)

Law: only the account that never changes stands in the configuration. What stands there is taken at each start, however old it
is, and would let those in again who were shut out since.
"""

from __future__ import annotations

import json
from pathlib import Path

from myna.actors.tenants.authority import Authority
from myna.actors.tenants.credentials import write_private

_SYNC = "5s"
"""Between two looks of a cluster's servers whether others have newer claims: one that was away learns of what is void."""


def server_lines(authority: Authority, folder: Path) -> str:
    """Lines of a server's configuration, without any secret. `folder`, on the server's machine, is where it keeps claims."""
    resolver = f'type: full, dir: {json.dumps(str(folder))}, allow_delete: true, timeout: "1s", interval: "{_SYNC}"'
    return "\n".join(
        [
            f"operator: {authority.operator_claims}",
            f"system_account: {authority.system_account}",
            f"resolver {{ {resolver} }}",
            f"resolver_preload {{ {authority.system_account}: {authority.system_claims} }}",
            "",
        ]
    )


def lay_out(authority: Authority, folder: Path) -> None:
    """Write all accounts' claims, as they are now, into the folder of a server; those that are there already are left alone, so
    that a server that runs notices nothing."""
    for account, claims in authority.account_claims().items():
        path = folder / f"{account}.jwt"
        if not path.exists() or path.read_text() != claims:
            write_private(path, claims)


def local_lines(authority: Authority, folder: Path) -> str:
    """Lay the claims out here, and give the lines: for a server that is started by us on this machine."""
    lay_out(authority, folder)
    return server_lines(authority, folder)
