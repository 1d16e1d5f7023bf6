"""`myna endpoints`: whether the endpoints of a file are there, and what they serve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from myna.actors import config
from myna.sdk.cli_parts import Told, plain_table, terminal

if TYPE_CHECKING:
    from myna.actors.endpoints.settings import Endpoint


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def endpoints(file: Path | None) -> None:
    """Ask each endpoint of FILE, or of the file that MYNA_ENDPOINTS names, for its models. No token is generated.

    Exit status 1 if one does not answer, or has not the models that it is configured to serve.
    """
    from myna.actors.endpoints.settings import read

    path = file or config.read().endpoints
    if path is None:
        raise Told("no endpoints are configured: name a file, or set MYNA_ENDPOINTS to one")
    found = asyncio.run(_ask_all(read(path).endpoint))
    table = plain_table("endpoint", "kind", "address", "serves", "answers")
    for endpoint, (models, wrong) in found:
        names = ", ".join(endpoint.models or models)
        table.add_row(endpoint.name, endpoint.dialect, endpoint.url, names, wrong or "yes")
    terminal().print(table)
    if any(wrong for _, (_, wrong) in found):
        raise click.exceptions.Exit(1)


async def _ask_all(every: tuple[Endpoint, ...]) -> list[tuple[Endpoint, tuple[tuple[str, ...], str]]]:
    return list(zip(every, await asyncio.gather(*map(_ask, every)), strict=True))


async def _ask(endpoint: Endpoint) -> tuple[tuple[str, ...], str]:
    """The models that are there, and what is wrong, if something is."""
    from myna.actors.endpoints.client import Client, Trouble

    client = Client(endpoint)
    try:
        models = await client.models()
    except Trouble as trouble:
        return (), str(trouble)
    finally:
        await client.close()
    missing = sorted(set(endpoint.models.values()) - set(models)) if models else []
    return models, f"it has no model {', '.join(missing)}" if missing else ""
