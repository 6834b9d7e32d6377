"""Reads of the port's tables, and a store that only reads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn

from perun_core.errors import StoreBroken
from perun_core.ports.store import Doubt, Op, StoreStatus, Table

from .errors import renamed
from .fence import read_row
from .namespace import DATABASE
from .schema import MIGRATIONS, checksum, refuse_foreign

_GET: Final = {t: f'SELECT key, value, sum FROM "{t}" WHERE key = ?' for t in Table}
_SCAN: Final = {t: f'SELECT key, value, sum FROM "{t}" WHERE key >= ? ORDER BY key LIMIT ?' for t in Table}
_SCAN_BELOW: Final = {
    t: f'SELECT key, value, sum FROM "{t}" WHERE key >= ? AND key < ? ORDER BY key LIMIT ?' for t in Table
}


class TableReader:
    """`get` and `scan` of the port over one connection, on the thread that calls."""

    def __init__(self, connection: sqlite3.Connection, database: Path) -> None:
        self._connection = connection
        self._database = database

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See `Store.get`."""
        rows = self._read(_GET, table, (key,))
        return rows[0][1] if rows else None

    def scan(self, table: Table, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """See `Store.scan`."""
        # The least key greater than `after` is `after` with a zero byte behind it.
        start = prefix if after is None else max(prefix, after + b"\x00")
        end = _first_behind(prefix)
        if end is None:
            return self._read(_SCAN, table, (start, max(limit, 0)))
        return self._read(_SCAN_BELOW, table, (start, end, max(limit, 0)))

    def _read(
        self, statements: Mapping[Table, str], table: Table, parameters: tuple[object, ...]
    ) -> list[tuple[bytes, bytes]]:
        try:
            rows = self._connection.execute(statements[table], parameters).fetchall()
        except sqlite3.Error as error:
            raise renamed(error, self._database) from error
        for key, value, stated in rows:
            if checksum(table, key, value) != stated:
                raise StoreBroken(f"{self._database} is damaged: a record in {table} is not what was written")
        return [(key, value) for key, value, _ in rows]


def _first_behind(prefix: bytes) -> bytes | None:
    """The least key that is greater than every key with this prefix; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


class SqliteSnapshot:
    """A namespace as it was when this was opened; implements `perun_core.ports.store.Store` as far as it reads.

    The read transaction that is open meanwhile keeps the owner from shortening its write-ahead log, and from nothing
    else.
    """

    def __init__(self, path: Path) -> None:
        """Raises: StoreBroken, StoreTooNew."""
        database = path / DATABASE
        with ExitStack() as undo:
            try:
                if not database.exists() or not database.stat().st_size:
                    raise StoreBroken(f"there is no store at {path}")
                refuse_foreign(database)
                uri = f"{database.absolute().as_uri()}?mode=ro"
                connection = sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)
                undo.callback(connection.close)
                connection.execute("BEGIN")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                row = read_row(connection, path) if version == len(MIGRATIONS) else None
                if row is None:
                    raise StoreBroken(f"{database} is of an earlier version and has to be opened by its owner first")
                trusted = [prefix for (prefix,) in connection.execute("SELECT prefix FROM trusted ORDER BY prefix")]
            except (sqlite3.Error, OSError, ValueError) as error:
                raise renamed(error, database) from error
            undo.pop_all()
        self._connection = connection
        self._reader = TableReader(connection, database)
        self._path = path
        self._closed = False
        self._status = StoreStatus(row.identity, row.generation, row.doubt, row.reason, tuple(trusted))

    def status(self) -> StoreStatus:
        """See `Store.status`."""
        return self._status

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """See `Store.get`."""
        self._refuse_when_closed()
        return self._reader.get(table, key)

    async def scan(
        self, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """See `Store.scan`."""
        self._refuse_when_closed()
        return self._reader.scan(table, prefix, after, limit)

    async def commit(self, batch: Sequence[Op]) -> None:
        """Raises: StoreBroken."""
        self._refuse_writing()

    async def distrust(self, doubt: Doubt, reason: str) -> None:
        """Raises: StoreBroken."""
        self._refuse_writing()

    async def trust(self, prefix: bytes = b"") -> None:
        """Raises: StoreBroken."""
        self._refuse_writing()

    def _refuse_writing(self) -> NoReturn:
        raise StoreBroken(f"a snapshot of the store at {self._path} is not written to")

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreBroken(f"the snapshot of the store at {self._path} is closed")

    def close(self) -> None:
        """Let the owner shorten its log again; idempotent."""
        self._closed = True
        self._connection.close()


@asynccontextmanager
async def open_snapshot(path: Path) -> AsyncIterator[SqliteSnapshot]:
    """Raises: StoreBroken (there is nothing at `path`, or it is damaged), StoreTooNew."""
    snapshot = await asyncio.to_thread(SqliteSnapshot, path)
    try:
        yield snapshot
    finally:
        snapshot.close()
