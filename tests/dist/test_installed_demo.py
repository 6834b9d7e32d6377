"""The demo from installed wheels: everything that runs a node is in them, on the oldest and on the newest Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import InstalledWheels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NEWEST = "3.13"
CHOICE = "PERUN_PYTHON_313"
"""Environment variable that names the interpreter when it is neither on the PATH nor among pyenv's."""


def assert_that_the_demo_runs(installation: InstalledWheels, directory: Path, *arguments: str) -> None:
    """Exit code 0, with every claim about money in the output."""
    result = installation.run("perunnode", "demo", *arguments, cwd=directory, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("  ok: ") == 8
    assert "WRONG" not in result.stdout
    assert "every unit is where it belongs" in result.stdout


def test_the_demo_runs_from_installed_wheels(installed_wheels: InstalledWheels, tmp_path: Path) -> None:
    assert_that_the_demo_runs(installed_wheels, tmp_path)


def test_two_nodes_run_from_installed_wheels(installed_wheels: InstalledWheels, tmp_path: Path) -> None:
    assert_that_the_demo_runs(installed_wheels, tmp_path, "--two-nodes")


def newest_python() -> str:
    """The interpreter to try; skips with the reason where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(map(str, pyenv.glob(f"versions/{NEWEST}*/bin/python{NEWEST}")))
    for program in filter(None, (os.environ.get(CHOICE), f"python{NEWEST}", *found)):
        try:
            asked = subprocess.run(
                [program, "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        if asked.stdout.strip() == NEWEST:
            return program
    pytest.skip(f"no Python {NEWEST} here: neither on the PATH nor among pyenv's, and {CHOICE} names none")


def test_the_demo_runs_from_installed_wheels_on_the_newest_python(wheels: list[Path], tmp_path: Path) -> None:
    program = newest_python()
    venv = tmp_path / "venv"
    subprocess.run([program, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    python = venv / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]
    lock = ["--only-binary", ":all:", "--require-hashes", "-r", str(ROOT / "requirements" / "dev.txt")]
    subprocess.run([*install, *lock], check=True, timeout=600)
    subprocess.run([*install, "--no-deps", "--no-index", *map(str, wheels)], check=True, timeout=300)
    installation = InstalledWheels(python, venv / "lib" / f"python{NEWEST}" / "site-packages")
    assert_that_the_demo_runs(installation, tmp_path)
