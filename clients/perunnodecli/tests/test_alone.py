"""The client stands alone: it knows the node by the public definitions only, and starts without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[1]
SOURCES = sorted((CLIENT / "perunnodecli").rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CLIENT)))
def test_no_module_imports_anything_of_the_node(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.startswith("perun_")]


def test_the_committed_stubs_are_those_of_the_definitions() -> None:
    pytest.importorskip("grpc_tools")
    program = [sys.executable, str(CLIENT / "generate_stubs.py"), "--check"]
    check = subprocess.run(program, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr


def test_help_needs_neither_grpc_nor_a_terminal_library() -> None:
    script = (
        "import sys; from perunnodecli.main import run; assert run(['channel']) == 0; assert run(['help']) == 0\n"
        "assert not {'grpc', 'prompt_toolkit', 'rich', 'websockets'} & sys.modules.keys()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "send-opening-request" in run.stdout and "payment" in run.stdout
