"""What the SQLite store promises beyond the port: real syncs, group commit, refusals that leave everything alone."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import perun_store_sqlite
from perun_core.errors import StoreBroken, StoreConflict, StoreFull, StoreLocked, StoreTooNew
from perun_core.ports.store import Delete, Op, Put, PutNew, StoreContext, Table
from perun_store_sqlite.store import SqliteConfig, SqliteStore, open_sqlite


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteStore]:
    async with open_sqlite(SqliteConfig(**options), StoreContext(path=path)) as store:
        assert isinstance(store, SqliteStore)
        yield store


def open_files_below(path: Path) -> list[str]:
    descriptors = Path("/proc/self/fd")
    targets = [os.readlink(link) for link in descriptors.iterdir() if link.is_symlink()]
    return [target for target in targets if target.startswith(str(path))]


async def expect_refusal(path: Path, error: type[Exception]) -> None:
    """Opening `path` raises `error` and leaves neither open files nor a thread."""
    before = threading.active_count()
    with pytest.raises(error):
        async with opened(path):
            pass
    assert open_files_below(path) == []
    assert [t.name for t in threading.enumerate() if t.name == "perun-store-sqlite"] == []
    assert threading.active_count() <= before + 1  # the loop keeps its executor thread


# ------------------------------------------------------------------------------------------------------- declaration


def test_the_hook_declares_the_store_named_sqlite() -> None:
    backend = perun_store_sqlite.perun_register_store()
    assert (backend.name, backend.config) == ("sqlite", SqliteConfig)
    assert backend.open is open_sqlite


def test_declaring_loads_neither_sqlite_nor_sqlite_utils() -> None:
    script = (
        "import sys, perun_store_sqlite; "
        "assert not {'sqlite3', 'sqlite_utils'} & set(sys.modules), 'loaded at import'; "
        "perun_store_sqlite.perun_register_store(); "
        "assert 'sqlite_utils' not in sys.modules, 'loaded by the hook'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize("options", [{"wal_autocheckpoint": 0}, {"max_bytes": -1}, {"unknown": 1}])
def test_wrong_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, SqliteConfig)


# -------------------------------------------------------------------------------------------------------- durability


async def test_every_commit_waits_for_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        assert store.pragma_synchronous() == 2
    with closing(sqlite3.connect(tmp_path / "ns" / "store.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_concurrent_commits_share_physical_commits(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        physical: list[str] = []
        store._db.set_trace_callback(lambda sql: physical.append(sql) if sql == "COMMIT" else None)
        await asyncio.gather(*(store.commit([Put(Table.META, bytes([n]), b"x")]) for n in range(100)))
        store._db.set_trace_callback(None)
        assert len(physical) <= 2
        assert len(await store.scan(Table.META)) == 100


async def test_leaving_waits_for_commits_under_way(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        commits = [asyncio.create_task(store.commit([Put(Table.META, bytes([n]), b"x")])) for n in range(10)]
        await asyncio.sleep(0)
    await asyncio.gather(*commits)
    async with opened(tmp_path / "ns") as store:
        assert len(await store.scan(Table.META)) == 10


async def test_closing_leaves_one_self_contained_database(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        await store.commit([Put(Table.META, b"key", b"value")])
    assert sorted(entry.name for entry in (tmp_path / "ns").iterdir()) == ["lock", "store.db"]
    with closing(sqlite3.connect(tmp_path / "ns" / "store.db")) as database:
        assert database.execute("SELECT key, value FROM meta").fetchall() == [(b"key", b"value")]


async def test_the_log_does_not_grow_without_bound(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns", wal_autocheckpoint=20) as store:
        for number in range(200):
            await store.commit([Put(Table.META, b"same key", number.to_bytes(2, "big") * 1000)])
        assert (tmp_path / "ns" / "store.db-wal").stat().st_size < 60 * 4200


# ---------------------------------------------------------------------------------------------------------- failures


async def test_a_full_store_refuses_what_does_not_fit_and_takes_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns", max_bytes=256 * 1024) as store:
        results = await asyncio.gather(
            store.commit([Put(Table.META, b"small 1", b"x")]),
            store.commit([Put(Table.CHANNELS, b"a", b"x"), Put(Table.ARCHIVE, b"large", bytes(1 << 20))]),
            store.commit([Put(Table.META, b"small 2", b"x")]),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), StoreFull, type(None)]
        assert await store.scan(Table.META) == [(b"small 1", b"x"), (b"small 2", b"x")]
        assert await store.get(Table.CHANNELS, b"a") is None
        await store.commit([Delete(Table.META, b"small 1")])


async def test_after_an_io_error_nothing_is_committed_until_the_store_is_opened_again(tmp_path: Path) -> None:
    class BrokenDisk:
        """The writing connection on a disk that fails at the physical commit."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self._real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def execute(self, sql: str, *parameters: Any) -> object:
            if sql == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error
            return self._real.execute(sql, *parameters)

    async with opened(tmp_path / "ns") as store:
        await store.commit([Put(Table.META, b"before", b"x")])
        store._db = BrokenDisk(store._db)  # type: ignore[assignment]
        failing = asyncio.create_task(store.commit([Put(Table.META, b"lost", b"x")]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        behind = asyncio.create_task(store.commit([Put(Table.META, b"behind", b"x")]))
        results = await asyncio.gather(failing, behind, return_exceptions=True)
        assert [type(result) for result in results] == [StoreBroken, StoreBroken]
        with pytest.raises(StoreBroken):
            await store.commit([Put(Table.META, b"later", b"x")])
        with pytest.raises(StoreBroken):
            await store.get(Table.META, b"before")
    async with opened(tmp_path / "ns") as store:
        assert await store.scan(Table.META) == [(b"before", b"x")]


async def test_a_program_that_holds_the_database_delays_nothing_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        with closing(sqlite3.connect(tmp_path / "ns" / "store.db", isolation_level=None)) as intruder:
            intruder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBroken, match="another program"):
                await store.commit([Put(Table.META, b"key", b"x")])
            intruder.execute("ROLLBACK")
        await store.commit([Put(Table.META, b"key", b"y")])
        assert await store.get(Table.META, b"key") == b"y"


@pytest.mark.parametrize("batch", [[], [Put(Table.META, "text", b"x")], [PutNew(Table.META, b"x", 7)]])  # type: ignore[arg-type]
async def test_a_callers_mistake_harms_nobody_else(tmp_path: Path, batch: list[Op]) -> None:
    async with opened(tmp_path / "ns") as store:
        good = asyncio.create_task(store.commit([Put(Table.META, b"key", b"x")]))
        with pytest.raises((TypeError, ValueError)):
            await store.commit(batch)
        await good
        assert await store.scan(Table.META) == [(b"key", b"x")]


async def test_conflicts_name_table_and_key_but_no_value(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        await store.commit([PutNew(Table.SIGNED, b"\xab\xcd", b"first secret")])
        with pytest.raises(StoreConflict, match="signed/abcd") as caught:
            await store.commit([PutNew(Table.SIGNED, b"\xab\xcd", b"second secret")])
        assert "secret" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- opening


async def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    async with opened(tmp_path / "deep" / "ns") as store:
        await store.commit([Put(Table.META, b"key", b"x")])
        assert (tmp_path / "deep" / "ns").stat().st_mode & 0o777 == 0o700
        names = {"store.db", "store.db-wal", "store.db-shm", "lock"}
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in (tmp_path / "deep" / "ns").iterdir()}
        assert modes == dict.fromkeys(names, 0o600)


@pytest.mark.parametrize(
    "name", ["with space", "query?mode=ro", "frag#ment", "100%25", "ünïcode", "-dash", "semi;colon"]
)
async def test_directories_may_have_any_name(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        async with opened(tmp_path / name) as store:
            await store.commit([PutNew(Table.META, b"key", b"x")])
    assert (tmp_path / name / "store.db").is_file()


async def test_a_directory_behind_a_link_is_one_namespace(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    async with opened(tmp_path / "real"):
        with pytest.raises(StoreLocked):
            async with opened(tmp_path / "link"):
                pass


async def test_paths_that_are_no_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a store")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    await expect_refusal(tmp_path / "file", StoreBroken)
    await expect_refusal(tmp_path / "file" / "below", StoreBroken)
    await expect_refusal(tmp_path / "dangling", StoreBroken)
    await expect_refusal(tmp_path / ("long" * 100), StoreBroken)
    await expect_refusal(tmp_path / "null\0byte", StoreBroken)
    assert (tmp_path / "file").read_text() == "not a store"


async def test_a_database_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ns" / "store.db").mkdir(parents=True)
    await expect_refusal(tmp_path / "ns", StoreBroken)


async def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns" / "lock").symlink_to(tmp_path / "victim")
    await expect_refusal(tmp_path / "ns", StoreBroken)
    assert not (tmp_path / "victim").exists()


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    garbage = b"certainly not a database" * 100
    (tmp_path / "ns" / "store.db").write_bytes(garbage)
    await expect_refusal(tmp_path / "ns", StoreBroken)
    assert (tmp_path / "ns" / "store.db").read_bytes() == garbage


async def test_a_database_of_another_program_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    with closing(sqlite3.connect(tmp_path / "ns" / "store.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE holiday_photos (name TEXT)")
    before = (tmp_path / "ns" / "store.db").read_bytes()
    await expect_refusal(tmp_path / "ns", StoreBroken)
    assert (tmp_path / "ns" / "store.db").read_bytes() == before


@pytest.mark.parametrize("log_left_behind", [False, True])
async def test_a_store_of_a_later_version_is_refused_untouched(tmp_path: Path, log_left_behind: bool) -> None:
    async with opened(tmp_path / "ns") as store:
        await store.commit([Put(Table.META, b"key", b"x")])
    _raise_version(tmp_path / "ns" / "store.db", log_left_behind)
    before = {name: (tmp_path / "ns" / name).read_bytes() for name in _contents(tmp_path / "ns")}
    await expect_refusal(tmp_path / "ns", StoreTooNew)
    assert {name: (tmp_path / "ns" / name).read_bytes() for name in before} == before


def _contents(path: Path) -> list[str]:
    return [name for name in ("store.db", "store.db-wal") if (path / name).exists()]


def _raise_version(database: Path, log_left_behind: bool) -> None:
    """Write a later schema version, in the log only when the writer is to end without closing."""
    script = (
        "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "d.execute('PRAGMA user_version = 99'); os._exit(0) if sys.argv[2] == 'True' else d.close()"
    )
    subprocess.run([sys.executable, "-c", script, str(database), str(log_left_behind)], check=True)


async def test_an_empty_file_left_by_a_crash_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns" / "store.db").touch()
    async with opened(tmp_path / "ns") as store:
        await store.commit([Put(Table.META, b"key", b"x")])


async def test_a_database_without_our_tables_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns"):
        pass
    with closing(sqlite3.connect(tmp_path / "ns" / "store.db", isolation_level=None)) as database:
        database.execute("DROP TABLE signed")
    await expect_refusal(tmp_path / "ns", StoreBroken)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
async def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir(mode=0o500)
    await expect_refusal(tmp_path / "ns", StoreBroken)


async def test_another_process_is_refused_while_we_own_the_store(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from perun_core.errors import StoreLocked\n"
        "from perun_core.ports.store import StoreContext\n"
        "from perun_store_sqlite.store import SqliteConfig, open_sqlite\n"
        "async def main():\n"
        "    try:\n"
        "        async with open_sqlite(SqliteConfig(), StoreContext(path=pathlib.Path(sys.argv[1]))): return 1\n"
        "    except StoreLocked: return 42\n"
        "sys.exit(asyncio.run(main()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", script, str(tmp_path / "ns")]
    async with opened(tmp_path / "ns"):
        child = await asyncio.create_subprocess_exec(*command, env=environment)
        assert await child.wait() == 42
    child = await asyncio.create_subprocess_exec(*command, env=environment)
    assert await child.wait() == 1


async def test_a_cancelled_closing_still_releases_the_namespace(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def own() -> None:
        async with opened(tmp_path / "ns") as store:
            await store.commit([Put(Table.META, b"key", b"x")])
            entered.set()
            await asyncio.Event().wait()

    owner = asyncio.create_task(own())
    await entered.wait()
    owner.cancel()
    await asyncio.sleep(0)
    owner.cancel()
    await asyncio.wait([owner])
    for worker in threading.enumerate():
        if worker.name == "perun-store-sqlite":
            await asyncio.to_thread(worker.join)
    async with opened(tmp_path / "ns") as store:
        assert await store.get(Table.META, b"key") == b"x"
