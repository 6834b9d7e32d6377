"""The ``perunnode`` group: our commands by module name, and those of plugins when they are needed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Final

import click

_OWN: Final[Mapping[str, tuple[str, str]]] = {
    "run": ("run", "Start the node."),
    "generate": ("generate", "Write demo configuration files and keys into the working directory."),
    "doctor": ("doctor", "Say what keeps the node from working, and by when sessions must be open again."),
    "backup": ("backup", "Write the databases of sessions into a directory, also while the node runs."),
    "restore": ("restore", "Bring databases back from a backup; the sessions open in recovery mode."),
    "trust": ("trust", "End recovery mode of sessions whose records are certainly complete."),
    "rescue": ("rescue", "Read rescue files, and bring channels back from them."),
    "keys": ("keys", "Create, import, list, check and move keys."),
    "plugins": ("plugins", "Show which plugins are installed and enabled."),
    "version": ("version", "Print the version."),
}
"""Command → (module of this package that has a command of that name, short help): help imports none of them."""

_ENABLED_VARIABLE: Final = "PERUN_PLUGINS__ENABLED"


class LazyGroup(click.Group):
    """Imports the module of a command when it is called, and plugins when a command is not one of ours."""

    _complete = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, those of plugins included."""
        self._add_plugin_commands()
        return sorted({*_OWN, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None."""
        if cmd_name in _OWN:
            return _own_command(cmd_name)
        self._add_plugin_commands()
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help text; uses the short texts above, so that no command module is imported."""
        rows = []
        for name in self.list_commands(ctx):
            text = _OWN[name][1] if name in _OWN else self.commands[name].get_short_help_str(80)
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _add_plugin_commands(self) -> None:
        if self._complete:
            return
        self._complete = True
        from ..plugin.manager import PluginHost

        enabled = os.environ.get(_ENABLED_VARIABLE)
        names = None if enabled is None else [name.strip() for name in enabled.split(",") if name.strip()]
        host = PluginHost.load_commands(names)
        self.commands.update({name: _PLACEHOLDER for name in _OWN})  # a plugin cannot take these names
        for problem in host.add_commands(self):
            click.echo(f"Warning: {problem}", err=True)
        for name in _OWN:
            del self.commands[name]
        for info in host.installed():
            if info.error and info.distribution:
                click.echo(f"Warning: {info.error} (perunnode plugins doctor)", err=True)


_PLACEHOLDER: Final = click.Command("taken")


def _own_command(name: str) -> click.Command:
    module = importlib.import_module(f".{_OWN[name][0]}", __package__)
    command: click.Command = getattr(module, name)
    return command


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.pass_context
def perunnode(ctx: click.Context) -> None:
    """Multi-user payment-channel node for Perun channels on Ethereum."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
