"""What users install: the wheels are complete, contain nothing else, and work without the checkout."""

from __future__ import annotations

import json
import re
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from .conftest import InstalledWheels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("run", "generate", "plugins", "version", "devchain", "contracts", "demo")
PLUGINS = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}
CLIENTS = {path.parent.name for path in (ROOT / "clients").glob("*/pyproject.toml")}


def contents(wheels: list[Path]) -> dict[str, ZipFile]:
    return {wheel.name.partition("-")[0]: ZipFile(wheel) for wheel in wheels}


def folder_of(package: str) -> Path:
    if package in CLIENTS:
        return ROOT / "clients" / package
    return ROOT if package == "perun_core" else ROOT / "plugins" / package.removeprefix("perun_")


def metadata(archive: ZipFile) -> Message:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_every_distribution_has_a_wheel_for_every_platform(wheels: list[Path]) -> None:
    assert {wheel.name for wheel in wheels} == {
        f"{name}-0.1.0-py3-none-any.whl"
        for name in {"perun_core", *(f"perun_{plugin}" for plugin in PLUGINS), *CLIENTS}
    }


def test_a_wheel_holds_one_typed_package_and_nothing_else(wheels: list[Path]) -> None:
    for package, archive in contents(wheels).items():
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {package, f"{package}-0.1.0.dist-info"}
        assert f"{package}/py.typed" in names
        assert f"{package}/__init__.py" in names
        assert not [name for name in names if "__pycache__" in name or "/tests/" in name or name.endswith(".pyc")]


def test_every_python_file_of_a_package_is_in_its_wheel(wheels: list[Path]) -> None:
    for package, archive in contents(wheels).items():
        folder = folder_of(package)
        sources = {str(path.relative_to(folder)) for path in (folder / package).rglob("*.py*") if path.suffix != ".pyc"}
        assert sources <= set(archive.namelist())


def test_metadata_names_version_licence_and_python(wheels: list[Path]) -> None:
    for archive in contents(wheels).values():
        message = metadata(archive)
        assert (message["Version"], message["License-Expression"]) == ("0.1.0", "Apache-2.0")
        assert message["Requires-Python"] == ">=3.11"


def test_a_plugin_requires_exactly_this_core_and_announces_itself(wheels: list[Path]) -> None:
    archives = contents(wheels)
    for plugin in PLUGINS:
        archive = archives[f"perun_{plugin}"]
        requirements = [line.replace(" ", "") for line in metadata(archive).get_all("Requires-Dist", [])]
        assert "perun-core==0.1.0" in requirements
        points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert re.search(rf"\[perun\.plugins\]\s+{plugin} = perun_{plugin}\s", archive.read(points).decode() + "\n")


def test_a_client_needs_nothing_of_the_node(wheels: list[Path]) -> None:
    archives = contents(wheels)
    for client in CLIENTS:
        requirements = metadata(archives[client]).get_all("Requires-Dist", [])
        assert not [line for line in requirements if line.startswith("perun-")]


def test_the_extra_all_brings_every_default_plugin(wheels: list[Path]) -> None:
    from perun_core.plugin.manager import DEFAULT_PLUGINS

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["all"]
    assert sorted(extra) == sorted(f"perun-{name.replace('_', '-')}==0.1.0" for name in DEFAULT_PLUGINS)


def test_our_packages_come_from_the_wheels(installed_wheels: InstalledWheels, tmp_path: Path) -> None:
    packages = ["perun_core", *(f"perun_{plugin}" for plugin in sorted(PLUGINS)), *sorted(CLIENTS)]
    program = "import importlib, sys; [print(importlib.import_module(name).__file__) for name in sys.argv[1:]]"
    result = installed_wheels.run("python", "-c", program, *packages, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    files = [Path(line) for line in result.stdout.splitlines()]
    assert files == [installed_wheels.site_packages / package / "__init__.py" for package in packages]


def test_every_default_plugin_loads_in_an_installation(installed_wheels: InstalledWheels, tmp_path: Path) -> None:
    result = installed_wheels.run("perunnode", "plugins", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert {name: row["error"] for name, row in rows.items() if row["enabled"]} == dict.fromkeys(
        ("idprovider_local", "keymgr_ethkeystore", "store_sqlite", "comm_tcp", "chain_ethereum", "api_grpc"), ""
    )


def test_an_installed_node_has_its_commands(installed_wheels: InstalledWheels, tmp_path: Path) -> None:
    assert "perunnode v0.1.0" in installed_wheels.run("perunnode", "version", cwd=tmp_path).stdout
    assert installed_wheels.run("perunnode", "generate", cwd=tmp_path).returncode == 0
    assert (tmp_path / "node.yaml").is_file()
    usage = installed_wheels.run("perunnode", "--help", cwd=tmp_path).stdout
    assert all(f"\n  {command}" in usage for command in COMMANDS)
