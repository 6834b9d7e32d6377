"""What every operation costs: never more than the baseline of CHAIN.md 7, never more than what we committed."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gas.py"


@pytest.fixture(scope="module")
def gas() -> Any:
    """The names of the script, and `measured`, its table."""
    names = runpy.run_path(str(SCRIPT))
    return SimpleNamespace(**names, measured=names["table"]())


def test_c21_no_operation_is_above_the_baseline(gas: Any) -> None:
    assert [row for row in gas.measured if row.ours > row.baseline] == []


def test_c21_no_operation_is_above_its_committed_figure(gas: Any) -> None:
    committed = json.loads(gas.COMMITTED.read_text(encoding="utf-8"))
    assert gas.rises(gas.measured, committed) == []
    assert list(committed) == [row.operation for row in gas.measured]


def test_c21_whole_channels_stay_well_below_the_baseline(gas: Any) -> None:
    changes = {row.operation: row.change for row in gas.measured if row.operation in gas.HAPPY}
    assert len(changes) == 2
    assert max(changes.values()) <= -8.0


def test_c21_a_rise_fails_the_script(gas: Any, tmp_path: Path) -> None:
    committed = {row.operation: row.ours for row in gas.measured}
    committed["withdraw ETH, all"] -= 1
    file = tmp_path / "committed.json"
    file.write_text(json.dumps(committed), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "--committed", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "withdraw ETH, all" in done.stderr
