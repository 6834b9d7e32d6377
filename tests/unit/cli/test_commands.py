"""The command line as a user and scripts see it (API.md 4.5)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perun_core.cli.group import perunnode

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("PERUN_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PERUN_PLUGINS__ENABLED", "")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(perunnode, arguments)

    return invoke


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_the_usage_is_shown(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert all(f"\n  {command}" in result.output for command in ("run", "generate", "version", "plugins"))


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["help"], ["--nothing"], ["run", "--nothing"], ["run", "--service", "x"], ["run", "--grpcport", "x"]],
    ids=" ".join,
)
def test_usage_errors_end_with_2(invoke: Invoke, arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_version_is_one_line(invoke: Invoke) -> None:
    result = invoke("version")
    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert all(word in result.output for word in ("v0.1.0", "git revision", "go-perun version: v0.9.0"))


def test_a_broken_plugin_leaves_the_command_line_usable(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERUN_PLUGINS__ENABLED", "store_that_nobody_installed")
    assert invoke("--help").exit_code == 0


class TestPlugins:
    @pytest.fixture(autouse=True)
    def as_the_file_says(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment would override the file."""
        monkeypatch.delenv("PERUN_PLUGINS__ENABLED")

    def test_the_list_says_what_is_enabled_and_what_is_broken(self, invoke: Invoke) -> None:
        Path("node.yaml").write_text("chainconntimeout: 1s\nplugins: {enabled: [store_nobody]}\n")
        result = invoke("plugins", "--configfile", "node.yaml", "--json")
        row = next(row for row in json.loads(result.stdout) if row["name"] == "store_nobody")
        assert row["enabled"]
        assert "pip install perun-store-nobody" in row["error"]
        assert "store_nobody" in invoke("plugins", "--configfile", "node.yaml").stdout

    def test_the_doctor_names_the_remedy_and_fails(self, invoke: Invoke) -> None:
        Path("node.yaml").write_text("chainconntimeout: 1s\nplugins: {enabled: [store_nobody]}\n")
        result = invoke("plugins", "doctor", "--configfile", "node.yaml")
        assert result.exit_code == 1
        assert "pip install perun-store-nobody" in result.stdout

    def test_the_doctor_is_content_when_nothing_is_wrong(self, invoke: Invoke) -> None:
        Path("node.yaml").write_text("chainconntimeout: 1s\nplugins: {enabled: []}\n")
        assert invoke("plugins", "doctor", "--configfile", "node.yaml").exit_code == 0
