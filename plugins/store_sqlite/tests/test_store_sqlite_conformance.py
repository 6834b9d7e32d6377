"""The SQLite store and the kit's store in memory keep every promise of the port."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest

from perun_core.errors import StoreFull
from perun_core.ports.store import Put, Store, StoreContext, Table
from perun_core.testing.store import MemoryDisk, MemoryStore, StoreConformance
from perun_store_sqlite.schema import MIGRATIONS
from perun_store_sqlite.store import SqliteConfig, open_sqlite


class TestSqliteStore(StoreConformance):
    def open_store(self, path: Path) -> AbstractAsyncContextManager[Store]:
        return open_sqlite(SqliteConfig(), StoreContext(path=path))

    def open_snapshot(self, path: Path) -> AbstractAsyncContextManager[Store]:
        return open_sqlite(SqliteConfig(), StoreContext(path=path, snapshot=True))

    def make_newer(self, path: Path) -> None:
        with closing(sqlite3.connect(path / "store.db")) as database:
            database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


class TestMemoryStore(StoreConformance):
    outlives_the_process = False

    def setup_method(self) -> None:
        self.disk = MemoryDisk()

    def open_store(self, path: Path) -> AbstractAsyncContextManager[Store]:
        return self.disk.open(path)

    def open_snapshot(self, path: Path) -> AbstractAsyncContextManager[Store]:
        return self.disk.open(path, snapshot=True)


async def test_the_memory_store_fails_the_commit_it_was_told_to_and_writes_nothing() -> None:
    store = MemoryStore()
    store.fail_commit(2, StoreFull("no room"))
    await store.commit([Put(Table.META, b"1", b"")])
    with pytest.raises(StoreFull):
        await store.commit([Put(Table.META, b"2", b"")])
    await store.commit([Put(Table.META, b"3", b"")])
    assert await store.scan(Table.META) == [(b"1", b""), (b"3", b"")]
    assert len(store.commits) == 2
