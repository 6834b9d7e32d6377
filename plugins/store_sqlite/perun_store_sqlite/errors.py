"""SQLite's and the operating system's errors, renamed to the errors of the port."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from perun_core.errors import StoreBroken, StoreError, StoreFull

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code of `error`, 0 when it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_full(error: BaseException) -> bool:
    """Whether nothing was written because there is no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return primary_code(error) == sqlite3.SQLITE_FULL


def is_busy(error: BaseException) -> bool:
    """Whether nothing was written because another program holds a lock on the database."""
    return primary_code(error) in _BUSY


def renamed(error: BaseException, path: Path) -> StoreError:
    """The port's error for `error`, to be raised ``from`` it. `path` is the file or the namespace, for the text."""
    if is_full(error):
        return StoreFull(f"no room left in the store at {path}")
    if is_busy(error):
        return StoreBroken(f"another program holds the database at {path}")
    return StoreBroken(f"the store at {path} cannot be used: {error}")
