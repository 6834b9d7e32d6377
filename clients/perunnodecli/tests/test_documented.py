"""The reference page has every command with its arguments, every option and every exit code."""

from __future__ import annotations

import re
from pathlib import Path

from perunnodecli.failures import (
    CATEGORIES,
    DEFECT,
    INTERRUPTED,
    OK,
    ChainFailure,
    NodeFailure,
    NothingCame,
    UsageFailure,
)
from perunnodecli.grammar import GROUPS, SHELL_ONLY, SINGLE_ONLY, commands_of
from perunnodecli.main import parser

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "perunnodecli.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    _, found, rest = PAGE.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"^#{2,3} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_every_command_is_described_with_arguments_synonyms_and_where_it_works() -> None:
    for group in GROUPS:
        rows = {row.split("|")[1].strip(" `"): row for row in section(f"### {group.name}").splitlines() if "| `" in row}
        assert rows.keys() == {command.name for command in commands_of(group.name)}
        for command in commands_of(group.name):
            row = rows[command.name].replace("\\|", "|")
            assert command.usage.removeprefix(f"Usage: {command.full_name}").strip() in row
            assert all(f"`{synonym}`" in row for synonym in command.synonyms)
            assert command.help in row
            assert ("*shell*" in row, "*single*" in row) == (
                command.full_name in SHELL_ONLY,
                command.full_name in SINGLE_ONLY,
            )


def test_the_built_ins_are_described() -> None:
    assert all(f"| `{command.name}` |" in section("### Built into the shell") for command in commands_of(""))


def test_every_option_is_described() -> None:
    described = set(re.findall(r"^\| `(--[a-z-]+)` \|", section("## Options"), re.MULTILINE))
    assert described == {option for action in parser()._actions for option in action.option_strings if option != "-h"}


def test_every_exit_code_is_described() -> None:
    failures = (UsageFailure, NodeFailure, ChainFailure, NothingCame)
    codes = {OK, DEFECT, INTERRUPTED, *CATEGORIES.values(), *(failure.exit_code for failure in failures)}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section("## Exit codes"), re.MULTILINE)} == codes
