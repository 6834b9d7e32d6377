"""The fence: what a namespace remembers about itself outside of its own directory.

The database holds one row with identity and generation; a small file that a copy of the database does not contain holds
the same. The row is written first, the file second, so a crash between the two leaves the row one ahead, never behind.
A row behind the file is an older copy that was put back.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from perun_core.errors import StoreBroken, StoreFenced, StoreLocked
from perun_core.ports.store import Doubt, StoreStatus, Table

from .errors import is_full

COMMITS_PER_GENERATION: Final = 64
"""At most so many physical commits of one opening share a generation: what an unnoticed older copy can lack."""
SECONDS_PER_GENERATION: Final = 1.0
"""Two physical commits further apart than this never share a generation."""

Fingerprint: TypeAlias = tuple[int, int, int]
"""Device, inode and time of a file: every replacement changes it."""


class FenceFile(Struct, frozen=True, forbid_unknown_fields=False):
    """Content of the file, as JSON, so that an operator can read it."""

    identity: str
    generation: int
    owner: str
    """Drawn at every opening: who wrote the file last."""
    namespace: str
    """Path of the directory it is about."""
    taken_by: str = ""
    """Path of a copy that was trusted in its stead; empty while this is the one that signs."""
    note: str = "Written by perunnode. Never restore, copy or delete it; see the page about backups."


class FenceRow(Struct, frozen=True):
    """The row in the database."""

    identity: str
    generation: int
    path: str
    """Where the fence file was at the last opening."""
    origin: str = ""
    """Where it was before that, when the namespace was moved or copied."""
    doubt: Doubt | None = None
    reason: str = ""


class Fence:
    """Identity and generation of an open namespace. Its methods block, for a lookup or for some disk writes."""

    def __init__(self, path: Path, database: sqlite3.Connection, *, directory: Path | None) -> None:
        """Compare row and file, advance both. `path` is the namespace, `directory` where its fence goes.

        Raises: sqlite3.Error, OSError, StoreBroken.
        """
        self._namespace = path.resolve()
        self._db = database
        self.file = fence_path(path, directory)
        self._owner = secrets.token_hex(8)
        self._seen: Fingerprint | None = None
        self._written = 0
        self._following = Lock()
        row, found = read_row(database, path), _read_file(self.file)
        doubt, reason = _judged(row, found, self.file, empty=row is None and _is_empty(database))
        if row is None:
            # Until generation 1 nobody was served, so a file of generation 0 is what a crash in here left.
            identity = found.identity if found is not None and found.generation == 0 else secrets.token_hex(16)
            if doubt is None:
                self._write_first(identity, 0)
            row = FenceRow(identity, 0, str(self.file))
        elif row.path != str(self.file):
            row = msgspec.structs.replace(row, origin=row.origin or row.path, path=str(self.file))
        if doubt is not None and row.doubt is None:
            row = msgspec.structs.replace(row, doubt=doubt, reason=reason)
        seen = 0 if found is None else found.generation
        row = msgspec.structs.replace(row, generation=max(row.generation, seen) + 1)
        database.execute("BEGIN IMMEDIATE")
        try:
            if doubt is not None:
                database.execute("DELETE FROM trusted")
            _write_row(database, row)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._row = row
        self._trusted = tuple(prefix for (prefix,) in database.execute("SELECT prefix FROM trusted ORDER BY prefix"))
        self._write_first(row.identity, row.generation)

    def status(self) -> StoreStatus:
        row = self._row
        return StoreStatus(row.identity, row.generation, row.doubt, row.reason, self._trusted)

    @property
    def in_doubt(self) -> bool:
        """Whether `status` tells of a doubt; made for every commit."""
        return self._row.doubt is not None

    # --------------------------------------------------------------------------------------------- while it is open

    def check(self) -> None:
        """Refuse when somebody else opened this namespace or a copy that shares the fence. Call in a transaction.

        Raises: StoreFenced, sqlite3.Error.
        """
        found = self._db.execute("SELECT identity, generation FROM fence").fetchone()
        if found != (self._row.identity, self._row.generation):
            raise StoreFenced(f"somebody else opened the store at {self._namespace}; nothing is signed here any more")
        self._check_file()

    def _check_file(self) -> None:
        if _fingerprint(self.file) == self._seen:
            return
        # The thread that follows may have replaced it a moment ago; then the owner in it is us.
        file = _read_file(self.file)
        if file is None or file.taken_by or (file.identity, file.owner) != (self._row.identity, self._owner):
            raise StoreFenced(f"somebody else changed {self.file}; nothing is signed here any more")

    def may_advance(self) -> bool:
        """Whether the file has caught up with the row, so that the row may go one ahead."""
        return self._written == self._row.generation

    def advance(self) -> FenceRow:
        """Write the next generation into the open transaction; `advanced` when that is committed."""
        row = msgspec.structs.replace(self._row, generation=self._row.generation + 1)
        self._db.execute("UPDATE fence SET generation = ?", (row.generation,))
        return row

    def advanced(self, row: FenceRow) -> None:
        """The transaction of `advance` is durable."""
        self._row = row

    def follow(self) -> None:
        """Bring the file to the generation of the row; any thread. Raises: OSError, StoreFenced."""
        with self._following:
            if not self.may_advance():
                self._check_file()
                self._write_file(self._row.identity, self._row.generation)

    def close(self) -> None:
        """End the generation, so that a copy made during it is noticed. Raises: sqlite3.Error.

        A file that cannot be written, or that is somebody else's, is left as it is: the next opening judges.
        """
        with suppress(StoreFenced, OSError):
            self.follow()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self.check()
                row = self.advance()
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            self.advanced(row)
            self.follow()

    def put_in_doubt(self, doubt: Doubt, reason: str) -> None:
        """See `Store.distrust`. Raises: sqlite3.Error, StoreFenced."""
        row = self._row
        if row.doubt is None or (row.doubt is Doubt.GONE and doubt is Doubt.RESTORED):
            row = msgspec.structs.replace(row, doubt=doubt, reason=reason or doubt.value)
        self._change(row, ())

    def release(self, prefix: bytes) -> None:
        """See `Store.trust`. Raises: sqlite3.Error, OSError, StoreLocked, StoreFenced."""
        if self._row.doubt is None:
            return
        row = msgspec.structs.replace(self._row, origin="")
        self._take_over()
        if not prefix:
            self._change(msgspec.structs.replace(row, doubt=None, reason=""), ())
        elif not prefix.startswith(self._trusted):
            self._change(row, (*self._trusted, prefix))

    def _change(self, row: FenceRow, trusted: tuple[bytes, ...]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self.check()
            _write_row(self._db, row)
            self._db.execute("DELETE FROM trusted")
            self._db.executemany("INSERT INTO trusted VALUES (?)", [(prefix,) for prefix in trusted])
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._row, self._trusted = row, trusted

    def _take_over(self) -> None:
        """Where the namespace we are a copy of is still there: let it know at its next opening or commit."""
        if not self._row.origin:
            return
        origin = Path(self._row.origin)
        file = _read_file(origin)
        if file is None or file.identity != self._row.identity or origin == self.file:
            return
        lock = _try_lock(Path(file.namespace) / "lock")
        try:
            taken_by = str(self._namespace)
            _replace_file(
                origin,
                FenceFile(file.identity, file.generation + 1, self._owner, file.namespace, taken_by),
            )
        finally:
            if lock is not None:
                os.close(lock)

    def _write_first(self, identity: str, generation: int) -> None:
        try:
            self._write_file(identity, generation)
        except OSError as error:
            if is_full(error):
                raise
            raise StoreBroken(f"{self.file} cannot be written: {error.strerror}; see the option fencedir") from error

    def _write_file(self, identity: str, generation: int) -> None:
        content = FenceFile(identity, generation, self._owner, str(self._namespace))
        self._seen = _replace_file(self.file, content)
        self._written = generation


def fence_path(namespace: Path, directory: Path | None) -> Path:
    """Where the fence of the namespace at `namespace` is: beside it, or in `directory`."""
    resolved = namespace.resolve()
    if directory is None:
        return resolved.parent / f".{resolved.name}.fence"
    mark = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    return directory.resolve() / f"{resolved.name}-{mark}.fence"


def read_row(database: sqlite3.Connection, path: Path) -> FenceRow | None:
    """The row, None in a namespace that nobody served yet. Raises: sqlite3.Error, StoreBroken naming `path`."""
    found = database.execute("SELECT identity, generation, path, origin, doubt, reason FROM fence").fetchone()
    if found is None:
        return None
    fields = dict(zip(FenceRow.__struct_fields__, found, strict=True))
    try:
        return msgspec.convert({**fields, "doubt": fields["doubt"] or None}, FenceRow)
    except msgspec.ValidationError as error:
        raise StoreBroken(f"the database of {path} is damaged: {error}") from error


def _write_row(database: sqlite3.Connection, row: FenceRow) -> None:
    values = (row.identity, row.generation, row.path, row.origin, row.doubt.value if row.doubt else "", row.reason)
    database.execute("INSERT OR REPLACE INTO fence VALUES (1, ?, ?, ?, ?, ?, ?)", values)


def _judged(row: FenceRow | None, file: FenceFile | None, path: Path, *, empty: bool) -> tuple[Doubt | None, str]:
    """What the two say about each other."""
    if row is None:
        if file is None or file.generation == 0:
            return None, ""
        if empty:
            return Doubt.GONE, f"there was a store here, as {path} knows, but its database is gone"
        return Doubt.OTHER, f"the database is not the one that {path} belongs to: an earlier one was put back"
    if file is None:
        if row.path != str(path):
            return Doubt.UNFENCED, f"the store was moved or copied here; its fence was {row.path}"
        return Doubt.UNFENCED, f"{path} is missing: an older store was put back, or the file was removed"
    if file.identity != row.identity:
        return Doubt.OTHER, f"the database is not the one that {path} belongs to: another one was put in its place"
    if row.generation < file.generation:
        if file.taken_by:
            return Doubt.TAKEN_OVER, f"its copy at {file.taken_by} was trusted in its stead, and may have signed since"
        behind = file.generation - row.generation
        return Doubt.OLDER, f"the database is {behind} generations behind {path}: an older copy was put back"
    if row.generation > file.generation + 1:
        return Doubt.UNFENCED, f"{path} is older than the database: an older fence was put back"
    return None, ""


def _is_empty(database: sqlite3.Connection) -> bool:
    return all(database.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone() is None for table in Table)


def _read_file(path: Path) -> FenceFile | None:
    """The file's content; None when it is missing. Raises: OSError, StoreBroken."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(content, type=FenceFile)
    except msgspec.MsgspecError as error:
        raise StoreBroken(f"the fence {path} is damaged: {error}; remove it, and the store opens in doubt") from error


def _replace_file(path: Path, content: FenceFile) -> Fingerprint:
    """Write all of it or nothing, durably; returns the fingerprint of what was written."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            data = msgspec.json.encode(content) + b"\n"
            if os.write(descriptor, data) != len(data):
                raise StoreBroken(f"{fresh} was written in part")
            os.fsync(descriptor)
            written = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return written.st_dev, written.st_ino, written.st_mtime_ns


def _fingerprint(path: Path) -> Fingerprint | None:
    """Raises: OSError."""
    try:
        # For every commit, and several times as fast as the method of the path.
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of another namespace; None when there is no such namespace any more."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise StoreLocked(f"the store at {path.parent}, of which this is a copy, is open") from error
    return lock
