"""``perunnode plugins``: what is installed, what is enabled, and why something did not load."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from ..errors import PerunError
from ..plugin.manager import PluginHost, PluginInfo

_config_option = click.option(
    "--configfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the enabled plugins from this node configuration instead of the default set.",
)


@click.group(invoke_without_command=True)
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.pass_context
def plugins(ctx: click.Context, configfile: Path | None, as_json: bool) -> None:
    """Show which plugins are installed and enabled, and from where."""
    ctx.obj = configfile
    if ctx.invoked_subcommand is not None:
        return
    infos = _host(configfile).installed()
    if as_json:
        click.echo(json.dumps([_as_json(info) for info in infos], indent=2))
        return
    rows = [("PLUGIN", "STATE", "DISTRIBUTION", "VERSION", "PROVIDES"), *map(_row, infos)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@plugins.command()
@_config_option
@click.pass_obj
def doctor(outer: Path | None, configfile: Path | None) -> None:
    """Explain what did not load and how to repair it; exit code 1 when something did not."""
    infos = _host(configfile or outer).installed()
    broken = [info for info in infos if info.error]
    for info in infos:
        state = f"broken: {info.error}" if info.error else _row(info)[1]
        click.echo(f"{info.name}: {state}")
    if broken:
        sys.exit(1)


def _host(configfile: Path | None) -> PluginHost:
    enabled = None
    if configfile is not None:
        from ..config import load_node

        try:
            enabled = load_node(configfile, {}, os.environ).plugins.enabled
        except PerunError as e:
            raise click.ClickException(str(e)) from e
    return PluginHost.load(enabled, strict=False)


def _row(info: PluginInfo) -> tuple[str, str, str, str, str]:
    state = "broken" if info.error else "enabled" if info.enabled else "installed"
    return info.name, state, info.distribution or "-", info.version or "-", ", ".join(info.provides)


def _as_json(info: PluginInfo) -> dict[str, object]:
    return {field: getattr(info, field) for field in info.__struct_fields__}
