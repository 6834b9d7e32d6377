#!/usr/bin/env python3
"""Build the Vault server that tests use into tools/go/bin, where a Go toolchain exists. Takes some minutes once.

Its source and the checksums of everything it needs are in tests/servers/vault. Doing it again when it is there costs
nothing and needs no network. Without Go nothing is built and that is said; tests that want Vault are skipped then.
Prints the place of the executable.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = ROOT / "tests" / "servers" / "vault"
BIN: Final = ROOT / "tools" / "go" / "bin"
VAULT: Final = BIN / "vault"
# Written last, so that an interrupted build is done again.
STAMP: Final = BIN / ".built-vault"


def vault_path() -> Path | None:
    """The server: the environment variable VAULT_SERVER if set, else the built one, else None."""
    override = os.environ.get("VAULT_SERVER")
    if override:
        return Path(override)
    return VAULT if VAULT.is_file() else None


def fingerprint() -> str:
    """Changes with the sources and with what they need."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((SOURCE / name).read_bytes() + b"\0")
    return digest.hexdigest()


def is_built() -> bool:
    """Whether a server of these sources is there already."""
    return VAULT.is_file() and STAMP.is_file() and STAMP.read_text(encoding="utf-8") == fingerprint()


def build(go: str) -> None:
    """Compile with the toolchain `go`. Raises: SystemExit when that fails."""
    BIN.mkdir(parents=True, exist_ok=True)
    STAMP.unlink(missing_ok=True)
    command = [go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", str(VAULT), "."]
    if subprocess.run(command, cwd=SOURCE, env={**os.environ, "GOFLAGS": ""}, check=False).returncode != 0:
        raise SystemExit("the Vault server could not be built")
    STAMP.write_text(fingerprint(), encoding="utf-8")


def main() -> None:
    """Build if needed and possible, and say where it is or why there is none."""
    if os.environ.get("VAULT_SERVER"):
        print(f"vault: {os.environ['VAULT_SERVER']} (VAULT_SERVER)")
        return
    if not is_built():
        go = shutil.which("go")
        if go is None:
            print("vault: not built, there is no Go toolchain (command go); tests on Vault are skipped")
            return
        build(go)
    print(f"vault: {VAULT}")


if __name__ == "__main__":
    main()
