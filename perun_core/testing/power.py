"""A disk that loses power: what a process wrote is recorded, and the files are rebuilt as any cut may leave them.

`record` runs a program under strace. `Recording.cuts` are the points between two of its calls. `Recording.rebuild`
makes the files as they may be after power was lost there: what was synced is there; every write, truncation, creation,
renaming and removal since the last sync of its file or directory is there, is missing, or (writes) is there in part,
as chance decides. The program's standard output says what it believed to be durable.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

SECTOR: Final = 512
"""Bytes that a disk writes as a whole."""
CALLS: Final = (
    "openat,open,creat,close,write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range,ftruncate,"
    "fallocate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3"
)
_LINE: Final = re.compile(r"^(?:\[pid +)?(\d+)\]? +(?:[\d.]+ +)?(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?(?: .*)?$")
_UNFINISHED: Final = re.compile(r"^(?:\[pid +)?(\d+)\]? +(.*) <unfinished \.\.\.>$")
_RESUMED: Final = re.compile(r"^(?:\[pid +)?(\d+)\]? +<\.\.\. \w+ resumed>(.*)$")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Cut:
    """A truncation."""

    file: int
    length: int


@dataclass(frozen=True)
class Name:
    """`path` stands for `file` from now on, or for nothing (None)."""

    path: str
    file: int | None
    gone: str | None = None
    """The other name a renaming takes away, in the same step."""


@dataclass(frozen=True)
class SyncFile:
    file: int


@dataclass(frozen=True)
class SyncDirectory:
    path: str


@dataclass(frozen=True)
class Output:
    """The program wrote to its standard output."""

    data: bytes


Event: TypeAlias = Write | Cut | Name | SyncFile | SyncDirectory | Output


def missing_tool() -> str:
    """Why nothing can be recorded here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "strace may not trace processes here"


@dataclass
class Recording:
    """Everything a program did to the files below one directory, in order."""

    root: Path
    events: list[Event] = field(default_factory=list)

    def cuts(self) -> range:
        """Every point at which power may be lost: before the first event, …, after the last."""
        return range(len(self.events) + 1)

    def output_before(self, cut: int) -> bytes:
        """What the program had said by then."""
        return b"".join(event.data for event in self.events[:cut] if isinstance(event, Output))

    def changes_at(self, cut: int) -> bool:
        """Whether the disk may be another one than at the cut before."""
        return cut == 0 or not isinstance(self.events[cut - 1], Output)

    def rebuild(self, cut: int, target: Path, chance: random.Random, *, keep: float) -> None:
        """Make the files of `root` below the empty directory `target`, as they may be after a loss of power at `cut`.

        `keep` is the share of what was not synced that reached the disk all the same: 0 is none, 1 everything.
        """
        disk = _Disk(chance, keep)
        for event in self.events[:cut]:
            disk.apply(event)
        disk.lose_power()
        for path, content in disk.files():
            place = target / Path(path).relative_to(self.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


class _Disk:
    """What is certainly there, and what is under way."""

    def __init__(self, chance: random.Random, keep: float) -> None:
        self._chance = chance
        self._keep = keep
        self._names: dict[str, int] = {}
        self._contents: dict[int, bytearray] = {}
        self._writes: dict[int, list[Write | Cut]] = {}
        self._renames: list[Name] = []

    def apply(self, event: Event) -> None:
        match event:
            case Write() | Cut():
                self._writes.setdefault(event.file, []).append(event)
            case Name():
                self._renames.append(event)
            case SyncFile():
                for change in self._writes.pop(event.file, ()):
                    self._change(change)
            case SyncDirectory():
                waiting, self._renames = self._renames, []
                for name in waiting:
                    if os.path.dirname(name.path) == event.path:
                        self._name(name)
                    else:
                        self._renames.append(name)
            case Output():
                pass

    def lose_power(self) -> None:
        for changes in self._writes.values():
            for change in changes:
                if self._chance.random() < self._keep:
                    self._change(self._torn(change))
        # A journal keeps the order of names: some first part of what was under way.
        for name in self._renames:
            if self._chance.random() >= self._keep:
                break
            self._name(name)

    def files(self) -> Iterator[tuple[str, bytes]]:
        for path, file in self._names.items():
            yield path, bytes(self._contents.get(file, b""))

    def _torn(self, change: Write | Cut) -> Write | Cut:
        if isinstance(change, Cut) or self._keep >= 1 or self._chance.random() < 0.5:
            return change
        sectors = len(change.data) // SECTOR
        return Write(change.file, change.offset, change.data[: self._chance.randint(0, sectors) * SECTOR])

    def _change(self, change: Write | Cut) -> None:
        content = self._contents.setdefault(change.file, bytearray())
        if isinstance(change, Cut):
            if len(content) > change.length:
                del content[change.length :]
            else:
                content.extend(bytes(change.length - len(content)))
            return
        if not change.data:
            return
        if len(content) < change.offset:
            content.extend(bytes(change.offset - len(content)))
        content[change.offset : change.offset + len(change.data)] = change.data

    def _name(self, name: Name) -> None:
        if name.gone is not None:
            self._names.pop(name.gone, None)
        if name.file is None:
            self._names.pop(name.path, None)
        else:
            self._names[name.path] = name.file


# ------------------------------------------------------------------------------------------------------ the recording


def record(command: Sequence[str], root: Path, trace: Path, *, environment: dict[str, str]) -> Recording:
    """Run `command`, whose files are below `root`, to its end. `trace` is a file to write to.

    Raises: RuntimeError when the program fails, or does something to its files that is not understood here.
    """
    root = root.resolve()
    traced = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-qq", "-e", f"trace={CALLS}", "-e", "signal=none"]
    done = subprocess.run(
        [*traced, "-o", str(trace), "--", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the recorded program failed: {done.stderr.decode(errors='replace')}")
    recording = Recording(root)
    recorder = _Recorder(str(root), recording.events)
    with trace.open(encoding="ascii", errors="replace") as lines:
        for process, name, arguments, result, shown in _calls(lines):
            recorder.call(process, name, arguments, result, shown)
    return recording


def _calls(lines: Iterator[str] | Sequence[str]) -> Iterator[tuple[str, str, str, int, str]]:
    """Calls in the order in which they ended, but writes in which they began being acknowledged cannot precede them."""
    begun: dict[str, str] = {}
    for line in lines:
        text = line.rstrip("\n")
        if unfinished := _UNFINISHED.match(text):
            begun[unfinished[1]] = unfinished[2]
            continue
        if resumed := _RESUMED.match(text):
            text = f"{resumed[1]} {begun.pop(resumed[1])}{resumed[2]}"
        if (call := _LINE.match(text)) and int(call[4]) >= 0:
            yield call[1], call[2], call[3], int(call[4]), call[5] or ""


class _Recorder:
    """Follows which number stands for which file."""

    def __init__(self, root: str, events: list[Event]) -> None:
        self._root = root
        self._events = events
        self._names: dict[str, int] = {}
        self._count = 0
        self._open: dict[int, int] = {}
        """Files by descriptor; the recorded program is one process."""
        self._positions: dict[int, int] = {}
        self._appending: set[int] = set()
        self._lengths: dict[int, int] = {}

    def call(self, process: str, name: str, arguments: str, result: int, shown: str) -> None:
        strings = [bytes.fromhex(found.replace("\\x", "")) for found in _STRING.findall(arguments)]
        descriptor = _descriptor(arguments)
        match name:
            case "openat" | "open" | "creat":
                self._opened(_path(strings[0], arguments), arguments, result)
            case "close":
                self._open.pop(descriptor, None)
            case "write" if descriptor == 1:
                self._events.append(Output(strings[0][:result]))
            case "write":
                if descriptor in self._open:
                    self._written(descriptor, self._position(descriptor), strings[0][:result])
                    self._positions[descriptor] = self._position(descriptor) + result
            case "pwrite64":
                if descriptor in self._open:
                    self._written(descriptor, int(arguments.rsplit(",", 1)[1]), strings[0][:result])
            case "fsync" | "fdatasync":
                self._synced(descriptor, arguments)
            case "ftruncate":
                if descriptor in self._open:
                    length = int(arguments.rsplit(",", 1)[1])
                    self._lengths[self._open[descriptor]] = length
                    self._events.append(Cut(self._open[descriptor], length))
            case "rename" | "renameat" | "renameat2":
                self._renamed(*(_path(text, arguments) for text in strings[:2]))
            case "unlink" | "unlinkat":
                self._removed(_path(strings[0], arguments))
            case "mkdir" | "mkdirat" | "rmdir":
                pass  # directories are made again where a file needs one
            case _:
                if descriptor in self._open or any(self._inside(_path(text, arguments)) for text in strings):
                    raise RuntimeError(f"{name} is not understood: {arguments[:200]}")

    def _inside(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root + "/")

    def _opened(self, path: str, arguments: str, result: int) -> None:
        if not self._inside(path) or "O_DIRECTORY" in arguments:
            return
        file = self._names.get(path)
        if file is None:
            if "O_CREAT" not in arguments:
                return  # a directory: the recording began before there were files
            self._count += 1
            file = self._names[path] = self._count
            self._lengths[file] = 0
            self._events.append(Name(path, file))
        elif "O_TRUNC" in arguments:
            self._lengths[file] = 0
            self._events.append(Cut(file, 0))
        self._open[result] = file
        self._positions[result] = 0
        (self._appending.add if "O_APPEND" in arguments else self._appending.discard)(result)

    def _position(self, descriptor: int) -> int:
        if descriptor in self._appending:
            return self._lengths[self._open[descriptor]]
        return self._positions[descriptor]

    def _written(self, descriptor: int, offset: int, data: bytes) -> None:
        file = self._open[descriptor]
        self._lengths[file] = max(self._lengths[file], offset + len(data))
        self._events.append(Write(file, offset, data))

    def _synced(self, descriptor: int, arguments: str) -> None:
        if descriptor in self._open:
            self._events.append(SyncFile(self._open[descriptor]))
            return
        path = _shown(arguments)
        if self._inside(path):
            self._events.append(SyncDirectory(path))

    def _renamed(self, old: str, new: str) -> None:
        if not (self._inside(old) or self._inside(new)):
            return
        file = self._names.pop(old)
        self._names[new] = file
        self._events.append(Name(new, file, old))

    def _removed(self, path: str) -> None:
        if self._names.pop(path, None) is not None:
            self._events.append(Name(path, None))


def _descriptor(arguments: str) -> int:
    found = re.match(r"(\d+)", arguments)
    return int(found[1]) if found else -1


def _shown(arguments: str) -> str:
    found = re.match(r"\d+<(.*)>", arguments)
    return _decoded(found[1]) if found else ""


def _decoded(text: str) -> str:
    if "\\x" not in text:
        return text
    return os.fsdecode(bytes.fromhex(text.replace("\\x", "")))


def _path(text: bytes, arguments: str) -> str:
    path = os.fsdecode(text)
    if path.startswith("/"):
        return path
    beside = re.match(r"AT_FDCWD<(.*?)>", arguments)
    return os.path.join(_decoded(beside[1]) if beside else "", path)
