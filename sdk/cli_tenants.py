"""`myna tenants`: who may use this system, what they may have at once, and what they have used.

The table of tenants and the signing keys are in MYNA_HOME; what is changed there is told to the servers at once, if they run:
those of MYNA_URL, else the machine that runs in MYNA_HOME. Nothing is restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from myna.actors import config
from myna.sdk.cli_cluster import init

if TYPE_CHECKING:
    from myna.actors.messages import SessionUsage, Status, TenantPolicy, Usage
    from myna.actors.tenants.keyring import Keyring


class _Limit(click.ParamType[Any]):
    """A whole number, or `none`."""

    name = "NUMBER|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Checks it."""
        if value == NONE:
            return NONE
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a whole number nor {NONE!r}", param, ctx)
        return int(value)


NONE = "none"
_OPTIONS = (
    click.option("--weight", type=click.FloatRange(min=0, min_open=True), help="Share of the engines, against others."),
    click.option("--sessions", type=_Limit(), help="Open sessions at once."),
    click.option("--calls", type=_Limit(), help="Calls submitted and not ended."),
    click.option("--running", type=_Limit(), help="Calls that run at once."),
    click.option("--bytes", type=_Limit(), help="Bytes stored in open sessions."),
    click.option("--tokens", type=_Limit(), help="Prompt and output tokens a minute."),
    click.option("--cache", help="Tenants with the same word here share prefixes; '' for nobody."),
)


def _with_limits(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def tenants() -> None:
    """Make tenants, give them new credentials, set their quotas."""


tenants.add_command(init)


@tenants.command()
@click.argument("name")
@_with_limits
def create(name: str, **limits: Any) -> None:
    """Make tenant NAME, and its credentials file."""
    from myna.actors.messages import Tenant, TenantPolicy
    from myna.actors.subjects import token

    keyring = _keyring()
    policy = _changed(TenantPolicy(tenant=token(name, "tenant")), limits)
    file = keyring.create(Tenant(name), policy)
    told = _tell([keyring.authority.tenant_claims(Tenant(name))], [policy])
    _say_credentials(name, file, told)


@tenants.command()
@click.argument("name")
@click.option("--keep", is_flag=True, help="The old credentials stay valid beside the new ones.")
def rotate(name: str, keep: bool) -> None:
    """Give tenant NAME new credentials, in the same file; connections with the old ones are closed."""
    from myna.actors.messages import Tenant

    keyring = _keyring()
    file = keyring.rotate(Tenant(name), keep=keep)
    told = _tell([keyring.authority.tenant_claims(Tenant(name))])
    _say_credentials(name, file, told)


@tenants.command()
@click.argument("name")
def remove(name: str) -> None:
    """Let tenant NAME in no more. Its open sessions end when they expire."""
    from myna.actors.messages import Tenant, TenantPolicy

    keyring = _keyring()
    claims = keyring.remove(Tenant(name))
    others = [keyring.authority.tenant_claims(other) for other in keyring.authority.tenants]
    _tell([claims, *others], [TenantPolicy(tenant=name, removed=True)])
    click.echo(f"tenant {name} is no more")


@tenants.command()
@click.argument("name")
@_with_limits
def quota(name: str, **limits: Any) -> None:
    """Set what tenant NAME may have at once; options that are not given stay as they are."""
    from myna.actors.messages import Tenant

    keyring = _keyring()
    policy = _changed(keyring.authority.tenant(Tenant(name)).policy, limits)
    keyring.authority.set_policy(policy)
    _tell([], [policy])
    click.echo(f"{name}: {_limits_of(policy)}")


@tenants.command()
@click.argument("owner")
@click.argument("reader")
@click.option("--session", default="*", help="Only this session of the owner's.")
@click.option("--variable", default="*", help="Only this variable.")
@click.option("--withdraw", is_flag=True, help="Take the grant back.")
def share(owner: str, reader: str, session: str, variable: str, withdraw: bool) -> None:
    """Let tenant READER read variables of tenant OWNER. Its open connections may from their next reconnect on."""
    from myna.actors.messages import Tenant
    from myna.actors.tenants.rights import Grant

    keyring = _keyring()
    grant = Grant(Tenant(owner), session, variable)
    change = keyring.authority.withdraw if withdraw else keyring.authority.grant
    change(Tenant(reader), grant)
    _tell([keyring.authority.tenant_claims(Tenant(reader))])
    click.echo(
        f"{reader} may {'no longer ' if withdraw else ''}read variable {variable} in session {session} of {owner}"
    )


@tenants.command()
@click.argument("name")
@click.option("--session", help="Only this session, call by call.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object a line.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="Seconds to wait.")
def usage(name: str, session: str | None, as_json: bool, timeout: float) -> None:
    """Show what the closed sessions of tenant NAME have used, as far back as records are kept."""
    import msgspec

    for record in asyncio.run(_records(name, session, timeout)):
        if as_json:
            click.echo(msgspec.json.encode(record))
            continue
        click.echo(f"{record.session} ({record.name}): {_used(record.used)} in {len(record.calls)} calls")
        for call in record.calls if session is not None else ():
            click.echo(f"  {call.function or 'call'} {call.call}: {_used(call.usage)}")


@tenants.command("list")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
def list_(as_json: bool) -> None:
    """Show the tenants with their quotas, and what they use and have used."""
    import msgspec

    keyring = _keyring()
    seen = asyncio.run(_ask())
    now = {} if seen is None else {t.tenant: t for t in seen.tenants}
    policies = {name: member.policy for name, member in keyring.authority.tenants.items()}
    if as_json:
        rows = {name: {"policy": policy, "now": now.get(name)} for name, policy in policies.items()}
        click.echo(msgspec.json.encode(rows))
        return
    for name, policy in policies.items():
        click.echo(f"{name}: {_limits_of(policy)}")
        if (state := now.get(name)) is not None:
            click.echo(
                f"  now {state.sessions} sessions, {state.calls} calls in flight, {state.bytes} bytes, "
                f"{state.tokens} tokens of this minute's"
            )
            click.echo(f"  used {_used(state.used)} in {state.used_by} calls")
    if seen is None:
        click.echo("no scheduler was reached: what they use now is not known")


def _used(used: Usage) -> str:
    cost = f" for {used.cost / 1e6:.6g} in money" if used.cost else ""
    return (
        f"{used.prompt_tokens} prompt tokens ({used.cached_tokens} cached) and {used.output_tokens} output tokens{cost}"
    )


async def _records(name: str, session: str | None, seconds: float) -> list[SessionUsage]:
    """The records of a tenant's sessions, or of one of them. Raises `Unavailable`, `TenancyError`."""
    from myna.actors import codec, subjects
    from myna.actors.bus import Stored
    from myna.actors.messages import SessionUsage
    from myna.actors.tenants.authority import TenancyError
    from myna.actors.tenants.rights import Role

    settings = _as(Role.OPERATOR)
    if settings is None:
        raise TenancyError("no server runs here, and MYNA_URL names none")
    found: list[SessionUsage] = []
    done = asyncio.Event()

    async def take(stored: Stored) -> None:
        found.append(codec.decode(stored.data, SessionUsage))

    async def caught_up() -> None:
        done.set()

    bus = await config.connect_bus(settings, "myna-tenants", patience=seconds)
    try:
        of = f"myna-usage.{subjects.token(name, 'tenant')}.{'*' if session is None else subjects.token(session, 'session')}.*"
        await bus.follow(subjects.USAGE, take, subject=of, caught_up=caught_up)
        async with asyncio.timeout(seconds):
            await done.wait()
    finally:
        await bus.close()
    return found


# --- parts ------------------------------------------------------------------------------------------------------------


def _keyring() -> Keyring:
    from myna.actors.tenants.authority import Authority, TenancyError
    from myna.actors.tenants.keyring import Keyring

    home = config.read().home
    if not Authority.exists(home / "authority"):
        raise TenancyError(
            f"there is no authority in {home}: `myna up` makes one, or `myna tenants init` for a cluster"
        )
    return Keyring.at(home)


def _changed(policy: TenantPolicy, limits: dict[str, Any]) -> TenantPolicy:
    import msgspec

    from myna.actors.tenants.authority import TenancyError

    given = {
        name: None if value == NONE and name != "cache" else value
        for name, value in limits.items()
        if value is not None
    }
    changed = msgspec.structs.replace(policy, **given)
    try:
        return msgspec.convert(msgspec.to_builtins(changed), type(policy))
    except msgspec.ValidationError as error:
        raise TenancyError(f"these limits can't be: {error}") from None


def _limits_of(policy: TenantPolicy) -> str:
    names = ("sessions", "calls", "running", "bytes", "tokens")
    limits = [f"{name} {value}" for name in names if (value := getattr(policy, name)) is not None]
    shared = [f"shares the prefix cache {policy.cache!r}"] if policy.cache else []
    return ", ".join([f"weight {policy.weight:g}", *(limits or ["no quotas"]), *shared])


def _say_credentials(name: str, file: Path, told: bool) -> None:
    click.echo(f"credentials of tenant {name}: {file}")
    if not told:
        click.echo("no server runs here: it will know them when it starts")


def _as(role: str) -> config.Settings | None:
    """The settings of a role's connection to the servers that run; None where there are none."""
    from dataclasses import replace

    from myna.actors.machine import home
    from myna.actors.tenants.keyring import address_of

    settings = config.read()
    configured = settings.address
    info = home.find(settings.home) if configured is None else None
    if configured is not None:
        address = address_of(settings.home, configured.url, role, configured.tls)
    elif info is not None:
        address = address_of(settings.home, info.url, role, info.tls)
    else:
        return None
    return config.with_address(replace(settings, tenant="default"), address)


def _tell(claims: Sequence[str], policies: Sequence[TenantPolicy] = ()) -> bool:
    """Tell servers and schedulers, if they run; whether they did."""
    from myna.actors.tenants.accounts import ADMIN
    from myna.actors.tenants.rights import Role

    admin, operator = _as(ADMIN), _as(Role.OPERATOR)
    if admin is None or operator is None:
        return False
    asyncio.run(_tell_them(admin, operator, claims, policies))
    return True


async def _tell_them(
    admin: config.Settings, operator: config.Settings, claims: Sequence[str], policies: Sequence[TenantPolicy]
) -> None:
    from myna.actors.tenants.admin import tell_schedulers, tell_servers

    servers = await config.connect_bus(admin, "myna-tenants")
    try:
        for one in claims:
            await tell_servers(servers, one)
    finally:
        await servers.close()
    if not policies:
        return
    schedulers = await config.connect_bus(operator, "myna-tenants")
    try:
        for policy in policies:
            await tell_schedulers(schedulers, policy)
    finally:
        await schedulers.close()


async def _ask() -> Status | None:
    from myna.actors import codec, subjects
    from myna.actors.bus import BusError
    from myna.actors.messages import Status, StatusRequest
    from myna.actors.tenants.rights import Role

    settings = _as(Role.OPERATOR)
    if settings is None:
        return None
    try:
        bus = await config.connect_bus(settings, "myna-tenants", patience=3.0)
    except BusError:
        return None
    try:
        answer = await bus.request(subjects.STATUS, codec.encode(StatusRequest()), timeout=3.0)
        status: Status = codec.decode(answer.data, Status)
        return status
    except BusError:
        return None
    finally:
        await bus.close()
