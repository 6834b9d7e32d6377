"""No scenario of the published behaviour is without a test: each number stands in the name of one.

The numbers are those of API.md 7 and of the defects of API.md 2.9. A test counts where it drives a real node.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "tests" / "integration" / "scenarios"
PERSISTENCE = "tests/integration/test_persistence*.py"
"""Where what survives a session is told."""

NUMBERS = {"N": 14, "S": 12, "P": 24, "F": 12, "C": 17, "R": 4, "U": 7, "X": 12}
"""The scenarios by letter: from 1 to this number."""

DEFECTS = 24
"""The defects: from 1 to this number."""


def names(pattern: str, root: Path = ROOT) -> Iterator[str]:
    """Names of the test functions in the files of `pattern`."""
    for file in root.glob(pattern):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield node.name


def numbers(functions: Iterator[str]) -> set[str]:
    """The numbers at the beginning of the functions' names."""
    found: set[str] = set()
    for name in functions:
        head = re.match(r"test((?:_[NSPFCRUXD]\d+)+)_", name, re.IGNORECASE)
        if head:
            found.update(head[1].upper().split("_")[1:])
    return found


@pytest.mark.parametrize("letter", NUMBERS)
def test_every_scenario_has_a_test_that_drives_a_real_node(letter: str) -> None:
    wanted = {f"{letter}{number}" for number in range(1, NUMBERS[letter] + 1)}
    told = numbers(names("test_*.py", SCENARIOS)) | numbers(names(PERSISTENCE))
    assert not wanted - told, f"scenarios without a test: {sorted(wanted - told)}"


def test_every_defect_has_a_test_that_it_would_fail() -> None:
    wanted = {f"D{number}" for number in range(1, DEFECTS + 1)}
    told = numbers(names("tests/integration/**/test_*.py"))
    assert not wanted - told, f"defects without a test: {sorted(wanted - told)}"
