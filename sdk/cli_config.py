"""`myna config`: what is configured, and all that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import click

from myna.actors import config
from myna.sdk.cli_parts import Told


@click.group("config")
def configuration() -> None:
    """Check the settings, or show them."""


_FILE = click.argument("file", type=click.Path(path_type=Path), required=False)


@configuration.command()
@_FILE
def check(file: Path | None) -> None:
    """Tell all that is wrong with the settings: those of FILE, or of the file that MYNA_CONFIG names, or of MYNA_HOME/myna.toml,
    beneath those of the environment."""
    found = config.problems(config.environment_with(file))
    if found:
        raise Told("\n  ".join((f"{len(found)} {'problem' if len(found) == 1 else 'problems'}:", *found)))
    if (endpoints := config.read(config.environment_with(file)).endpoints) is not None:
        from myna.actors.endpoints.settings import read

        read(endpoints)
    click.echo("the settings are right")


@configuration.command()
@_FILE
def show(file: Path | None) -> None:
    """Show the settings in force, as the variables that would set them. Passwords are hidden."""
    variables = config.to_environment(config.read(config.environment_with(file)))
    for name, value in variables.items():
        click.echo(f"{name}={'(hidden)' if name == 'MYNA_PASSWORD' else value}")
