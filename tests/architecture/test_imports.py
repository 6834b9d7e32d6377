"""The direction of imports is a test: the contracts of pyproject.toml hold, and no module escapes them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Shipped for plugin authors or rendered by a command; nothing of the node imports them.
OUTSIDE = {"perun_core.template"}


def layered_modules() -> set[str]:
    layers = next(c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "layers")["layers"]
    names = (name.strip(" ()") for layer in layers for name in layer.replace(":", "|").split("|"))
    return set(names)


def modules_of_the_core() -> set[str]:
    folder = ROOT / "perun_core"
    packages = {f"perun_core.{path.parent.name}" for path in folder.glob("*/__init__.py")}
    plain = {f"perun_core.{path.stem}" for path in folder.glob("[a-z]*.py")}
    ports = {f"perun_core.ports.{path.stem}" for path in (folder / "ports").glob("*.py")} - {
        "perun_core.ports.__init__"
    }
    return (packages | plain | ports) - {"perun_core.ports"}


def test_every_import_contract_holds() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [str(program), "--no-cache", "--config", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_module_of_the_core_has_a_layer() -> None:
    assert modules_of_the_core() - OUTSIDE <= layered_modules()


def test_every_plugin_of_this_repository_is_under_the_contracts() -> None:
    plugins = {f"perun_{path.parent.name}" for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert plugins <= set(PROJECT["tool"]["importlinter"]["root_packages"])
