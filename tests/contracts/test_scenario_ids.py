"""Every scenario of CHAIN.md 6.1 has tests that carry its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NAMES = {
    name
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    for name in re.findall(r"^def (test_c\d+_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


@pytest.mark.parametrize("number", range(1, 22))
def test_a_scenario_is_tested(number: int) -> None:
    assert [name for name in NAMES if name.startswith(f"test_c{number}_")]


def test_no_test_has_the_number_of_a_scenario_that_does_not_exist() -> None:
    assert {int(re.findall(r"\d+", name)[0]) for name in NAMES} == set(range(1, 22))
