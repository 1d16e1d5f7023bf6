"""The command line: `myna up`, `status`, `agent`, `demo`. What a person did wrong is told in a sentence.

Heavy parts are imported by the command that needs them, so that `myna --help` is quick.
"""

from __future__ import annotations

import ast
import asyncio
import runpy
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from myna.actors import config

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from myna.actors.machine.home import Info
    from myna.actors.machine.shell import Observer
    from myna.actors.messages import Explanation, Status


class Told(click.ClickException):
    """An error that is a person's to mend: shown as one message, exit status 1."""


class Unreachable(Told):
    """There is nobody to ask."""

    exit_code = 3


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
    from myna.sdk.errors import MynaError

    return (config.ConfigError, BusError, AlreadyRunning, MachineFailed, ServerError, MynaError)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("myna"), "-V", "--version", message="myna %(version)s")
def main() -> None:
    """Myna serves LLM applications: graphs of calls joined by semantic variables, over NATS."""


# --- up ---------------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--engines", type=click.IntRange(1, 64), default=1, show_default=True, help="How many engines to run.")
@click.option("--model", help="Hub id, folder or GGUF file. [default: MYNA_MODEL, else SmolLM2-135M-Instruct]")
@click.option("--noop", is_flag=True, help="Engines without a model, which answer at once: for trying things out.")
def up(engines: int, model: str | None, noop: bool) -> None:
    """Run a whole machine here: NATS server, scheduler, engines. Ctrl-C ends it."""
    from myna.actors import logs
    from myna.actors.machine import Plan
    from myna.actors.machine import up as run_machine

    settings = config.read()
    if model is not None:
        settings = config.with_model(settings, model)
    logs.configure(settings.log, process="up")
    console = _console(stderr=True)
    with console.status("starting") as status:

        def on_ready(info: Info, folder: Path) -> None:
            status.stop()
            _tell_ready(console, info, settings.home, folder)

        plan = Plan(engines=engines, noop=noop)
        asyncio.run(run_machine(settings, plan, on_ready=on_ready, on_change=_show_progress(status.update)))
    console.print("stopped; no process is left")


def _show_progress(show: Callable[[str], None]) -> Observer:
    def observe(states: Any) -> None:
        show("   ".join(f"{name} [dim]{state}[/]" for name, (state, _) in states.items()))

    return observe


def _tell_ready(console: Console, info: Info, home: Path, logs: Path) -> None:
    console.print(f"[bold green]ready[/] at {info.url} (process {info.pid})")
    console.print(f"  state   {home}", f"  logs    {logs}", "  look    myna status", "  end     Ctrl-C", sep="\n")


# --- status -----------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=5.0, show_default=True, help="Seconds to wait.")
def status(as_json: bool, timeout: float) -> None:
    """Show the engines, agents and open sessions, and how many calls wait."""
    seen = asyncio.run(_ask(_located(), timeout))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(seen))
    else:
        _show(_console(), seen)


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
    seen = asyncio.run(_ask_why(_located(), call, session, timeout))
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
    from myna.actors import codec, subjects
    from myna.actors.messages import Explanation, Why

    answer = await _request(settings, subjects.WHY, codec.encode(Why(call=call, session=session)), seconds)
    return codec.decode(answer, Explanation)


async def _ask(settings: config.Settings, seconds: float) -> Status:
    from myna.actors import codec, subjects
    from myna.actors.messages import Status, StatusRequest

    return codec.decode(await _request(settings, subjects.STATUS, codec.encode(StatusRequest()), seconds), Status)


async def _request(settings: config.Settings, subject: str, data: bytes, seconds: float) -> bytes:
    """A question to the leading scheduler."""
    from myna.actors.bus import Unavailable

    bus = await config.connect_bus(settings, "myna-question", patience=seconds)
    try:
        answer = await bus.request(subject, data, timeout=seconds)
    except Unavailable as error:
        address = settings.address and settings.address.url
        raise Unavailable(f"the server at {address} is there, but no scheduler leads: {error}") from error
    finally:
        await bus.close()
    return answer.data


def _show(console: Console, seen: Status) -> None:
    leads = f"scheduler {seen.scheduler} leads (lease {seen.lease})"
    console.print(f"{leads}; {seen.queued} ready calls wait for a worker", highlight=False)
    workers = _table("worker", "kind", "serves", "running", "capacity", "heard of")
    for worker in seen.workers:
        heard = "draining" if worker.draining else f"{worker.silent_seconds:.1f} s ago"
        serves = ", ".join(worker.serves)
        workers.add_row(worker.worker, worker.kind, serves, str(worker.running), str(worker.capacity), heard)
    sessions = _table("session", "name", "tenant", "calls", "waiting", "ready", "running", "done")
    for session in seen.sessions:
        counts = (session.calls, session.waiting, session.ready, session.running, session.done)
        sessions.add_row(session.session, session.name, session.tenant, *map(str, counts))
    for table, none in ((workers, "no workers"), (sessions, "no open sessions")):
        console.print(table if table.row_count else none)


# --- agent ------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("targets", nargs=-1, required=True, metavar="MODULE[:NAME]...")
def agent(targets: tuple[str, ...]) -> None:
    """Serve agents: the functions decorated with @myna.agent in these modules, or only those named."""
    from myna.actors import logs
    from myna.sdk.serving import serve_targets

    settings = _located()
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
        _list(_console(), found)
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
    table = _table("example", "what it shows")
    for name, line in found.items():
        table.add_row(name, line)
    console.print(table, "run one with: myna demo NAME", sep="\n")


# --- parts ------------------------------------------------------------------------------------------------------------


def _located() -> config.Settings:
    """The settings with an address: the configured one, or that of the machine that runs here."""
    from myna.actors.machine import home

    settings = home.located(config.read())
    if settings.address is None:
        raise Unreachable(f"no machine runs in {settings.home}; start one with `myna up`, or set MYNA_URL")
    return settings


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(*columns, box=SIMPLE, pad_edge=False)
