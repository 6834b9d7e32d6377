"""Log lines (API.md 4.6)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from perun_core import logs
from perun_core.errors import ConfigError


@pytest.fixture(autouse=True)
def standard_output_again() -> Iterator[None]:
    """Logging is process-wide: every test here leaves it as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.configure("error")
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.log"


def test_a_line_has_time_level_message_and_fields(file: Path) -> None:
    logs.configure("debug", file=str(file))
    structlog.get_logger().bind(node=1).debug("request served", method="Time", peer="al ice", code=201)
    assert re.fullmatch(
        r'▶ time="\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (Z|[+-]\d{4})" level=debug msg="request served" '
        r'node=1 method=Time peer="al ice" code=201\n',
        file.read_text(),
    )


def test_no_value_can_start_a_line_of_its_own_or_steer_a_terminal(file: Path) -> None:
    logs.configure("info", file=str(file))
    structlog.get_logger().info("a\n▶ time=forged", alias='x\r\n" level=fatal \x1b[2J\x9b2J\u2028')
    text = file.read_text()
    assert len(text.splitlines()) == 1
    assert not set(text) & {"\r", "\x1b", "\x9b", "\u2028"}


@pytest.mark.parametrize("name", ["panic", "fatal", "error", "warn", "warning", "info", "debug", "trace", "DeBuG"])
def test_level_names_are_known_in_any_case(name: str) -> None:
    logs.configure(name)


@pytest.mark.parametrize("name", ["", "loud", " info"])
def test_other_level_names_are_errors(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        logs.configure(name)
    assert caught.value.name == "loglevel"


def test_entries_below_the_level_are_not_written(file: Path) -> None:
    logs.configure("warn", file=str(file))
    log = structlog.get_logger()
    log.info("not this")
    log.warning("but this")
    log.critical("and this")
    assert [re.findall("level=([a-z]+)", line)[0] for line in file.read_text().splitlines()] == ["warning", "fatal"]


def test_a_file_is_appended_to_and_created_for_its_owner_only(file: Path) -> None:
    logs.configure("info", file=str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("kept\n")
    logs.configure("info", file=str(file))
    structlog.get_logger().info("added")
    assert file.read_text().startswith("kept\n▶ ")


@pytest.mark.parametrize("name", ["missing-folder/x.log", "nul\0", "."])
def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        logs.configure("info", file=str(tmp_path / name))
    assert caught.value.name == "logfile"


def test_loggers_from_before_follow_the_latest_file(tmp_path: Path) -> None:
    logs.configure("info", file=str(tmp_path / "one"))
    early = structlog.get_logger().bind(node=1)
    logs.configure("info", file=str(tmp_path / "two"))
    early.info("hello")
    assert (tmp_path / "one").read_text() == ""
    assert "hello" in (tmp_path / "two").read_text()


def test_json_lines_are_for_machines(file: Path) -> None:
    logs.configure("info", file=str(file), json_lines=True)
    structlog.get_logger().warning("hello\nworld", code=201, raw=b"\1")
    entry = json.loads(file.read_text())
    assert (entry["level"], entry["msg"], entry["code"]) == ("warning", "hello\nworld", 201)


def test_errors_of_libraries_are_not_lost_and_their_chatter_is(file: Path) -> None:
    logs.configure("debug", file=str(file))
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("asyncio").error("Task %s was lost", "x")
    assert 'msg="Task x was lost" lib=asyncio' in file.read_text()
    assert "chatter" not in file.read_text()


def test_an_exception_is_one_line_too(file: Path) -> None:
    logs.configure("error", file=str(file))
    try:
        raise LookupError("gone")
    except LookupError:
        structlog.get_logger().exception("cannot go on")
    assert "LookupError: gone" in file.read_text()
    assert len(file.read_text().splitlines()) == 1
