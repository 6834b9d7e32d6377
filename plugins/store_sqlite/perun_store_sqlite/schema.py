"""The schema of a namespace and how older ones become current.

``PRAGMA user_version`` counts the migrations that were applied; it changes in the same transaction as the tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

from perun_core.errors import StoreBroken, StoreTooNew
from perun_core.ports.store import Table

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID: Final = int.from_bytes(b"PRUN", "big")
"""Marks the file as ours; shown by ``file`` and ``PRAGMA application_id``."""


_FIRST_TABLES: Final = (
    "meta",
    "proposals",
    "channels",
    "archive",
    "signed",
    "used",
    "transactions",
    "cursors",
    "currencies",
    "peers",
)
"""As they were when the first schema was released; a table that the port gets later needs a migration of its own."""


def checksum(table: str, key: bytes, value: bytes) -> int:
    """Of one row; a single changed bit changes it."""
    return crc32(value, crc32(key, crc32(table.encode())) ^ len(key))


def _create_tables(database: Database) -> None:
    for table in _FIRST_TABLES:
        database.execute(
            f'CREATE TABLE "{table}" (key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL) STRICT, WITHOUT ROWID'
        )


def _add_fence_and_sums(database: Database) -> None:
    """SQLite does not notice when a value changes on the disk, so every row carries a checksum of key and value."""
    database.conn.create_function("perun_sum", 3, checksum, deterministic=True)
    for table in _FIRST_TABLES:
        database.execute(f'ALTER TABLE "{table}" ADD COLUMN sum INTEGER NOT NULL DEFAULT 0')
        database.execute(f"UPDATE \"{table}\" SET sum = perun_sum('{table}', key, value)")
    database.execute(
        "CREATE TABLE fence (one INTEGER PRIMARY KEY NOT NULL CHECK (one = 1), identity TEXT NOT NULL, "
        "generation INTEGER NOT NULL, path TEXT NOT NULL, origin TEXT NOT NULL, doubt TEXT NOT NULL, "
        "reason TEXT NOT NULL) STRICT"
    )
    database.execute("CREATE TABLE trusted (prefix BLOB PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID")


MIGRATIONS: Final[tuple[Callable[[Database], None], ...]] = (_create_tables, _add_fence_and_sums)
"""Applied in order, each once. Append only: an entry that was released never changes."""


FIRST_PAGE: Final = 4096
"""Bytes of a database that has no table yet."""
OWN_TABLES: Final = ("fence", "trusted")
"""Tables beside those of the port."""


def refuse_foreign(database: Path) -> None:
    """Look at the file without writing to it.

    Raises: StoreTooNew (made by a later version of this plugin), StoreBroken (not one of our databases).
    """
    if database.stat().st_size == 0:
        return
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as look:
        try:
            (version,) = look.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK or database.stat().st_size > FIRST_PAGE:
                raise
            # A crash while the file was made, before there was anything in it: the switch to a write-ahead log is the
            # only change that we make with a journal. Undo it, as whoever opens the file to write would.
            with closing(sqlite3.connect(database, isolation_level=None)) as undo:
                undo.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (version,) = look.execute("PRAGMA user_version").fetchone()
        (application,) = look.execute("PRAGMA application_id").fetchone()
        (tables,) = look.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreBroken(f"{database} is a database of another program")
    if version > len(MIGRATIONS):
        raise StoreTooNew(
            f"{database} has schema version {version}, this version of the software knows up to {len(MIGRATIONS)}"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to the current version in one transaction. Raises: sqlite3.Error, StoreBroken."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < len(MIGRATIONS):
        _apply(MIGRATIONS[version:], connection)
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if missing := {*Table, *OWN_TABLES} - present:
        raise StoreBroken(f"the database lacks the tables {', '.join(sorted(missing))}")


def _apply(migrations: tuple[Callable[[Database], None], ...], connection: sqlite3.Connection) -> None:
    # Imported here because an existing namespace never needs it, and it takes longer than opening one.
    from sqlite_utils import Database

    database = Database(connection, recursive_triggers=False, execute_plugins=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for migration in migrations:
            migration(database)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
