"""The ratchet: what passed before has to pass again, and what passes now is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent / "run.py"

SUITE = """\
import os, pathlib, shutil
import pytest

def test_works(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_depends(n):
    assert n == 1

def test_does_not_apply(): pytest.skip("not here")

def test_finds_what_it_needs():
    assert pathlib.Path(os.environ["PROTO"]).name == "proto"
    assert shutil.which("python")
"""


class Ratchet:
    """Runs the script on a suite of four scenarios with a list of its own."""

    def __init__(self, folder: Path) -> None:
        self.suite = folder / "suite"
        self.suite.mkdir()
        (self.suite / "test_node.py").write_text(SUITE)
        (self.suite / "pytest.ini").write_text("[pytest]\n")
        self.list = folder / "passing.txt"

    def __call__(self, *arguments: str) -> tuple[int, str]:
        result = subprocess.run(
            [sys.executable, str(RUN), str(self.suite), "--passing", str(self.list), *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        return result.returncode, result.stdout


@pytest.fixture
def ratchet(tmp_path: Path) -> Ratchet:
    return Ratchet(tmp_path)


def test_scenarios_that_never_passed_do_not_fail_the_run(ratchet: Ratchet) -> None:
    code, output = ratchet()
    assert code == 0
    assert output.endswith("acceptance: 3 passed, 1 failed\n")
    assert "passes and is not listed: test_node::test_works" in output


def test_the_list_grows_on_request_only(ratchet: Ratchet) -> None:
    ratchet()
    assert not ratchet.list.exists()
    ratchet("--update")
    listed = [line for line in ratchet.list.read_text().splitlines() if not line.startswith("#")]
    assert listed == ["test_node::test_depends[1]", "test_node::test_finds_what_it_needs", "test_node::test_works"]


def test_a_listed_scenario_that_fails_fails_the_run(ratchet: Ratchet) -> None:
    ratchet.list.write_text("test_node::test_works\ntest_node::test_depends[2]\n")
    code, output = ratchet()
    assert code == 1
    assert "no longer passes: test_node::test_depends[2]" in output


@pytest.mark.parametrize("scenario", ["test_node::test_gone", "test_node::test_does_not_apply"])
def test_a_listed_scenario_that_does_not_run_fails_the_run(ratchet: Ratchet, scenario: str) -> None:
    ratchet.list.write_text(f"test_node::test_works\n{scenario}\n")
    assert ratchet()[0] == 1


def test_only_the_listed_ones_run_when_asked(ratchet: Ratchet) -> None:
    ratchet.list.write_text("test_node::test_works\n")
    code, output = ratchet("--listed-only")
    assert code == 0
    assert output.endswith("acceptance: 1 passed, 0 failed\n")


def test_a_listed_scenario_that_vanished_fails_the_short_run_too(ratchet: Ratchet) -> None:
    ratchet.list.write_text("test_node::test_works\ntest_node::test_gone\n")
    assert ratchet("--listed-only")[0] != 0


def test_a_selection_is_judged_by_what_it_ran(ratchet: Ratchet) -> None:
    ratchet.list.write_text("test_node::test_works\ntest_node::test_finds_what_it_needs\n")
    assert ratchet("-k", "test_works")[0] == 0


def test_a_suite_that_does_not_start_fails_the_run(ratchet: Ratchet) -> None:
    (ratchet.suite / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    assert ratchet()[0] == 2


def test_a_suite_that_cannot_be_collected_fails_the_run(ratchet: Ratchet) -> None:
    (ratchet.suite / "conftest.py").write_text("import a_library_nobody_has\n")
    ratchet.list.write_text("test_node::test_works\n")
    assert ratchet()[0] != 0
