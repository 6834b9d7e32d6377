"""``perunnode restore``: databases back from a backup, in doubt until they were compared with peers and chain."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click

from ..config import load_node, load_session
from ..errors import PerunError
from ..node.backups import Namespaces, bring_back, node_source, session_source
from ..plugin.manager import PluginHost


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("session_files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--node", is_flag=True, help="Restore the node's own database too.")
@click.option("--configfile", default="node.yaml", show_default=True, help="Node configuration.")
def restore(source: Path, session_files: tuple[Path, ...], configfile: str, *, node: bool) -> None:
    """Restore the databases of SESSION_FILES from SOURCE, a directory that `perunnode backup` wrote.

    A database that has records is left alone. What is restored may be older than what was signed since, so the session
    opens in recovery mode: nothing new is signed before peers and chain have said what is newest.
    """
    try:
        config = load_node(Path(configfile), {}, os.environ)
        namespaces = Namespaces(config, PluginHost.load(config.plugins.enabled))
        sources = [*(node_source(config) if node else ())]
        sources += [session_source(file, load_session(file, sessiondir=config.sessiondir)) for file in session_files]
        if not sources:
            raise click.UsageError("name the session files whose databases are restored")
        for summary in asyncio.run(bring_back(sources, source, namespaces)):
            whose = summary.header.owner or "node"
            click.echo(f"{whose}: {summary.records} records, {summary.channels} open channels; opens in recovery mode")
    except PerunError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
