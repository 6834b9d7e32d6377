"""Databases of every schema that was ever released open, and keep every byte.

``schemas/N.sql`` is what the version of the plugin that had N migrations wrote: in every table an empty key and value,
all byte values, and texts that could be taken for SQL. A new migration brings the script of the schema before it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from perun_core.errors import StoreBroken, StoreTooNew
from perun_core.ports.store import Put, PutNew, StoreContext, Table
from perun_store_sqlite.schema import MIGRATIONS
from perun_store_sqlite.store import SqliteConfig, open_sqlite

SCRIPTS = sorted((Path(__file__).parent / "schemas").glob("*.sql"))


def made_from(script: Path, path: Path) -> Path:
    path.mkdir()
    with closing(sqlite3.connect(path / "store.db", isolation_level=None)) as database:
        database.executescript(script.read_text(encoding="utf-8"))
        assert database.execute("PRAGMA user_version").fetchone() == (int(script.stem),)
    return path


def written(table: Table) -> list[tuple[bytes, bytes]]:
    rows = {
        b"": b"",
        b"key of " + table.encode(): bytes(range(256)),
        b"\x00\xff" * 20: table.encode() * 30,
        b"'quoted\"": b"'; DROP TABLE channels; --",
    }
    return sorted(rows.items())


def test_every_released_schema_has_its_script() -> None:
    assert {int(script.stem) for script in SCRIPTS} == set(range(1, len(MIGRATIONS)))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"schema {script.stem}")
async def test_a_database_of_an_earlier_version_keeps_every_byte(tmp_path: Path, script: Path) -> None:
    path = made_from(script, tmp_path / "ns")
    for _ in range(2):
        async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
            assert store.status().doubt is None
            for table in Table:
                assert await store.scan(table) == written(table)
                assert [await store.get(table, key) for key, _ in written(table)] == [v for _, v in written(table)]
    async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
        await store.commit([PutNew(table, key, value) for table in Table for key, value in written(table)])
        await store.commit([Put(Table.CHANNELS, b"new", b"after")])
        assert await store.get(Table.CHANNELS, b"new") == b"after"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"schema {script.stem}")
async def test_a_snapshot_of_an_earlier_version_is_refused_and_changes_nothing(tmp_path: Path, script: Path) -> None:
    path = made_from(script, tmp_path / "ns")
    before = (path / "store.db").read_bytes()
    with pytest.raises(StoreBroken, match="earlier version"):
        async with open_sqlite(SqliteConfig(), StoreContext(path, snapshot=True)):
            pass
    assert (path / "store.db").read_bytes() == before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"schema {script.stem}")
async def test_an_earlier_database_that_is_put_back_after_the_migration_is_in_doubt(
    tmp_path: Path, script: Path
) -> None:
    path = made_from(script, tmp_path / "ns")
    old = (path / "store.db").read_bytes()
    async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
        await store.commit([Put(Table.CHANNELS, b"new", b"after")])
    (path / "store.db").write_bytes(old)
    async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
        assert store.status().doubt is not None


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    path = made_from(SCRIPTS[0], tmp_path / "ns")
    with monkeypatch.context() as patched:
        patched.setattr("perun_store_sqlite.schema.MIGRATIONS", (*MIGRATIONS, fail))
        with pytest.raises(StoreBroken):
            async with open_sqlite(SqliteConfig(), StoreContext(path)):
                pass
    with closing(sqlite3.connect(path / "store.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (int(SCRIPTS[0].stem),)
    async with open_sqlite(SqliteConfig(), StoreContext(path)) as store:
        assert [await store.scan(table) for table in Table] == [written(table) for table in Table]


async def test_every_later_version_is_refused(tmp_path: Path) -> None:
    async with open_sqlite(SqliteConfig(), StoreContext(tmp_path / "ns")) as store:
        await store.commit([Put(Table.CHANNELS, b"key", b"value")])
    for later in (1, 2, 1000):
        with closing(sqlite3.connect(tmp_path / "ns" / "store.db")) as database:
            database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + later}")
        for snapshot in (False, True):
            with pytest.raises(StoreTooNew, match="schema version"):
                async with open_sqlite(SqliteConfig(), StoreContext(tmp_path / "ns", snapshot=snapshot)):
                    await asyncio.sleep(0)
