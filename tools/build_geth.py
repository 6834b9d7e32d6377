#!/usr/bin/env python3
"""Build the pinned geth chain node into tools/go/bin, where a Go toolchain exists. Takes about five minutes once.

The module's version is pinned here; the Go toolchain checks its content against the public checksum database. Doing it
again when it is there costs nothing and needs no network. Without Go nothing is built and that is said; tests that want
geth are skipped then. Prints the place of the executable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

VERSION: Final = "v1.16.9"
MODULE: Final = f"github.com/ethereum/go-ethereum/cmd/geth@{VERSION}"
BIN: Final = Path(__file__).resolve().parent / "go" / "bin"
GETH: Final = BIN / "geth"
# Written last, so that an interrupted build is done again.
STAMP: Final = BIN / ".built"


def geth_path() -> Path | None:
    """The geth executable: the environment variable GETH if set, else the built one, else None."""
    override = os.environ.get("GETH")
    if override:
        return Path(override)
    return GETH if GETH.is_file() else None


def is_built() -> bool:
    """Whether the pinned version is there already."""
    return GETH.is_file() and STAMP.is_file() and STAMP.read_text(encoding="utf-8") == MODULE


def build(go: str) -> None:
    """Compile with the toolchain `go`. Raises: SystemExit when that fails."""
    BIN.mkdir(parents=True, exist_ok=True)
    settings = {"GOBIN": str(BIN), "GOFLAGS": "-trimpath"}
    done = subprocess.run([go, "install", MODULE], env={**os.environ, **settings}, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{MODULE} could not be built")
    STAMP.write_text(MODULE, encoding="utf-8")


def main() -> None:
    """Build if needed and possible, and say where it is or why there is none."""
    if os.environ.get("GETH"):
        print(f"geth: {os.environ['GETH']} (GETH)")
        return
    if not is_built():
        go = shutil.which("go")
        if go is None:
            print("geth: not built, there is no Go toolchain (command go); tests on geth are skipped")
            return
        build(go)
    print(f"geth: {GETH}")


if __name__ == "__main__":
    main()
