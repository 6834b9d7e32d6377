"""No scenario of the chain side is without a test: the numbers of CHAIN.md 6.2 and 6.3 stand in names or first words.

A test counts where it runs on a real chain node or a real EVM. The contracts' own scenarios (6.1) are counted next to
their tests.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("tests/chain", "plugins/chain_ethereum/tests/chain_backend")
"""Where the tests of the chain side are."""

ROWS: Final = tuple(f"B{number}" for number in range(1, 25)) + tuple(f"N{number}" for number in range(1, 10))

NOT_OURS: Final = {
    "B12": "trees of sub-channels: this node opens no sub-channels. What somebody else's add is withdrawn (B13).",
    "B15": "a buffer in which only the newest event survives: our feed drops nothing, so none has to win. States of "
    "sub-channels are not read from calldata: a channel of ours is the root of what registers it.",
}
"""Parts of rows that have no test, and why. No row is without any."""


def scenarios(place: str) -> Iterator[tuple[str, str]]:
    """Row and test function."""
    for file in sorted((ROOT / place).glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            named = re.match(r"test((?:_[bn]\d+)+)_", node.name)
            rows = set(named[1].upper().split("_")[1:]) if named else set()
            rows |= set(re.findall(r"\b[BN]\d+\b", ast.get_docstring(node) or ""))
            for row in rows:
                yield row, f"{file.name}: {node.name}"


@pytest.fixture(scope="module")
def tested() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for place in PLACES:
        for row, test in scenarios(place):
            found[row].append(test)
    return found


@pytest.mark.parametrize("row", ROWS)
def test_a_scenario_of_the_chain_side_is_tested(row: str, tested: dict[str, list[str]]) -> None:
    assert tested[row], f"no test is named after {row}"


def test_no_test_has_the_number_of_a_scenario_that_does_not_exist(tested: dict[str, list[str]]) -> None:
    assert set(tested) <= set(ROWS)


def test_what_is_left_out_is_left_out_of_rows_that_exist_for_a_reason() -> None:
    assert set(NOT_OURS) <= set(ROWS) and all(reason.endswith(".") for reason in NOT_OURS.values())
