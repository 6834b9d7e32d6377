#!/usr/bin/env python3
"""Build the wheels of every distribution of this repository: build_wheels.py DIR. Needs no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


def projects() -> list[Path]:
    """Folders with a distribution: the core first, then plugins and clients by name."""
    found = (path.parent for kind in ("plugins", "clients") for path in (ROOT / kind).glob("*/pyproject.toml"))
    return [ROOT, *sorted(found)]


def build_wheels(target: Path) -> list[Path]:
    """Build into `target` (created when missing) with the installed hatchling. Raises: CalledProcessError."""
    target.mkdir(parents=True, exist_ok=True)
    for project in projects():
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target.resolve())],
            cwd=project,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    return sorted(target.glob("*.whl"))


if __name__ == "__main__":
    for wheel in build_wheels(Path(sys.argv[1])):
        print(wheel)
