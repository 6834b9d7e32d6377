"""Where golden vectors come from, and which test reads which of their lists."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

OWN_SET = Path(__file__).parent / "gp090"

Case = dict[str, Any]

HEADERS = ("profile", "reference", "set", "topic", "apps", "keys")
"""Entries of a file that describe it instead of listing cases."""


def reads(file: str, name: str) -> pytest.MarkDecorator:
    """Declares that a test reads list `name` of `file` and, through its fixtures, provides it.

    Argument `case` makes one test of every case, `cases` gives the whole list, `apps` and `keys` the file's.
    """
    return pytest.mark.reads(file, name)


@cache
def _content(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict), f"{path} holds no object"
    return content


class Vectors:
    """One set of vector files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def cases(self, file: str, name: str) -> list[Case]:
        """The cases of a list; none when this set lacks it (`test_complete` decides whether it may)."""
        path = self.directory / file
        found = _content(path).get(name, []) if path.exists() else []
        assert isinstance(found, list), f"{file}: {name} is no list"
        return found

    def texts(self, file: str, name: str) -> list[str]:
        """A list whose cases are plain texts."""
        return [str(text) for text in self.cases(file, name)]

    def header(self, file: str, name: str) -> dict[str, str]:
        """An entry that describes the file."""
        path = self.directory / file
        found = _content(path).get(name, {}) if path.exists() else {}
        assert isinstance(found, dict), f"{file}: {name} is no object"
        return found

    def files(self) -> list[str]:
        """Names of all files of the set."""
        return sorted(path.name for path in self.directory.glob("*.json"))

    def lists(self) -> set[tuple[str, str]]:
        """Every list of every file of the set, as (file, name)."""
        return {
            (file, name) for file in self.files() for name in _content(self.directory / file) if name not in HEADERS
        }
