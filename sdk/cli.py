"""The command line: `myna up`, `status`, `agent`, `demo`. What a person did wrong is told in a sentence.

Heavy parts are imported by the command that needs them, so that `myna --help` is quick.
"""

from __future__ import annotations

import ast
import asyncio
import runpy
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from myna.actors import config
from myna.sdk.cli_config import configuration
from myna.sdk.cli_endpoints import endpoints
from myna.sdk.cli_look import graph, top, trace
from myna.sdk.cli_operator import cordon, drain, uncordon
from myna.sdk.cli_parts import Told, exported, located, plain_table, request, terminal
from myna.sdk.cli_tenants import tenants

if TYPE_CHECKING:
    from rich.console import Console

    from myna.actors.machine.home import Info
    from myna.actors.machine.shell import Observer
    from myna.actors.messages import Explanation, Status, Timing
    from myna.sdk.recording import Recording


class Commands(click.Group):
    """Turns the errors that we raise on purpose into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if not isinstance(error, _for_people()):
                raise
            raise Told(str(error)) from error


def _for_people() -> tuple[type[Exception], ...]:
    from myna.actors.bus import BusError
    from myna.actors.machine import AlreadyRunning, MachineFailed
    from myna.actors.server import ServerError
    from myna.actors.subjects import InvalidName
    from myna.actors.tenants.authority import TenancyError
    from myna.sdk.errors import MynaError

    ours = (config.ConfigError, BusError, AlreadyRunning, MachineFailed, ServerError, MynaError)
    return (*ours, InvalidName, TenancyError)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("myna"), "-V", "--version", message="myna %(version)s")
def main() -> None:
    """Myna serves LLM applications: graphs of calls joined by semantic variables, over NATS."""


for command in (tenants, endpoints, top, graph, trace, drain, cordon, uncordon, configuration):
    main.add_command(command)


# --- up ---------------------------------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--engines", type=click.IntRange(0, 64), default=1, show_default=True, help="How many engines, of each model."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Hub id, folder or GGUF file; may be given several times. [default: MYNA_MODEL, else SmolLM2-135M-Instruct]",
)
@click.option("--noop", is_flag=True, help="Engines without a model, which answer at once: for trying things out.")
@click.option(
    "--gateway/--no-gateway", default=True, help="Whether to serve HTTP: on MYNA_GATEWAY_PORT, 9000, or another."
)
def up(engines: int, models: tuple[str, ...], noop: bool, gateway: bool) -> None:
    """Run a whole machine here: NATS server, scheduler, engines, MYNA_ENDPOINTS, HTTP gateway. Ctrl-C ends it."""
    from myna.actors import logs
    from myna.actors.machine import Plan
    from myna.actors.machine import up as run_machine

    settings = config.read()
    if engines == 0 and settings.endpoints is None:
        raise Told("no engine and no endpoint: nothing could be computed; set MYNA_ENDPOINTS, or leave --engines out")
    logs.configure(settings.log, process="up")
    console = terminal(stderr=True)
    with console.status("starting") as status:

        def on_ready(info: Info, folder: Path) -> None:
            status.stop()
            _tell_ready(console, info, settings.home, folder)

        # The light client may be installed with an engine, but without what the gateway needs.
        plan = Plan(
            engines=engines, models=models, noop=noop, gateway=gateway and util.find_spec("uvicorn") is not None
        )
        asyncio.run(run_machine(settings, plan, on_ready=on_ready, on_change=_show_progress(status.update)))
    console.print("stopped; no process is left")


def _show_progress(show: Callable[[str], None]) -> Observer:
    def observe(states: Any) -> None:
        show("   ".join(f"{name} [dim]{state}[/]" for name, (state, _) in states.items()))

    return observe


def _tell_ready(console: Console, info: Info, home: Path, logs: Path) -> None:
    console.print(f"[bold green]ready[/] at {info.url} (process {info.pid})")
    if info.gateway:
        console.print(f"  http    {info.gateway}  (OpenAI's API: {info.gateway}/v1)", highlight=False)
        console.print(f"  window  {info.gateway}/window/", highlight=False)
    console.print(f"  state   {home}", f"  logs    {logs}", "  look    myna status", "  end     Ctrl-C", sep="\n")


# --- status -----------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait.")
def status(as_json: bool, timeout: float) -> None:
    """Show the engines, agents and open sessions, and how many calls wait."""
    seen = asyncio.run(_ask(located(operator=True), timeout))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(seen))
    else:
        _show(terminal(), seen)
        _show_gateway(terminal())


@main.command()
@click.argument("call")
@click.option("--session", help="The session that the call is in; without it, every session is searched.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait.")
def why(call: str, session: str | None, as_json: bool, timeout: float) -> None:
    """Tell why CALL runs where and when it does, or what it waits for."""
    from myna.actors import subjects

    for name in filter(None, (call, session)):
        try:
            subjects.token(name, "id")
        except subjects.InvalidName as error:
            raise Told(str(error)) from None
    seen = asyncio.run(_ask_why(located(operator=True), call, session, timeout))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(seen))
        return
    if not seen.calls:
        raise Told(f"the scheduler knows no call {call!r}" + (f" in session {session!r}" if session else ""))
    for found in seen.calls:
        where = f" on {found.worker}" if found.worker else ""
        since = f" for {found.seconds:.3f} s" if found.seconds is not None else ""
        title = f"{found.function} " if found.function else ""
        click.echo(f"{title}{found.call} in session {found.session} of {found.tenant}: {found.state}{where}{since}")
        for reason in found.reasons:
            click.echo(f"  {reason}")


async def _ask_why(settings: config.Settings, call: str, session: str | None, seconds: float) -> Explanation:
    from myna.actors import codec
    from myna.actors.messages import Explanation, Why
    from myna.actors.subjects import Question

    answer = await request(settings, Question.WHY, codec.encode(Why(call=call, session=session)), seconds)
    return codec.decode(answer, Explanation)


async def _ask(settings: config.Settings, seconds: float) -> Status:
    from myna.actors import codec
    from myna.actors.messages import Status, StatusRequest
    from myna.actors.subjects import Question

    return codec.decode(await request(settings, Question.STATUS, codec.encode(StatusRequest()), seconds), Status)


def _show_gateway(console: Console) -> None:
    """Where the gateway of the machine that runs here listens, if there is one."""
    from myna.actors.machine import home

    settings = config.read()
    info = home.find(settings.home) if settings.address is None else None
    if info is not None and info.gateway:
        console.print(f"gateway: {info.gateway}  window: {info.gateway}/window/", highlight=False)


def _show(console: Console, seen: Status) -> None:
    leads = f"scheduler {seen.scheduler} leads (lease {seen.lease})"
    console.print(f"{leads}; {seen.queued} ready calls wait for a worker", highlight=False)
    workers = plain_table("worker", "kind", "serves", "running", "capacity", "heard of")
    for worker in seen.workers:
        heard = "draining" if worker.draining else worker.paused or f"{worker.silent_seconds:.1f} s ago"
        serves = ", ".join(worker.serves)
        workers.add_row(worker.worker, worker.kind, serves, str(worker.running), str(worker.capacity), heard)
    sessions = plain_table("session", "name", "tenant", "calls", "waiting", "ready", "running", "done")
    for session in seen.sessions:
        counts = (session.calls, session.waiting, session.ready, session.running, session.done)
        sessions.add_row(session.session, session.name, session.tenant, *map(str, counts))
    streams = plain_table("stream", "messages", "MB")
    for stream in seen.streams:
        streams.add_row(stream.name, str(stream.messages), f"{stream.bytes / 1e6:.1f}")
    tables = (
        (workers, "no workers"),
        (sessions, "no open sessions"),
        (streams, "the streams' sizes are not known yet"),
    )
    for table, none in tables:
        console.print(table if table.row_count else none)


# --- key ------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("tenant")
@click.option("--name", default="", help="What the key is called in logs.")
@click.option("--operator", is_flag=True, help="It may look at what engines do, and at the sessions of all tenants.")
def key(tenant: str, name: str, operator: bool) -> None:
    """Make an API key of the gateway for TENANT: the key itself, shown once, and its entry for the table MYNA_GATEWAY_KEYS."""
    from myna.actors import subjects
    from myna.actors.gateway import keys

    try:
        made, entry = keys.make(subjects.token(tenant, "tenant"), name or tenant, operator=operator)
    except subjects.InvalidName as error:
        raise Told(str(error)) from None
    click.echo(entry)
    click.echo(f"# the key, which nobody can show again: {made}", err=True)


# --- recordings -------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("session")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--tenant", help="Whose session it is. [default: MYNA_TENANT, else default]")
def export(session: str, file: Path, tenant: str | None) -> None:
    """Write what happened in SESSION into FILE: calls, values, where and when each was made."""
    recording = asyncio.run(exported(located(operator=True), session, tenant))
    recording.save(file)
    _show_recording(terminal(), recording)


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--show", is_flag=True, help="Only show what is recorded.")
@click.option("--recompute", multiple=True, metavar="VARIABLE", help="Make it, and all that is made of it, anew.")
@click.option(
    "--set", "given", multiple=True, metavar="VARIABLE=TEXT", help="Give it this value, and make anew what needs it."
)
@click.option("--tenant", help="Whose session it becomes. [default: MYNA_TENANT, else default]")
def replay(file: Path, show: bool, recompute: tuple[str, ...], given: tuple[str, ...], tenant: str | None) -> None:
    """Go on from a recording in a new session: what has a value keeps it, what has none is computed, and shown."""
    from myna.sdk.recording import Recording

    recording = Recording.load(file)
    if show:
        _show_recording(terminal(), recording)
        return
    values = dict(pair.partition("=")[::2] for pair in given)
    asyncio.run(_replay(located(), recording, recompute, values, tenant))


async def _replay(
    settings: config.Settings,
    recording: Recording,
    recompute: tuple[str, ...],
    values: dict[str, str],
    tenant: str | None,
) -> None:
    from myna.sdk.client import Client
    from myna.sdk.errors import MynaError
    from myna.sdk.replaying import replayed

    bus = await config.connect_bus(settings, "myna-replay")
    try:
        client = Client(bus=bus, tenant=tenant or settings.tenant)
        async with replayed(client, recording, recompute=recompute, values=values) as (session, variables):
            click.echo(f"session {session.id}")
            for name, variable in variables.items():
                try:
                    value = await variable.value()
                except MynaError as error:
                    click.echo(f"{name}: {error}")
                else:
                    same = (old := recording.values.get(name)) is not None and old.text == value.text
                    click.echo(f"{name} {'=' if same else '!='} {value.text!r}")
    finally:
        await bus.close()


def _show_recording(console: Console, recording: Recording) -> None:
    calls = plain_table("call", "function", "outputs", "worker", "began", "seconds", "tokens")
    start = min((said.at for said in recording.log), default=0.0)
    values, timings = recording.values, recording.timings
    for call in recording.calls.values():
        from myna.actors.program import outputs_of

        outputs = outputs_of(call)
        timing = next((timings[o] for o in outputs if o in timings), None)
        when = ("", "", "") if timing is None else _when(timing, start)
        tokens = sum(values[o].usage.output_tokens for o in outputs if o in values)
        calls.add_row(call.id, call.function, ", ".join(outputs), *when, str(tokens))
    console.print(calls)
    count = len(recording.outcomes)
    console.print(
        f"{len(recording.calls)} calls, {len(values)} values, {count - len(values)} other outcomes", highlight=False
    )


def _when(timing: Timing, start: float) -> tuple[str, str, str]:
    return timing.worker, f"{timing.began - start:.3f}", f"{timing.ended - timing.began:.3f}"


# --- agent ------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("targets", nargs=-1, required=True, metavar="MODULE[:NAME]...")
def agent(targets: tuple[str, ...]) -> None:
    """Serve agents: the functions decorated with @myna.agent in these modules, or only those named."""
    from myna.actors import logs
    from myna.sdk.serving import serve_targets

    settings = located()
    logs.configure(settings.log, process="agent")
    sys.path.insert(0, "")  # as `python -m` does: the modules of the folder one stands in
    asyncio.run(serve_targets(targets, settings))


# --- demo -------------------------------------------------------------------------------------------------------------


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run an example application; without a name, list them."""
    from myna.actors import logs

    found = examples()
    if name is None:
        _list(terminal(), found)
        return
    module = name.replace("-", "_")
    if module not in found:
        raise Told(f"there is no example {name!r}; there are: {', '.join(found) or 'none'}")
    logs.calm()
    sys.argv = [f"myna demo {name}", *arguments]
    runpy.run_module(f"myna.sdk.examples.{module}", run_name="__main__", alter_sys=False)


def examples() -> dict[str, str]:
    """The shipped examples by name, each with the first line of its documentation; none of them is imported."""
    folder = Path(__file__).parent / "examples"
    return {file.stem: _first_line(file) for file in sorted(folder.glob("[!_]*.py"))}


def _first_line(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _list(console: Console, found: dict[str, str]) -> None:
    table = plain_table("example", "what it shows")
    for name, line in found.items():
        table.add_row(name, line)
    console.print(table, "run one with: myna demo NAME", sep="\n")
