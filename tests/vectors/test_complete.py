"""No vector is left unread, and none of ours is missing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .loader import Vectors


def declared_lists() -> set[tuple[str, str]]:
    """What the tests of this directory read, by their declarations."""
    found: set[tuple[str, str]] = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for name, test in vars(module).items():
            if name.startswith("test_"):
                found |= {mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "reads"}
    return found


def test_there_are_vectors(vectors: Vectors) -> None:
    assert vectors.files(), f"no vectors in {vectors.directory}"
    assert vectors.lists()


def test_every_list_of_every_file_is_read(vectors: Vectors) -> None:
    assert vectors.lists() <= declared_lists()


def test_every_list_that_is_read_exists(vectors: Vectors, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--vectors") is not None:
        pytest.skip("another set may be smaller")
    assert declared_lists() <= vectors.lists()
    assert all(vectors.cases(file, name) for file, name in declared_lists())
