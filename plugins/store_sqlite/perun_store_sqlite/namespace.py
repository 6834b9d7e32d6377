"""The directory of a namespace, who owns it, and the connections to its database."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

from perun_core.errors import StoreBroken, StoreLocked

from .errors import renamed
from .fence import Fence
from .schema import migrate, refuse_foreign

DATABASE: Final = "store.db"
LOCK: Final = "lock"
FULL: Final = 2
"""The value of ``PRAGMA synchronous`` at which every commit reaches the disk before it returns."""


class Namespace:
    """One directory, owned exclusively, with a connection for writing and one for reading.

    Whoever drops the last reference releases it, so that an opening that was cancelled halfway leaves no lock.
    """

    def __init__(
        self, path: Path, *, wal_autocheckpoint: int, max_bytes: int, fence_directory: Path | None = None
    ) -> None:
        """Open the namespace; blocks for the time of some disk writes. Nothing stays open when this raises.

        Raises: StoreLocked, StoreTooNew (nothing was touched), StoreFull, StoreBroken.
        """
        self.path = path
        with ExitStack() as undo:
            try:
                _create_directory(path)
                self._lock = undo.enter_context(_own(path))
                database = path / DATABASE
                _create_file(database)
                refuse_foreign(database)
                self.writer = _connect(database, timeout=0)
                undo.callback(self.writer.close)
                _make_durable(self.writer, path)
                self.writer.execute(f"PRAGMA wal_autocheckpoint = {wal_autocheckpoint}")
                migrate(self.writer)
                if max_bytes:
                    (page_size,) = self.writer.execute("PRAGMA page_size").fetchone()
                    self.writer.execute(f"PRAGMA max_page_count = {max(max_bytes // page_size, 1)}")
                self.reader = _connect(database, timeout=5)
                undo.callback(self.reader.close)
                self.reader.execute("PRAGMA query_only = ON")
                _sync_directory(path)
                self.fence = Fence(path, self.writer, directory=fence_directory)
            except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a path no file can have
                raise renamed(error, path) from error
            undo.pop_all()

    def close(self) -> None:
        """Move everything from the write-ahead log into the database and release the namespace.

        A failure to do so loses nothing: the log is read at the next opening. Raises: StoreBroken.
        """
        try:
            self.fence.close()
            self.reader.close()
            self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise renamed(error, self.path) from error
        finally:
            self.writer.close()
            self._lock.close()


def _create_directory(path: Path) -> None:
    if not path.exists():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync_directory(path.parent)
    if not path.is_dir():
        raise StoreBroken(f"{path} is not a directory")


def _own(path: Path) -> IO[bytes]:
    """The open lock file of `path`; the lock ends when it is closed, however the process ends."""
    lock = os.fdopen(os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StoreLocked(f"the store at {path} is in use by another session or process") from error
    except OSError:
        lock.close()
        raise
    return lock


def _create_file(database: Path) -> None:
    """Create the database file with its final mode; SQLite gives its companions the same mode."""
    try:
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not stat.S_ISREG(database.stat().st_mode):
            raise StoreBroken(f"{database} is not a regular file") from None


def _connect(database: Path, *, timeout: float) -> sqlite3.Connection:
    """A connection without implicit transactions, for one thread at a time. `timeout` in seconds."""
    return sqlite3.connect(database, timeout=timeout, isolation_level=None, check_same_thread=False)


def _make_durable(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to a log that is on the disk when a commit returns, and check that SQLite agreed."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if (mode, synchronous) != ("wal", FULL):
        raise StoreBroken(f"the file system at {path} offers no durable write-ahead log ({mode}, {synchronous})")


def _sync_directory(path: Path) -> None:
    """Make the names of new files survive a power loss."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
