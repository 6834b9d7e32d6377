"""``perunnode backup``: the databases of sessions as they are now, while the node works."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import click

from ..config import NodeConfig, load_node, load_session
from ..errors import PerunError
from ..node.backups import Namespaces, Source, back_up, node_source, session_source
from ..plugin.manager import PluginHost


@click.command()
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
@click.argument("session_files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--configfile", default="node.yaml", show_default=True, help="Node configuration.")
def backup(destination: Path, session_files: tuple[Path, ...], configfile: str) -> None:
    """Write the databases of SESSION_FILES, and the node's own, into the directory DESTINATION.

    Works while the node runs and delays no payment. Without SESSION_FILES: every session file below `sessiondir`. A
    file that exists is never overwritten. Keys and passwords are not part of a backup; keep them yourself.
    """
    try:
        config = load_node(Path(configfile), {}, os.environ)
        namespaces = Namespaces(config, PluginHost.load(config.plugins.enabled))
        sources = sources_of(config, session_files)
        for summary in asyncio.run(back_up(sources, destination, namespaces, int(time.time()))):
            whose = summary.header.owner or "node"
            click.echo(f"{whose}: {summary.records} records, {summary.channels} open channels")
    except PerunError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def sources_of(config: NodeConfig, session_files: tuple[Path, ...]) -> list[Source]:
    """The node's namespace where it exists, and those of the sessions. Raises: ConfigError, click.UsageError."""
    sources = [source for source in node_source(config) if Path(source.database).is_dir()]
    files = session_files
    if not files and config.sessiondir:
        files = tuple(sorted(Path(config.sessiondir).glob("**/session*.y*ml")))
    sources += [session_source(file, load_session(file, sessiondir=config.sessiondir)) for file in files]
    if not sources:
        raise click.UsageError("name the session files, or a sessiondir in the node configuration")
    return sources
