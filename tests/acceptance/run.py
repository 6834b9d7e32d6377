#!/usr/bin/env python3
"""Run a black-box suite against the installed node and hold it to the scenarios that passed before.

    run.py DIR [--update] [--listed-only] [pytest arguments]

DIR is a folder with a pytest suite that drives ``perunnode`` over its published interfaces. A scenario listed in
passing.txt that does not pass makes the exit code 1; scenarios that pass and are not listed are reported, and added
with ``--update``. ``--listed-only`` runs only what is listed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PASSING: Final = Path(__file__).resolve().parent / "passing.txt"
ANVIL: Final = ROOT / "tools" / "npm" / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"


AT_MOST_AGAIN: Final = 5
"""Listed scenarios that may fail and are tried once more; more than that is no accident."""


def read_passing(path: Path) -> list[str]:
    """Scenarios that have to pass: one ``module::test[parameters]`` per line, ``#`` starts a comment."""
    if not path.exists():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def write_passing(path: Path, scenarios: set[str]) -> None:
    """Write the list in an order that makes differences readable."""
    head = "# Black-box scenarios that pass; `make acceptance` fails when one of them does not. Grows with --update.\n"
    path.write_text(head + "".join(f"{scenario}\n" for scenario in sorted(scenarios)), encoding="utf-8")


def read_results(report: Path) -> dict[str, str]:
    """Outcome (passed, failed, skipped) of every scenario in a JUnit report."""
    results: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        scenario = f"{case.get('classname', '')}::{case.get('name', '')}"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        else:
            outcome = "skipped" if case.find("skipped") is not None else "passed"
        # A scenario is reported twice when it passed and its clean-up failed.
        if results.get(scenario) != "failed":
            results[scenario] = outcome
    return results


def environment() -> dict[str, str]:
    """What the suite needs to find the node, the API definitions and the chain node."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env.setdefault("PROTO", str(ROOT / "plugins" / "api_grpc" / "proto"))
    if ANVIL.is_file():
        env.setdefault("ANVIL", str(ANVIL))
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    return env


def run_suite(suite: Path, report: Path, arguments: list[str]) -> int:
    """Run pytest in `suite`, in a process of its own that knows nothing of this repository's tests."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    return subprocess.run(command, cwd=suite, env=environment(), stdin=subprocess.DEVNULL, check=False).returncode


def listed_ids(passing: list[str]) -> list[str]:
    """The listed scenarios as pytest node ids."""
    return [f"{module.replace('.', '/')}.py::{test}" for module, _, test in (s.partition("::") for s in passing)]


def main(argv: list[str] | None = None) -> int:
    """Run, compare, report. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Run a black-box suite against the installed node.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--update", action="store_true", help="add scenarios that pass now to the list")
    parser.add_argument("--listed-only", action="store_true", help="run only what is on the list")
    parser.add_argument("--passing", type=Path, default=PASSING, help="the list (default: beside this script)")
    options, arguments = parser.parse_known_args(argv)
    passing = read_passing(options.passing)
    # Whatever else is handed to pytest may select; then only what ran can be judged.
    complete = not arguments
    if options.listed_only:
        if not passing:
            print("acceptance: nothing is listed yet; 0 passed, 0 failed")
            return 0
        arguments = [*listed_ids(passing), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_suite(options.suite.resolve(), report, arguments)
        # 0 and 1: the tests ran. Anything else (usage, collection, nothing found) judges nothing.
        if code not in (0, 1) or not report.exists():
            print(f"acceptance: the suite did not run (exit code {code})")
            return 2
        results = read_results(report)
        again = [scenario for scenario in passing if results.get(scenario) == "failed"]
        if 0 < len(again) <= AT_MOST_AGAIN:
            # Scenarios judge seconds of a real chain; one that lost a race passes alone, a broken one does not.
            print(f"acceptance: failed, tried once more alone: {', '.join(again)}")
            run_suite(options.suite.resolve(), report, listed_ids(again))
            results |= read_results(report)
    return judge(results, passing, options, complete=complete)


def judge(results: dict[str, str], passing: list[str], options: argparse.Namespace, *, complete: bool) -> int:
    """Compare with the list, print what changed and the totals.

    In a complete run a listed scenario must have passed; in a selection, what ran of the list must have.
    """
    passed = {scenario for scenario, outcome in results.items() if outcome == "passed"}
    failed = {scenario for scenario, outcome in results.items() if outcome == "failed"}
    expected = set(passing) if complete else set(passing) & set(results)
    broken = expected - passed
    new = passed - set(passing)
    for scenario in sorted(broken):
        print(f"acceptance: no longer passes: {scenario}")
    for scenario in sorted(new):
        print(f"acceptance: passes and is not listed: {scenario}")
    if options.update and new:
        write_passing(options.passing, set(passing) | new)
        print(f"acceptance: {len(new)} added to {options.passing.name}")
    print(f"acceptance: {len(passed)} passed, {len(failed)} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
