"""What is lost when power is lost: only what was not synced, and names as well as contents."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from perun_core.testing.power import (
    Cut,
    Name,
    Output,
    Recording,
    SyncDirectory,
    SyncFile,
    Write,
    missing_tool,
    record,
)

ROOT = Path("/recorded")


def rebuilt(target: Path, *events: object, keep: float = 0.0, seed: int = 1) -> dict[str, bytes]:
    target.mkdir()
    recording = Recording(ROOT, list(events))  # type: ignore[arg-type]
    recording.rebuild(len(events), target, random.Random(seed), keep=keep)
    return {entry.name: entry.read_bytes() for entry in target.iterdir()}


def named(name: str, file: int | None, gone: str | None = None) -> Name:
    return Name(f"{ROOT}/{name}", file, None if gone is None else f"{ROOT}/{gone}")


DIRECTORY = SyncDirectory(str(ROOT))


def test_what_was_synced_is_there_and_what_was_not_is_lost(tmp_path: Path) -> None:
    events = (named("a", 1), Write(1, 0, b"synced"), SyncFile(1), DIRECTORY, Write(1, 0, b"UNSYNC"))
    assert rebuilt(tmp_path / "1", *events) == {"a": b"synced"}
    assert rebuilt(tmp_path / "2", *events, keep=1.0) == {"a": b"UNSYNC"}


def test_a_name_is_lost_unless_its_directory_was_synced(tmp_path: Path) -> None:
    content = (named("a", 1), Write(1, 0, b"x"), SyncFile(1))
    assert rebuilt(tmp_path / "1", *content) == {}
    assert rebuilt(tmp_path / "2", *content, DIRECTORY) == {"a": b"x"}
    renamed = (*content, DIRECTORY, named("b", 2), Write(2, 0, b"y"), SyncFile(2), DIRECTORY, named("a", 2, "b"))
    assert rebuilt(tmp_path / "3", *renamed) == {"a": b"x", "b": b"y"}
    assert rebuilt(tmp_path / "4", *renamed, DIRECTORY) == {"a": b"y"}
    assert rebuilt(tmp_path / "5", *content, DIRECTORY, named("a", None)) == {"a": b"x"}
    assert rebuilt(tmp_path / "6", *content, DIRECTORY, named("a", None), DIRECTORY) == {}


def test_a_large_write_may_be_there_in_part(tmp_path: Path) -> None:
    events = (named("a", 1), Write(1, 0, bytes(4096)), SyncFile(1), DIRECTORY, Write(1, 0, b"\xff" * 4096))
    seen = set()
    for seed in range(60):
        (content,) = rebuilt(tmp_path / str(seed), *events, keep=0.9, seed=seed).values()
        seen.add(content.count(b"\xff"))
    assert {0, 4096} < seen
    assert all(length % 512 == 0 for length in seen)


def test_cuts_tell_what_was_said_before(tmp_path: Path) -> None:
    recording = Recording(ROOT, [Output(b"1\n"), SyncFile(1), Output(b"2\n"), Cut(1, 0)])
    assert [recording.output_before(cut) for cut in recording.cuts()] == [b"", b"1\n", b"1\n", b"1\n2\n", b"1\n2\n"]
    assert [recording.changes_at(cut) for cut in recording.cuts()] == [True, False, True, False, True]


PROGRAM = """
import os, sys
root = sys.argv[1]
file = os.open(root + "/first", os.O_RDWR | os.O_CREAT, 0o600)
os.write(file, b"one ")
os.write(file, b"two")
os.fsync(file)
os.pwrite(file, b"ONE", 0)
os.ftruncate(file, 5)
os.write(1, b"said")
os.rename(root + "/first", root + "/second")
log = os.open(root + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(log, b"a")
os.write(log, b"b")
os.close(os.open(root + "/gone", os.O_WRONLY | os.O_CREAT, 0o600))
os.unlink(root + "/gone")
"""


def test_a_program_is_recorded_as_it_ran(tmp_path: Path) -> None:
    if problem := missing_tool():
        pytest.skip(problem)
    (tmp_path / "root").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "root")]
    recording = record(command, tmp_path / "root", tmp_path / "trace", environment=dict(os.environ))
    (tmp_path / "rebuilt").mkdir()
    recording.rebuild(len(recording.events), tmp_path / "rebuilt", random.Random(1), keep=1.0)
    found = {entry.name: entry.read_bytes() for entry in (tmp_path / "rebuilt").iterdir()}
    assert found == {"second": b"ONE t", "log": b"ab"}
    assert found == {entry.name: entry.read_bytes() for entry in (tmp_path / "root").iterdir()}
    assert recording.output_before(len(recording.events)) == b"said"
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="failed"):
        record(failing, tmp_path / "root", tmp_path / "trace", environment=dict(os.environ))
