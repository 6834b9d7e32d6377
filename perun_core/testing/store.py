"""Proof of `perun_core.ports.store.Store`, and a store in memory for tests of code that writes records."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from perun_core.errors import StoreBroken, StoreConflict, StoreError, StoreLocked
from perun_core.ports.store import Delete, Op, Put, PutNew, Store, Table

Rows = dict[tuple[Table, bytes], bytes]


class MemoryStore:
    """A `Store` whose disk is a dictionary: everything it promises except outliving the process.

    Give two of them the same `rows`, one after the other, to test a restart. `commits` lists every batch that was
    made durable, in order. `fail_commit` injects a failure.
    """

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows: Rows = {} if rows is None else rows
        self.commits: list[tuple[Op, ...]] = []
        self.closed = False
        self._calls = 0
        self._failures: dict[int, StoreError] = {}

    def fail_commit(self, nth: int, error: StoreError) -> None:
        """Let the `nth` call of `commit` from now on (1 is the next) raise `error` and write nothing."""
        self._failures[self._calls + nth] = error

    async def commit(self, batch: Sequence[Op]) -> None:
        """See `Store.commit`. Gives other tasks a turn before it returns, as a real disk does."""
        self._refuse_when_closed()
        if not batch:
            raise ValueError("an empty batch is never committed")
        self._calls += 1
        if (failure := self._failures.pop(self._calls, None)) is not None:
            raise failure
        changed = dict(self.rows)
        for op in batch:
            _apply(op, changed)
        self.rows.clear()
        self.rows.update(changed)
        self.commits.append(tuple(batch))
        await asyncio.sleep(0)

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """See `Store.get`."""
        self._refuse_when_closed()
        return self.rows.get((table, key))

    async def scan(
        self, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        """See `Store.scan`."""
        self._refuse_when_closed()
        found = sorted(
            (key, value)
            for (in_table, key), value in self.rows.items()
            if in_table == table and key.startswith(prefix) and (after is None or key > after)
        )
        return found[: max(limit, 0)]

    def _refuse_when_closed(self) -> None:
        if self.closed:
            raise StoreBroken("the store is closed")


def _apply(op: Op, rows: Rows) -> None:
    place = (op.table, op.key)
    match op:
        case Put():
            rows[place] = op.value
        case PutNew():
            if rows.setdefault(place, op.value) != op.value:
                raise StoreConflict(f"another value is stored under {op.table}/{op.key.hex()}")
        case Delete():
            rows.pop(place, None)


class MemoryDisk:
    """Namespaces in memory by path: what is committed is there when the same path is opened again."""

    def __init__(self) -> None:
        self._namespaces: dict[Path, Rows] = {}
        self._owned: set[Path] = set()

    @asynccontextmanager
    async def open(self, path: Path) -> AsyncIterator[MemoryStore]:
        """The namespace at `path`, empty when new. Raises: StoreLocked while somebody else has it open."""
        if path in self._owned:
            raise StoreLocked(f"{path} is in use")
        self._owned.add(path)
        store = MemoryStore(self._namespaces.setdefault(path, {}))
        try:
            yield store
        finally:
            store.closed = True
            self._owned.discard(path)


class StoreConformance:
    """Every promise of the `Store` port. Subclass as ``class TestMine(StoreConformance)`` and define `open_store`.

    The class must be importable from its file without fixtures: the kill test loads it in a second process.
    """

    outlives_the_process: ClassVar[bool] = True
    """Set to False only for stores in memory; skips the kill test."""

    def open_store(self, path: Path) -> AbstractAsyncContextManager[Store]:
        """Open the namespace at `path` (a directory that may not exist yet) with the options you ship as defaults."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- durability

    async def test_a_returned_commit_is_there_after_reopening(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, b"key", b"value")])
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.get(Table.CHANNELS, b"key") == b"value"

    async def test_a_returned_commit_survives_kill(self, tmp_path: Path) -> None:
        if not self.outlives_the_process:
            pytest.skip("this store lives in memory")
        acknowledged = await asyncio.to_thread(_kill_a_writer, type(self), tmp_path / "ns")
        async with self.open_store(tmp_path / "ns") as store:
            for key in acknowledged:
                assert await store.get(Table.SIGNED, key) == key
            first = dict(await store.scan(Table.SIGNED, limit=1_000_000))
            second = dict(await store.scan(Table.CHANNELS, limit=1_000_000))
        assert first == second, "a batch was written in part"

    async def test_200_concurrent_commits_are_all_durable(self, tmp_path: Path) -> None:
        keys = [i.to_bytes(2, "big") for i in range(200)]
        async with self.open_store(tmp_path / "ns") as store:
            await asyncio.gather(*(store.commit([Put(Table.CHANNELS, key, key * 50)]) for key in keys))
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.scan(Table.CHANNELS) == [(key, key * 50) for key in keys]

    async def test_large_values_come_back_whole(self, tmp_path: Path) -> None:
        large = os.urandom(1 << 20)
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.ARCHIVE, b"large", large)])
            assert await store.get(Table.ARCHIVE, b"large") == large
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.get(Table.ARCHIVE, b"large") == large

    # -------------------------------------------------------------------------------------------------- atomicity

    async def test_a_conflict_refuses_the_whole_batch(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.SIGNED, b"guard", b"one"), Put(Table.CHANNELS, b"kept", b"old")])
            with pytest.raises(StoreConflict):
                await store.commit(
                    [
                        Put(Table.CHANNELS, b"before", b"x"),
                        Delete(Table.CHANNELS, b"kept"),
                        PutNew(Table.SIGNED, b"guard", b"two"),
                        Put(Table.CHANNELS, b"behind", b"x"),
                    ]
                )
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.scan(Table.CHANNELS) == [(b"kept", b"old")]
            assert await store.get(Table.SIGNED, b"guard") == b"one"

    async def test_a_conflict_leaves_concurrent_batches_alone(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.SIGNED, b"guard", b"one")])
            results = await asyncio.gather(
                *(_commit_one_of_three(store, number) for number in range(30)), return_exceptions=True
            )
            refused = [number for number, result in enumerate(results) if isinstance(result, StoreConflict)]
            assert refused == list(range(0, 30, 3))
        async with self.open_store(tmp_path / "ns") as store:
            kept = [key for key, _ in await store.scan(Table.CHANNELS)]
            assert kept == [bytes([number]) for number in range(30) if number % 3]
            assert await store.get(Table.SIGNED, b"guard") == b"one"

    async def test_of_two_rivals_for_a_new_key_exactly_the_first_wins(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            results = await asyncio.gather(
                store.commit([PutNew(Table.SIGNED, b"version 7", b"mine")]),
                store.commit([PutNew(Table.SIGNED, b"version 7", b"yours")]),
                return_exceptions=True,
            )
            assert results[0] is None
            assert isinstance(results[1], StoreConflict)
            assert await store.get(Table.SIGNED, b"version 7") == b"mine"

    async def test_putting_the_same_new_value_again_has_no_effect(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([PutNew(Table.SIGNED, b"guard", b"one")])
            await store.commit([PutNew(Table.SIGNED, b"guard", b"one"), Put(Table.CHANNELS, b"rest", b"written")])
            assert await store.get(Table.SIGNED, b"guard") == b"one"
            assert await store.get(Table.CHANNELS, b"rest") == b"written"

    async def test_a_store_works_on_after_a_conflict(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([PutNew(Table.SIGNED, b"guard", b"one")])
            with pytest.raises(StoreConflict):
                await store.commit([PutNew(Table.SIGNED, b"guard", b"two")])
            await store.commit([Put(Table.CHANNELS, b"after", b"x")])
            assert await store.get(Table.CHANNELS, b"after") == b"x"

    # ------------------------------------------------------------------------------------------------------ order

    async def test_the_operations_of_a_batch_apply_in_order(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit(
                [
                    Put(Table.META, b"a", b"1"),
                    Put(Table.META, b"a", b"2"),
                    PutNew(Table.META, b"b", b"1"),
                    Delete(Table.META, b"b"),
                    PutNew(Table.META, b"b", b"2"),
                    Put(Table.META, b"c", b"1"),
                    Delete(Table.META, b"c"),
                ]
            )
            assert await store.scan(Table.META) == [(b"a", b"2"), (b"b", b"2")]

    async def test_concurrent_commits_take_effect_in_the_order_of_the_calls(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await asyncio.gather(*(store.commit([Put(Table.META, b"last", bytes([n]))]) for n in range(50)))
            assert await store.get(Table.META, b"last") == bytes([49])

    async def test_deleting_an_absent_key_is_no_error(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Delete(Table.PEERS, b"nobody")])
            assert await store.get(Table.PEERS, b"nobody") is None

    # ---------------------------------------------------------------------------------------------------- reading

    async def test_reads_see_a_commit_as_soon_as_it_returned(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            for number in range(20):
                value = bytes([number])
                await store.commit([Put(Table.CURSORS, b"cursor", value)])
                assert await store.get(Table.CURSORS, b"cursor") == value
                assert await store.scan(Table.CURSORS) == [(b"cursor", value)]

    async def test_an_absent_key_reads_as_none_and_an_empty_value_as_empty(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.META, b"", b""), Put(Table.META, b"empty", b"")])
            assert await store.get(Table.META, b"") == b""
            assert await store.get(Table.META, b"empty") == b""
            assert await store.get(Table.META, b"absent") is None
            assert await store.scan(Table.META) == [(b"", b""), (b"empty", b"")]
            assert await store.scan(Table.META, after=b"") == [(b"empty", b"")]

    async def test_an_empty_store_has_empty_tables(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            assert [await store.scan(table) for table in Table] == [[] for _ in Table]

    async def test_tables_do_not_see_each_other(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(table, b"key", table.value.encode()) for table in Table])
            assert [await store.get(table, b"key") for table in Table] == [table.value.encode() for table in Table]

    async def test_scans_are_ordered_bytewise(self, tmp_path: Path) -> None:
        keys = [b"\xff\xff", b"a", b"\x00", b"B", b"\x7f", b"\x80", b"aa", b"\x00\x00", b"\xff", b"a\x00"]
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.META, key, b"") for key in keys])
            assert [key for key, _ in await store.scan(Table.META)] == sorted(keys)

    async def test_scans_respect_prefix_after_and_limit(self, tmp_path: Path) -> None:
        keys = [b"a", b"b", b"b\x00", b"b1", b"b2", b"b\xff", b"b\xff\xff", b"c", b"\xff", b"\xff\x01"]
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.META, key, key) for key in keys])

            async def scan(prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000) -> list[bytes]:
                return [key for key, _ in await store.scan(Table.META, prefix, after=after, limit=limit)]

            assert await scan(b"b") == [b"b", b"b\x00", b"b1", b"b2", b"b\xff", b"b\xff\xff"]
            assert await scan(b"b\xff") == [b"b\xff", b"b\xff\xff"]
            assert await scan(b"\xff") == [b"\xff", b"\xff\x01"]
            assert await scan(b"x") == []
            assert await scan(b"b", after=b"b1") == [b"b2", b"b\xff", b"b\xff\xff"]
            assert await scan(b"b", after=b"a") == await scan(b"b")
            assert await scan(b"b", after=b"c") == []
            assert await scan(after=b"b\xff") == [b"b\xff\xff", b"c", b"\xff", b"\xff\x01"]
            assert await scan(b"b", limit=2) == [b"b", b"b\x00"]
            assert await scan(limit=0) == []

    async def test_scanning_page_by_page_gives_every_record_once(self, tmp_path: Path) -> None:
        keys = [os.urandom(8) for _ in range(97)]
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, key, key) for key in keys])
            seen: list[bytes] = []
            while page := await store.scan(Table.CHANNELS, after=seen[-1] if seen else None, limit=10):
                seen += [key for key, _ in page]
        assert seen == sorted(keys)

    # -------------------------------------------------------------------------------------------------- ownership

    async def test_a_second_opener_is_refused_until_the_first_closed(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            with pytest.raises(StoreLocked):
                async with self.open_store(tmp_path / "ns"):
                    pass
            await store.commit([Put(Table.META, b"still", b"mine")])
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.get(Table.META, b"still") == b"mine"

    async def test_namespaces_are_independent(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "one") as one, self.open_store(tmp_path / "two") as two:
            await one.commit([Put(Table.META, b"key", b"one")])
            assert await two.get(Table.META, b"key") is None

    async def test_an_error_of_the_owner_releases_the_namespace(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError):
            async with self.open_store(tmp_path / "ns"):
                raise ZeroDivisionError
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.META, b"key", b"value")])

    async def test_a_closed_store_refuses(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.META, b"key", b"value")])
        with pytest.raises(StoreBroken):
            await store.commit([Put(Table.META, b"key", b"other")])
        with pytest.raises(StoreBroken):
            await store.get(Table.META, b"key")
        with pytest.raises(StoreBroken):
            await store.scan(Table.META)

    async def test_a_cancelled_commit_harms_nobody(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            cancelled = asyncio.create_task(store.commit([Put(Table.META, b"cancelled", b"x")]))
            other = asyncio.create_task(store.commit([Put(Table.META, b"other", b"y")]))
            await asyncio.sleep(0)
            cancelled.cancel()
            await other
            assert await store.get(Table.META, b"other") == b"y"
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.get(Table.META, b"cancelled") in (None, b"x")
            assert await store.get(Table.META, b"other") == b"y"


async def _commit_one_of_three(store: Store, number: int) -> None:
    """Every third of these batches conflicts with the guard that the test wrote before."""
    guard: tuple[Op, ...] = () if number % 3 else (PutNew(Table.SIGNED, b"guard", b"two"),)
    await store.commit([Put(Table.CHANNELS, bytes([number]), b"x"), *guard])


# ------------------------------------------------------------------------------------------------------ the kill test

_ENOUGH = 120
_CHILD = "import sys; from perun_core.testing.store import write_until_killed; write_until_killed(*sys.argv[1:])"


def _kill_a_writer(conformance: type[StoreConformance], path: Path) -> list[bytes]:
    """Let a second process commit from eight tasks, kill it in the middle, and return what it had acknowledged."""
    command = [sys.executable, "-c", _CHILD, inspect.getfile(conformance), conformance.__qualname__, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(_ENOUGH)]
        finally:
            child.kill()
        lines += child.stdout.readlines()
    acknowledged = [bytes.fromhex(line.decode()) for line in lines if line.endswith(b"\n")]
    assert len(acknowledged) >= _ENOUGH, "the writing process ended by itself"
    return acknowledged


def write_until_killed(file: str, qualname: str, path: str) -> None:
    """What the second process of the kill test runs: commit for ever, print every key once its commit returned."""
    spec = importlib.util.spec_from_file_location("conformance_under_test", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: object = module
    for name in qualname.split("."):
        found = getattr(found, name)
    assert isinstance(found, type) and issubclass(found, StoreConformance)
    asyncio.run(_write_for_ever(found(), Path(path)))


async def _write_for_ever(conformance: StoreConformance, path: Path) -> None:
    async with conformance.open_store(path) as store:
        await asyncio.gather(*(_write_keys_starting_with(bytes([task]), store) for task in range(8)))


async def _write_keys_starting_with(prefix: bytes, store: Store) -> None:
    number = 0
    while True:
        key = prefix + number.to_bytes(4, "big")
        await store.commit([Put(Table.SIGNED, key, key), Put(Table.CHANNELS, key, key)])
        os.write(1, key.hex().encode() + b"\n")
        number += 1
