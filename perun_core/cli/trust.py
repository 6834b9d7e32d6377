"""``perunnode trust``: the operator's word that a session in recovery mode has forgotten nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click

from ..config import load_node, load_session
from ..errors import PerunError
from ..node.backups import Namespaces, Source, session_source
from ..node.recovery import take_the_word
from ..plugin.manager import PluginHost


@click.command()
@click.argument("session_files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--configfile", default="node.yaml", show_default=True, help="Node configuration.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def trust(session_files: tuple[Path, ...], configfile: str, *, yes: bool) -> None:
    """End recovery mode of SESSION_FILES, which must not be open.

    Only for records that are certainly complete: whoever signs again with forgotten signatures about can lose money.
    """
    if not yes:
        click.confirm("Nothing was signed since these records were written. Is that certain?", abort=True)
    try:
        config = load_node(Path(configfile), {}, os.environ)
        namespaces = Namespaces(config, PluginHost.load(config.plugins.enabled))
        for file in session_files:
            source = session_source(file, load_session(file, sessiondir=config.sessiondir))
            click.echo(f"{file}: {asyncio.run(_trust(source, namespaces))}")
    except PerunError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


async def _trust(source: Source, namespaces: Namespaces) -> str:
    async with namespaces.open(source.backend, source.database) as store:
        channels, doubt = await take_the_word(store, namespaces.codec())
    if not doubt:
        return "was not in recovery mode"
    return f"recovery mode is over ({doubt}); {channels} channels go on"
