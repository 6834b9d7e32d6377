"""``perunnode doctor``: what keeps the node from working, and by when each session must be open again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from ..config import check_plugin_tables, load_node
from ..errors import PerunError
from ..node.absence import shown_span, shown_time
from ..node.diagnosis import ChannelFinding, Diagnosis, Finding, Level, SessionFinding, diagnose
from ..plugin.manager import PluginHost

SHOWN_ID = 16
"""Characters of a channel ID in the table; the JSON has all of them."""


@click.command()
@click.argument("session_files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--configfile", default="node.yaml", show_default=True, help="Node configuration.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def doctor(session_files: tuple[Path, ...], configfile: str, as_json: bool) -> None:
    """Check the node configuration and its chain, and the channels of SESSION_FILES.

    Says by when a node must be back with each session, so that no outdated state can stand. Changes nothing. Exit code
    0 when the node can work, 1 when there is a problem.
    """
    try:
        config = load_node(Path(configfile), {}, os.environ)
        plugins = PluginHost.load(config.plugins.enabled)
        check_plugin_tables(config.plugins, (info.name for info in plugins.installed()))
    except PerunError as error:
        found = Diagnosis((Finding(Level.PROBLEM, str(error)),))
    else:
        found = asyncio.run(diagnose(config, plugins, session_files))
    if as_json:
        click.echo(json.dumps({"problems": found.problems, **msgspec.to_builtins(found)}, indent=2))
    else:
        for line in lines(found, configfile):
            click.echo(line)
    if found.problems:
        sys.exit(1)


def lines(found: Diagnosis, configfile: str) -> Iterator[str]:
    """The diagnosis for people."""
    yield configfile
    yield from map(_finding, found.node)
    for session in found.sessions:
        yield ""
        yield from _session(session)
    yield ""
    yield "no problems" if not found.problems else f"problems: {found.problems}"


def _finding(finding: Finding) -> str:
    return f"    {finding.level:<8} {finding.text}"


def _session(session: SessionFinding) -> Iterator[str]:
    who = ", ".join(filter(None, (session.alias, session.off_chain)))
    yield f"{session.file} ({who})" if who else session.file
    yield from map(_finding, session.findings)
    if not session.channels:
        return
    rows: list[tuple[str, ...]] = [("CHANNEL", "PHASE", "VERSION", "PEER", "CHALLENGE", "BACK BEFORE", "ON CHAIN")]
    rows += [_row(channel) for channel in session.channels]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(channel: ChannelFinding) -> tuple[str, ...]:
    before = "-" if channel.back_before is None else shown_time(channel.back_before)
    return (
        channel.channel[:SHOWN_ID],
        channel.phase,
        str(channel.version),
        channel.peer,
        shown_span(channel.challenge_duration),
        before,
        channel.dispute or "-",
    )
