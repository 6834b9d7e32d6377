"""Configuration files as text: YAML, JSON or TOML in, tables of texts out. Nothing is guessed, executed or quoted.

Every scalar stays what was written, so that an address such as ``0x…`` never becomes a number.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from .errors import ConfigError

MAX_FILE_SIZE: Final = 1 << 20
"""Bytes; larger configuration files are refused before they are parsed."""

MAX_DEPTH: Final = 16
"""Nesting of tables and lists in a configuration file."""

MAX_BRACKETS: Final = 64
"""Open brackets at one place of a JSON or TOML file, strings included, before it is parsed."""
_BRACKET: Final = re.compile(r"[\[\]{}]")


class Table(Mapping[str, object]):
    """One table of a configuration file: lower-case keys; values are text, tuples or tables. Immutable.

    Its repr shows keys only, because option tables hold passwords.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, object] | None = None) -> None:
        self._entries = dict(entries or {})

    def __getitem__(self, key: str) -> object:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Table({', '.join(self._entries)})"

    def over(self, lower: Table) -> Table:
        """`lower` with this table laid over it, key by key and table by table."""
        merged = dict(lower)
        for key, value in self.items():
            below = merged.get(key)
            merged[key] = value.over(below) if isinstance(value, Table) and isinstance(below, Table) else value
        return Table(merged)


def load_table(path: Path, *, name: str) -> Table:
    """The YAML, JSON or TOML file at `path` (by its extension), every scalar as text, keys in lower case.

    `name` is what a ConfigError calls the file. Errors never quote the file's content.
    Raises: ConfigError: not a readable regular file, larger than MAX_FILE_SIZE, of unknown type, or malformed.
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(name, str(path), "the file name must end with .yaml, .yml, .json or .toml")
    try:
        tree = parse(_read_text(path))
        if tree == "":
            tree = {}
        if not isinstance(tree, dict):
            raise ValueError("the file must hold a table of keys and values")
        return cast("Table", _frozen(tree, MAX_DEPTH))
    except OSError as e:
        raise ConfigError(name, str(path), f"cannot read the file: {e.strerror or type(e).__name__}") from e
    except RecursionError:
        raise ConfigError(name, str(path), "nested too deeply") from None
    except UnicodeDecodeError:
        raise ConfigError(name, str(path), "the file is not UTF-8 text") from None
    except ValueError as e:
        raise ConfigError(name, str(path), str(e)) from None


def _read_text(path: Path) -> str:
    # Not blocking: a pipe or device named instead of a file must not stop the node.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        content = file.read(MAX_FILE_SIZE + 1)
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"the file is larger than {MAX_FILE_SIZE} bytes")
    return content.decode("utf-8-sig")


def _frozen(tree: object, depth: int) -> object:
    """`tree` with lower-case keys and immutable tables and lists. Raises: ValueError."""
    if depth == 0 and isinstance(tree, dict | list):
        raise ValueError("nested too deeply")
    if isinstance(tree, list):
        return tuple(_frozen(item, depth - 1) for item in tree)
    if not isinstance(tree, dict):
        return _scalar(tree)
    entries: dict[str, object] = {}
    for key, value in tree.items():
        lower = key.lower()
        if lower in entries:
            raise ValueError(f"key {lower!r} is given twice")
        entries[lower] = _frozen(value, depth - 1)
    return Table(entries)


def _scalar(value: object) -> str:
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() if abs(value) < 2**63:
            return str(value)
        case int():
            raise ValueError("a number is too large; write addresses in quotes")
        case _:
            return str(value)


def _refuse_brackets(text: str) -> None:
    """The recursive parsers must not meet what no configuration needs, whatever the interpreter's limits are."""
    depth = 0
    for character in _BRACKET.findall(text):
        depth += 1 if character in "[{" else -1
        if depth > MAX_BRACKETS:
            raise ValueError("nested too deeply")


def _parse_json(text: str) -> object:
    _refuse_brackets(text)
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_unique)
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON: {e.msg} in line {e.lineno}, column {e.colno}") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is given twice")
    return table


def _parse_toml(text: str) -> object:
    _refuse_brackets(text)
    try:
        return tomllib.loads(text, parse_float=str)
    except tomllib.TOMLDecodeError as e:
        # Its message may quote a character, never a value.
        raise ValueError(f"not TOML: {e}") from None


def _parse_yaml(text: str) -> object:
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        return _YamlTree(iter(yaml.parse(text, Loader=loader))).document()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"not YAML: {e.problem}{where}") from None
    except yaml.YAMLError:
        raise ValueError("not YAML: a character that is not allowed") from None


class _YamlTree:
    """Builds tables, lists and texts from YAML events: no types, no tags, no aliases, one document."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events

    def document(self) -> object:
        import yaml

        tree: object = ""
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise ValueError("not YAML as expected here: more than one document")
                tree = self._node(next(self._events), MAX_DEPTH)
        return tree

    def _node(self, event: Any, depth: int) -> object:
        import yaml

        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases are not supported{_line(event)}")
        if event.tag is not None and event.tag != "!":
            raise ValueError(f"tags are not supported{_line(event)}")
        if depth == 0:
            raise ValueError(f"nested too deeply{_line(event)}")
        if isinstance(event, yaml.ScalarEvent):
            is_null = event.implicit[0] and event.value in ("null", "Null", "NULL", "~")
            return "" if is_null else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(depth - 1)
        return self._table(depth - 1)

    def _list(self, depth: int) -> list[object]:
        import yaml

        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth))
        return items

    def _table(self, depth: int) -> dict[str, object]:
        import yaml

        entries: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth)
            if not isinstance(key, str):
                raise ValueError(f"keys must be texts{_line(event)}")
            if key in entries:
                raise ValueError(f"key {key!r} is given twice{_line(event)}")
            entries[key] = self._node(next(self._events), depth)
        return entries


def _line(event: Any) -> str:
    return f" (line {event.start_mark.line + 1})"


_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
    ".toml": _parse_toml,
}
