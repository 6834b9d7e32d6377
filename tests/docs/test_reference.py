"""The reference is complete: what the code offers has an entry, and what has an entry exists."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import click
import pytest

import perun_core.ports
from perun_api_grpc.pb import funding_service_pb2, payment_service_pb2, watching_service_pb2
from perun_core.cli.group import LazyGroup
from perun_core.config import NODE_KEYS, SESSION_KEYS, USER_KEYS
from perun_core.errors import ApiError
from perun_core.plugin import hookspecs
from perun_core.plugin.manager import DEFAULT_PLUGINS, Kind, PluginHost
from tests.docs.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The text below `heading` up to the next heading of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def entries(text: str, *, columns: int = 1) -> set[tuple[str, ...]]:
    """The first `columns` cells of table rows, where they are written as code."""
    row = r"^\| " + r" \| ".join([r"`([^`]+)`"] * columns) + r" \|"
    return {found if isinstance(found, tuple) else (found,) for found in re.findall(row, text, re.MULTILINE)}


def first_cells(text: str) -> set[str]:
    return {cell for (cell,) in entries(text)}


def test_every_key_of_the_node_file_is_described() -> None:
    text = section(page("configuration.md"), "## Node file").partition("### Plugins")[0]
    assert first_cells(text) == set(NODE_KEYS)


def test_every_key_of_a_session_file_is_described() -> None:
    text = section(page("configuration.md"), "## Session file")
    assert first_cells(text) == set(SESSION_KEYS) | {f"user.{key}" for key in USER_KEYS}


def test_every_option_of_every_default_plugin_is_described() -> None:
    host = PluginHost.load()
    options = set()
    for plugin in DEFAULT_PLUGINS:
        kind, _, name = plugin.partition("_")
        if kind == Kind.API:
            config = next(frontend.config for frontend in host.apis() if frontend.name == name)
        else:
            config = getattr(host, kind)(name).config
        options |= {(plugin, option) for option in config.__struct_fields__}
    text = section(page("configuration.md"), "### Plugins")
    assert entries(text, columns=2) == options


def test_every_option_of_every_other_key_manager_is_described() -> None:
    others = ("keymgr_keyring", "keymgr_vault")
    host = PluginHost.load(others)
    names = [(plugin, plugin.partition("_")[2]) for plugin in others]
    options = {(plugin, option) for plugin, name in names for option in host.keymgr(name).config.__struct_fields__}
    assert entries(section(page("configuration.md"), "### Other key managers"), columns=2) == options


def test_every_hook_is_described() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("perun_")}
    assert first_cells(section(page("hooks-and-ports.md"), "## Hooks")) == hooks


def protocols() -> Iterator[type]:
    for module in pkgutil.iter_modules(perun_core.ports.__path__):
        loaded = importlib.import_module(f"perun_core.ports.{module.name}")
        for value in vars(loaded).values():
            own = inspect.isclass(value) and value.__module__ == loaded.__name__
            if own and getattr(value, "_is_protocol", False):
                yield value


@pytest.mark.parametrize("port", sorted(protocols(), key=lambda port: port.__name__), ids=lambda port: port.__name__)
def test_every_method_of_a_port_is_described(port: type) -> None:
    methods = {
        name
        for name, value in vars(port).items()
        if (inspect.isfunction(value) or isinstance(value, property))
        and (not name.startswith("_") or name == "__aiter__")
    }
    assert first_cells(section(page("hooks-and-ports.md"), f"### {port.__name__}")) == methods


def test_every_error_code_is_described_under_its_name() -> None:
    errors = {(str(error.code), error.__name__) for error in ApiError.__subclasses__()}
    found = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page("errors.md"), re.MULTILINE)
    assert set(found) == errors
    assert len(found) == len(errors)


@pytest.mark.parametrize(
    "service",
    [
        payment_service_pb2.DESCRIPTOR.services_by_name["Payment_API"],
        funding_service_pb2.DESCRIPTOR.services_by_name["Funding_API"],
        watching_service_pb2.DESCRIPTOR.services_by_name["Watching_API"],
    ],
    ids=lambda service: service.name,
)
def test_every_method_of_a_service_is_described(service: object) -> None:
    methods = {method.name for method in service.methods}  # type: ignore[attr-defined]
    assert first_cells(section(page("api.md"), f"## {service.name}")) == methods  # type: ignore[attr-defined]


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something by itself, with its full name."""
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def test_every_command_is_described_with_every_option() -> None:
    text = page("commands.md")
    known = dict(commands(LazyGroup(), "perunnode"))  # of its own: what a process has once loaded stays as it was
    assert set(re.findall(r"^## (perunnode .+)$", text, re.MULTILINE)) == set(known)
    for name, command in known.items():
        options = {parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)}
        assert first_cells(section(text, f"## {name}")) == options, name
