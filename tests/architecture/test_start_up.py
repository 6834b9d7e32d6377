"""What a start costs: commands import heavy libraries only when they use them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("asyncio", "dynaconf", "eth_tester", "google.protobuf", "grpc", "sqlite3", "web3", "yaml")


def imported_by(code: str) -> set[str]:
    listing = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(listing.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["version"], ["generate", "--help"]], ids=" ".join)
def test_a_small_command_imports_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "from click.testing import CliRunner\n"
        "import sys; before = set(sys.modules)\n"
        "from perun_core.cli.group import perunnode\n"
        f"assert CliRunner().invoke(perunnode, {arguments!r}).exit_code == 0\n"
        f"heavy = {HEAVY!r}\n"
        "print([name for name in heavy if name in sys.modules and name not in before])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_command_line_help_imports_neither_chain_nor_api_libraries() -> None:
    loaded = imported_by(
        "from click.testing import CliRunner\n"
        "from perun_core.cli.group import perunnode\n"
        "assert CliRunner().invoke(perunnode, ['--help']).exit_code == 0"
    )
    assert not loaded & {"grpc", "google.protobuf", "web3", "eth_tester", "sqlite3", "dynaconf", "yaml"}


def test_importing_the_values_of_the_core_starts_nothing() -> None:
    loaded = imported_by("import perun_core.values, perun_core.errors, perun_core.channel, perun_core.wire")
    assert not loaded & {"asyncio", "socket", "dynaconf", "structlog", "click"}
