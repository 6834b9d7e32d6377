"""Proof of `perun_core.ports.store.Store`, and a store in memory for tests of code that writes records."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from perun_core.errors import (
    StoreBroken,
    StoreConflict,
    StoreError,
    StoreFenced,
    StoreFull,
    StoreLocked,
    StoreTooNew,
)
from perun_core.ports.store import Delete, Doubt, Op, Put, PutNew, Store, StoreStatus, Table
from perun_core.testing.power import Recording, missing_tool, record

Rows = dict[tuple[Table, bytes], bytes]


class MemoryStore:
    """A `Store` whose disk is a dictionary: everything it promises except outliving the process.

    Give two of them the same `rows`, one after the other, to test a restart. `commits` lists every batch that was
    made durable, in order. `fail_commit` injects a failure.
    """

    def __init__(self, rows: Rows | None = None, *, status: StoreStatus | None = None, snapshot: bool = False) -> None:
        self.rows: Rows = {} if rows is None else rows
        self.commits: list[tuple[Op, ...]] = []
        self.closed = False
        self._status = status or StoreStatus(secrets.token_hex(16), 1)
        self._snapshot = snapshot
        self._calls = 0
        self._failures: dict[int, StoreError] = {}

    def fail_commit(self, nth: int, error: StoreError) -> None:
        """Let the `nth` call of `commit` from now on (1 is the next) raise `error` and write nothing."""
        self._failures[self._calls + nth] = error

    async def commit(self, batch: Sequence[Op]) -> None:
        """See `Store.commit`. Gives other tasks a turn before it returns, as a real disk does."""
        self._refuse_writing()
        if not batch:
            raise ValueError("an empty batch is never committed")
        marks = [op.key for op in batch if isinstance(op, PutNew) and op.table is Table.SIGNED]
        if not all(map(self._status.may_sign, marks)):
            raise StoreFenced(f"the store is in doubt, so nothing is signed: {self._status.reason}")
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

    def status(self) -> StoreStatus:
        """See `Store.status`."""
        return self._status

    async def distrust(self, doubt: Doubt, reason: str) -> None:
        """See `Store.distrust`."""
        self._refuse_writing()
        old = self._status
        if old.doubt is None or (old.doubt is Doubt.GONE and doubt is Doubt.RESTORED):
            old = msgspec.structs.replace(old, doubt=doubt, reason=reason or doubt.value)
        self._status = msgspec.structs.replace(old, trusted=())

    async def trust(self, prefix: bytes = b"") -> None:
        """See `Store.trust`."""
        self._refuse_writing()
        old = self._status
        if not prefix:
            self._status = StoreStatus(old.identity, old.generation)
        elif old.doubt is not None and not old.may_sign(prefix):
            self._status = msgspec.structs.replace(old, trusted=tuple(sorted((*old.trusted, prefix))))

    def _refuse_writing(self) -> None:
        self._refuse_when_closed()
        if self._snapshot:
            raise StoreBroken("a snapshot is not written to")

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
        self._status: dict[Path, StoreStatus] = {}
        self._owned: dict[Path, MemoryStore] = {}

    @asynccontextmanager
    async def open(self, path: Path, *, snapshot: bool = False) -> AsyncIterator[MemoryStore]:
        """The namespace at `path`, empty when new.

        Raises: StoreLocked while somebody else has it open, StoreBroken for a snapshot of nothing.
        """
        if snapshot:
            if path not in self._namespaces:
                raise StoreBroken(f"there is no store at {path}")
            status = self._owned[path].status() if path in self._owned else self._status[path]
            copy = MemoryStore(dict(self._namespaces[path]), status=status, snapshot=True)
            yield copy
            copy.closed = True
            return
        if path in self._owned:
            raise StoreLocked(f"{path} is in use")
        before = self._status.get(path) or StoreStatus(secrets.token_hex(16), 0)
        status = msgspec.structs.replace(before, generation=before.generation + 1)
        store = self._owned[path] = MemoryStore(self._namespaces.setdefault(path, {}), status=status)
        try:
            yield store
        finally:
            store.closed = True
            self._status[path] = store.status()
            del self._owned[path]


class StoreConformance:
    """Every promise of the `Store` port. Subclass as ``class TestMine(StoreConformance)`` and define `open_store`.

    The class must be importable from its file without fixtures: some tests load it in a second process. Everything the
    store writes for the namespace ``DIRECTORY/ns`` must be below ``DIRECTORY``. Tests of crashes and of power need
    strace, tests of a full and of a read-only disk need Linux user namespaces; they skip with the reason without.
    """

    outlives_the_process: ClassVar[bool] = True
    """Set to False only for stores in memory; skips what needs a second process or files."""
    writes_by_calls: ClassVar[bool] = True
    """Set to False when records are written through mapped memory, which strace cannot see; then prove by other means
    that what was acknowledged survives a loss of power."""
    crash_points: ClassVar[int] = 10
    """At how many writes, syncs and renames, spread over all of them, the writing process is killed."""
    power_cuts: ClassVar[int] = 40
    """At how many points, spread over all of them, power is lost; three times each, with more or less written."""

    def open_store(self, path: Path) -> AbstractAsyncContextManager[Store]:
        """Open the namespace at `path` (a directory that may not exist yet) with the options you ship as defaults."""
        raise NotImplementedError

    def open_snapshot(self, path: Path) -> AbstractAsyncContextManager[Store]:
        """The same with `StoreContext.snapshot`."""
        raise NotImplementedError

    def make_newer(self, path: Path) -> None:
        """Change the closed namespace at `path` into one that a later version of the software could have written."""
        raise NotImplementedError

    def _skip_in_memory(self) -> None:
        if not self.outlives_the_process:
            pytest.skip("this store lives in memory")

    # ------------------------------------------------------------------------------------------------- durability

    async def test_a_returned_commit_is_there_after_reopening(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, b"key", b"value")])
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.get(Table.CHANNELS, b"key") == b"value"

    async def test_a_returned_commit_survives_kill(self, tmp_path: Path) -> None:
        self._skip_in_memory()
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

    @pytest.mark.parametrize("size", [1 << 20, (1 << 24) + 1])
    async def test_large_values_come_back_whole(self, tmp_path: Path, size: int) -> None:
        large = os.urandom(size)
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.ARCHIVE, b"large", large)])
            assert await store.get(Table.ARCHIVE, b"large") == large
        async with self.open_store(tmp_path / "ns") as store:
            assert await store.get(Table.ARCHIVE, b"large") == large

    @pytest.mark.slow
    async def test_a_crash_at_any_write_loses_nothing_that_was_acknowledged(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        if problem := missing_tool():
            pytest.skip(problem)
        for number, (call, nth) in enumerate(await asyncio.to_thread(_crash_points, type(self), tmp_path / "count")):
            path = tmp_path / f"{number}" / "ns"
            said = await asyncio.to_thread(
                _write_under_strace, type(self), path, inject=f"{call}:signal=KILL:when={nth}"
            )
            await self._expect_whole(path, said, f"killed at {call} number {nth}")

    @pytest.mark.slow
    async def test_a_loss_of_power_loses_nothing_that_was_acknowledged(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        if not self.writes_by_calls:
            pytest.skip("this store writes through mapped memory")
        if problem := missing_tool():
            pytest.skip(problem)
        recording = await asyncio.to_thread(record_writer, type(self), tmp_path)
        every = recording.cuts()
        chosen = sorted({*every[:: max(len(every) // self.power_cuts, 1)], every[-1]})
        await self.expect_power_cuts_survived(recording, chosen, tmp_path / "rebuilt")

    async def expect_power_cuts_survived(
        self, recording: Recording, cuts: Sequence[int], scratch: Path, *, seed: int = 0
    ) -> int:
        """Lose power at each of `cuts`, three times: nothing, some and all of what was not synced is written.

        `seed` decides which. Returns how often power was lost.
        """
        tried = 0
        for cut in cuts:
            for keep in (0.0, 0.5, 1.0):
                place = scratch / f"{cut}-{keep}"
                place.mkdir(parents=True)
                recording.rebuild(cut, place, random.Random(f"{seed} {cut} {keep}"), keep=keep)
                await self._expect_whole(place / "ns", recording.output_before(cut), f"power lost at {cut}, {keep}")
                await asyncio.to_thread(shutil.rmtree, place)
                tried += 1
        return tried

    async def _expect_whole(self, path: Path, said: bytes, where: str) -> None:
        """What `write_and_end` acknowledged is there, no batch is there in part, and nobody suspects a rollback."""
        acknowledged = [bytes.fromhex(line.decode()) for line in said.splitlines(keepends=True) if line[-1:] == b"\n"]
        async with self.open_store(path) as store:
            assert store.status().doubt is None, f"{where}: {store.status().reason}"
            marks = dict(await store.scan(Table.SIGNED, limit=1_000_000))
            records = dict(await store.scan(Table.CHANNELS, limit=1_000_000))
        assert marks.keys() == records.keys(), f"{where}: a batch is there in part"
        assert all(value == key for key, value in marks.items()), where
        assert all(value == _record_of(key) for key, value in records.items()), where
        assert marks.keys() >= set(acknowledged), f"{where}: something that was acknowledged is lost"

    async def test_a_full_disk_refuses_what_does_not_fit_and_loses_nothing(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        await asyncio.to_thread(_on_a_disk_of_its_own, type(self), "fill the disk", tmp_path)

    async def test_a_read_only_disk_is_refused_and_nothing_is_lost(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        await asyncio.to_thread(_on_a_disk_of_its_own, type(self), "make it read-only", tmp_path)

    async def test_damaged_files_are_refused_by_name_and_never_believed(self, tmp_path: Path) -> None:
        """64 bytes at many places of every file are overwritten: an error, a doubt, or exactly what was written."""
        self._skip_in_memory()
        rows = {number.to_bytes(4, "big"): os.urandom(300) for number in range(300)}
        async with self.open_store(tmp_path / "used" / "ns") as store:
            for table in (Table.SIGNED, Table.CHANNELS):
                await store.commit([Put(table, key, value) for key, value in rows.items()])
        await asyncio.to_thread((tmp_path / "used").rename, tmp_path / "good")
        chance, refused = random.Random(7), 0
        for file, offset in await asyncio.to_thread(_places_to_damage, tmp_path / "good" / "ns", chance):
            # Back at the path it was made at: elsewhere it would be doubted for that alone.
            await asyncio.to_thread(shutil.copytree, tmp_path / "good", tmp_path / "used")
            await asyncio.to_thread(_overwrite, tmp_path / "used" / "ns" / file, offset, chance.randbytes(64))
            try:
                async with self.open_store(tmp_path / "used" / "ns") as store:
                    for table in (Table.SIGNED, Table.CHANNELS):
                        found = dict(await store.scan(table, limit=10_000))
                        assert found == rows or store.status().doubt, f"{file} at {offset} in {table}"
            except StoreError as error:
                refused += 1
                assert str(tmp_path / "used") in str(error), f"the error does not say which store: {error}"
            await asyncio.to_thread(shutil.rmtree, tmp_path / "used")
        assert refused, "no damage was ever noticed"

    async def test_a_store_of_a_later_version_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, b"key", b"value")])
        self.make_newer(tmp_path / "ns")
        before = _contents(tmp_path / "ns")
        with pytest.raises(StoreTooNew):
            async with self.open_store(tmp_path / "ns"):
                pass
        assert _contents(tmp_path / "ns").items() >= before.items()

    # ------------------------------------------------------------------------------------------- identity and doubt

    async def test_identity_stays_and_the_generation_grows_with_every_opening(self, tmp_path: Path) -> None:
        seen = []
        for _ in range(3):
            async with self.open_store(tmp_path / "ns") as store:
                seen.append(store.status())
        assert len({status.identity for status in seen}) == 1
        assert seen[0].identity
        assert seen[0].generation < seen[1].generation < seen[2].generation
        assert [status.doubt for status in seen] == [None] * 3
        async with self.open_store(tmp_path / "other") as store:
            assert store.status().identity != seen[0].identity

    async def test_an_older_copy_that_is_put_back_is_in_doubt(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, b"key", b"old")])
        await asyncio.to_thread(shutil.copytree, tmp_path / "ns", tmp_path / "copy")
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, b"key", b"new")])
        await asyncio.to_thread(shutil.rmtree, tmp_path / "ns")
        await asyncio.to_thread((tmp_path / "copy").rename, tmp_path / "ns")
        async with self.open_store(tmp_path / "ns") as store:
            assert store.status().doubt is Doubt.OLDER
            assert store.status().reason

    async def test_in_doubt_no_mark_is_taken_until_it_is_trusted_again(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([PutNew(Table.SIGNED, b"one, version 1", b"hash")])
            await store.distrust(Doubt.REPORTED, "the peer has more")
        async with self.open_store(tmp_path / "ns") as store:
            assert (store.status().doubt, store.status().reason) == (Doubt.REPORTED, "the peer has more")
            results = await asyncio.gather(
                store.commit([Put(Table.CHANNELS, b"one", b"x"), PutNew(Table.SIGNED, b"one, version 2", b"hash")]),
                store.commit([Put(Table.CHANNELS, b"two", b"adopted"), Put(Table.SIGNED, b"two, 1", b"restored")]),
                return_exceptions=True,
            )
            assert isinstance(results[0], StoreFenced)
            assert results[1] is None
            assert await store.get(Table.CHANNELS, b"one") is None
            await store.trust(b"one")
        async with self.open_store(tmp_path / "ns") as store:
            assert store.status().doubt is Doubt.REPORTED
            assert store.status().may_sign(b"one, version 2")
            assert not store.status().may_sign(b"two, version 2")
            await store.commit([PutNew(Table.SIGNED, b"one, version 2", b"hash")])
            with pytest.raises(StoreFenced):
                await store.commit([PutNew(Table.SIGNED, b"two, version 2", b"hash")])
            await store.trust()
            await store.commit([PutNew(Table.SIGNED, b"two, version 2", b"hash")])
        async with self.open_store(tmp_path / "ns") as store:
            assert store.status().doubt is None

    async def test_the_first_doubt_is_kept_and_takes_back_what_was_trusted(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.distrust(Doubt.REPORTED, "first")
            await store.trust(b"one")
            await store.distrust(Doubt.OLDER, "second")
            assert (store.status().doubt, store.status().reason) == (Doubt.REPORTED, "first")
            assert store.status().trusted == ()

    async def test_trusting_a_store_that_is_not_in_doubt_changes_nothing(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.trust(b"one")
            await store.trust()
            assert (store.status().doubt, store.status().trusted) == (None, ())

    # --------------------------------------------------------------------------------------------------- snapshots

    async def test_a_snapshot_shows_one_moment_while_the_owner_works(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, bytes([n]), b"before") for n in range(50)])
            async with self.open_snapshot(tmp_path / "ns") as snapshot:
                assert snapshot.status() == store.status()
                seen: list[tuple[bytes, bytes]] = []
                while page := await snapshot.scan(Table.CHANNELS, after=seen[-1][0] if seen else None, limit=7):
                    seen += page
                    await store.commit([Put(Table.CHANNELS, bytes([n]), b"after") for n in range(60)])
                assert seen == [(bytes([n]), b"before") for n in range(50)]
                assert await snapshot.get(Table.CHANNELS, bytes([55])) is None
                with pytest.raises(StoreBroken):
                    await snapshot.commit([Put(Table.CHANNELS, b"x", b"y")])
                with pytest.raises(StoreBroken):
                    await snapshot.distrust(Doubt.OLDER, "no")
                with pytest.raises(StoreBroken):
                    await snapshot.trust()
            assert await store.get(Table.CHANNELS, bytes([55])) == b"after"

    async def test_a_snapshot_of_a_closed_store_changes_nothing_and_of_nothing_is_refused(self, tmp_path: Path) -> None:
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, b"key", b"value")])
        async with self.open_snapshot(tmp_path / "ns") as snapshot:
            assert await snapshot.get(Table.CHANNELS, b"key") == b"value"
            generation = snapshot.status().generation
        with pytest.raises(StoreBroken):
            await snapshot.get(Table.CHANNELS, b"key")
        async with self.open_snapshot(tmp_path / "ns") as snapshot:
            assert snapshot.status().generation == generation
        with pytest.raises(StoreBroken):
            async with self.open_snapshot(tmp_path / "nothing"):
                pass
        assert not (tmp_path / "nothing").exists()

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

    async def test_scanning_while_others_write_gives_every_record_that_stays_once_and_in_order(
        self, tmp_path: Path
    ) -> None:
        staying = [bytes([2 * n]) for n in range(100)]
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([Put(Table.CHANNELS, key, b"stays") for key in staying])
            seen: list[bytes] = []
            for turn in range(1000):
                coming, going = bytes([2 * turn % 200 + 1]), bytes([2 * (turn + 37) % 200 + 1])
                batch: list[Op] = [Put(Table.CHANNELS, coming, b"comes"), Delete(Table.CHANNELS, going)]
                page, _ = await asyncio.gather(
                    store.scan(Table.CHANNELS, after=seen[-1] if seen else None, limit=7), store.commit(batch)
                )
                if not page:
                    break
                seen += [key for key, _ in page]
        assert seen == sorted(set(seen))
        assert set(staying) <= set(seen)

    @pytest.mark.parametrize("length", [1, 32, 41, 255, 1000, 4000])
    async def test_keys_of_any_length_and_content(self, tmp_path: Path, length: int) -> None:
        keys = {bytes(length), b"\xff" * length, os.urandom(length), b"'" * length, b"\x00\xff"[:length] * length}
        async with self.open_store(tmp_path / "ns") as store:
            await store.commit([PutNew(Table.SIGNED, key, key[::-1]) for key in keys])
            await store.commit([PutNew(Table.SIGNED, key, key[::-1]) for key in keys])
            for key in keys:
                assert await store.get(Table.SIGNED, key) == key[::-1]
                with pytest.raises(StoreConflict):
                    await store.commit([PutNew(Table.SIGNED, key, key[::-1] + b"x")])
        async with self.open_store(tmp_path / "ns") as store:
            assert [key for key, _ in await store.scan(Table.SIGNED)] == sorted(keys)

    # -------------------------------------------------------------------------------------------------------- size

    @pytest.mark.slow
    async def test_with_100000_states_a_commit_and_a_read_cost_about_what_they_cost_before(
        self, tmp_path: Path
    ) -> None:
        """Counts the bytes that the process reads and writes, not seconds."""
        self._skip_in_memory()
        chance = random.Random(3)
        async with self.open_store(tmp_path / "ns") as store:
            written, read = [], []
            keys: list[bytes] = []
            for _ in range(10):
                fresh = [chance.randbytes(32) for _ in range(10_000)]
                for first in range(0, len(fresh), 500):
                    await store.commit([PutNew(Table.SIGNED, key, key) for key in fresh[first : first + 500]])
                keys += fresh
                before = _bytes_moved()
                for key in chance.sample(keys, 40):
                    await store.commit([Put(Table.SIGNED, key, key)])
                between = _bytes_moved()
                for key in chance.sample(keys, 200):
                    assert await store.get(Table.SIGNED, key) == key
                    assert len(await store.scan(Table.SIGNED, key[:1], after=key, limit=5)) <= 5
                after = _bytes_moved()
                written.append(between[1] - before[1])
                read.append(after[0] - between[0])
            everything = 0
            last: bytes | None = None
            while page := await store.scan(Table.SIGNED, after=last):
                everything += len(page)
                last = page[-1][0]
        assert everything == 100_000
        # A tenth of the records against all of them: ten times as many, a logarithm more work allowed.
        assert written[-1] <= 3 * max(written[0], 1_000_000), written
        assert read[-1] <= 3 * max(read[0], 4_000_000), read

    # -------------------------------------------------------------------------------------------------- ownership

    async def test_another_process_is_refused_while_we_own_the_namespace(self, tmp_path: Path) -> None:
        self._skip_in_memory()
        async with self.open_store(tmp_path / "ns") as store:
            said = await asyncio.to_thread(_run_child, type(self), "open_and_tell", tmp_path / "ns")
            assert said.strip() == b"StoreLocked"
            await store.commit([Put(Table.META, b"still", b"mine")])
        assert (await asyncio.to_thread(_run_child, type(self), "open_and_tell", tmp_path / "ns")).strip() == b"opened"

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
_CHILD = "import sys; from perun_core.testing import store; getattr(store, sys.argv[1])(*sys.argv[2:])"
_BATCHES = 24
"""What `write_and_end` commits in each of its tasks."""


def _child(conformance: type[StoreConformance], work: str, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a second process that runs the function `work` of this module."""
    named = [inspect.getfile(conformance), conformance.__qualname__, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return [sys.executable, "-c", _CHILD, work, *named], environment


def _run_child(conformance: type[StoreConformance], work: str, path: Path) -> bytes:
    command, environment = _child(conformance, work, path)
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def _kill_a_writer(conformance: type[StoreConformance], path: Path) -> list[bytes]:
    """Let a second process commit from eight tasks, kill it in the middle, and return what it had acknowledged."""
    command, environment = _child(conformance, "write_until_killed", path)
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


def record_writer(conformance: type[StoreConformance], scratch: Path) -> Recording:
    """Everything that `write_and_end` does to the files of a new namespace below `scratch`."""
    (scratch / "recorded").mkdir(parents=True)
    command, environment = _child(conformance, "write_and_end", scratch / "recorded" / "ns")
    return record(command, scratch / "recorded", scratch / "trace", environment=environment)


_FATAL_CALLS = ("pwrite64", "write", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "openat")


def _crash_points(conformance: type[StoreConformance], path: Path) -> list[tuple[str, int]]:
    """(call, how many of it) spread over everything that a writing process asks of the system for its files."""
    trace = path.with_name("trace")
    _write_under_strace(conformance, path / "ns", trace=trace)
    counts = dict.fromkeys(_FATAL_CALLS, 0)
    points = []
    inside = str(path.resolve()).encode().hex()
    for line in trace.read_text(encoding="ascii").splitlines():
        name = next((name for name in _FATAL_CALLS if f" {name}(" in line), None)
        if name is None or "resumed>" in line:
            continue
        # strace counts per thread; the thread that commits is another one than the thread that opened.
        thread = line.split(" ", 1)[0]
        counts[f"{thread} {name}"] = counts.get(f"{thread} {name}", 0) + 1
        if inside in line.replace("\\x", ""):
            points.append((name, counts[f"{thread} {name}"]))
    every = list(dict.fromkeys(points))
    assert every, "the writing process never touched a file of its namespace"
    return every[:: max(len(every) // conformance.crash_points, 1)]


def _write_under_strace(
    conformance: type[StoreConformance], path: Path, *, inject: str = "", trace: Path | None = None
) -> bytes:
    """What `write_and_end` said until it ended or was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command, environment = _child(conformance, "write_and_end", path)
    calls = ",".join(_FATAL_CALLS)
    options = ["-f", "-y", "-xx", "-s", "0", "-qq", "-e", f"trace={calls}", "-o", str(trace or os.devnull)]
    if inject:
        options += ["-e", f"inject={inject}"]
    done = subprocess.run(
        ["strace", *options, "--", *command], env=environment, stdout=subprocess.PIPE, check=False, timeout=120
    )
    assert inject or done.returncode == 0, "the writing process failed"
    return done.stdout


def _on_a_disk_of_its_own(conformance: type[StoreConformance], work: str, mount: Path) -> None:
    """Run `use_own_disk` where `mount` is a small disk that only this process sees. Skips where that is not allowed."""
    command, environment = _child(conformance, "use_own_disk", mount, work)
    private = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c"]
    try:
        tried = subprocess.run([*private, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if tried.returncode:
        pytest.skip("no disk can be mounted here")
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" && shift && exec "$@"'
    done = subprocess.run(
        [*private, script, "sh", str(mount), *command], env=environment, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def _bytes_moved() -> tuple[int, int]:
    """How many bytes this process read and wrote so far, files in memory included."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]), int(counts["wchar"])


def _places_to_damage(path: Path, chance: random.Random) -> list[tuple[str, int]]:
    """The beginning of every file, and some places in it."""
    found = []
    for file in sorted(entry for entry in path.iterdir() if entry.is_file() and entry.stat().st_size >= 64):
        size = file.stat().st_size
        found += [(file.name, offset) for offset in (0, *(chance.randrange(size - 63) for _ in range(12)))]
    return found


def _overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


def _contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}


# -------------------------------------------------------------------------------------------- in the second process


def _loaded(file: str, qualname: str) -> StoreConformance:
    spec = importlib.util.spec_from_file_location("conformance_under_test", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: object = module
    for name in qualname.split("."):
        found = getattr(found, name)
    assert isinstance(found, type) and issubclass(found, StoreConformance)
    return found()


def write_until_killed(file: str, qualname: str, path: str) -> None:
    """What the second process of the kill test runs: commit for ever, print every key once its commit returned."""
    asyncio.run(_write_for_ever(_loaded(file, qualname), Path(path)))


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


def write_and_end(file: str, qualname: str, path: str) -> None:
    """Commit from three tasks, print every key once its commit returned, close, open again and commit once more."""
    asyncio.run(_write_some(_loaded(file, qualname), Path(path)))


async def _write_some(conformance: StoreConformance, path: Path) -> None:
    async with conformance.open_store(path) as store:
        await asyncio.gather(*(_write_records(task, store) for task in range(3)))
    async with conformance.open_store(path) as store:
        await _write_record(b"again", store)


async def _write_records(task: int, store: Store) -> None:
    for number in range(_BATCHES):
        await _write_record(bytes([task, number]), store)
        if task == 0 and number % 8 == 7:
            await store.commit([Delete(Table.SIGNED, b"nothing"), Put(Table.META, b"rewritten", os.urandom(20_000))])


async def _write_record(key: bytes, store: Store) -> None:
    await store.commit([PutNew(Table.SIGNED, key, key), Put(Table.CHANNELS, key, _record_of(key))])
    os.write(1, key.hex().encode() + b"\n")


def _record_of(key: bytes) -> bytes:
    """Small and large records, which anybody can tell from a part of one."""
    return key * (1 + key[-1] * 37 % 600)


def open_and_tell(file: str, qualname: str, path: str) -> None:
    """Print what came of opening."""

    async def tried() -> str:
        try:
            async with _loaded(file, qualname).open_store(Path(path)):
                return "opened"
        except StoreError as error:
            return type(error).__name__

    print(asyncio.run(tried()))


def use_own_disk(file: str, qualname: str, mount: str, work: str) -> None:
    """What the tests of full and read-only disks run, in a process that alone sees the disk at `mount`."""
    used = {"fill the disk": _fill_the_disk, "make it read-only": _make_it_read_only}[work]
    asyncio.run(used(_loaded(file, qualname), Path(mount)))


async def _fill_the_disk(conformance: StoreConformance, mount: Path) -> None:
    kept: list[bytes] = []
    refused = 0
    async with conformance.open_store(mount / "ns") as store:
        for number in range(200):
            key = number.to_bytes(2, "big")
            try:
                await store.commit([PutNew(Table.SIGNED, key, key), Put(Table.CHANNELS, key, key * 20_000)])
            except StoreFull:
                assert await store.get(Table.SIGNED, key) is None, "a refused batch is there in part"
                refused += 1
                if refused == 5:
                    break
            else:
                kept.append(key)
        assert refused == 5, "the disk never became full"
        for key in kept:
            assert await store.get(Table.CHANNELS, key) == key * 20_000
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=4m", str(mount)], check=True)
    async with conformance.open_store(mount / "ns") as store:
        assert store.status().doubt is None, store.status().reason
        assert [key for key, _ in await store.scan(Table.SIGNED)] == kept
        assert [key for key, _ in await store.scan(Table.CHANNELS)] == kept
        assert kept


async def _make_it_read_only(conformance: StoreConformance, mount: Path) -> None:
    async with conformance.open_store(mount / "ns") as store:
        await store.commit([PutNew(Table.SIGNED, b"key", b"value")])
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(mount)], check=True)
    try:
        async with conformance.open_store(mount / "ns") as store:
            await store.commit([PutNew(Table.SIGNED, b"other", b"value")])
    except StoreError as error:
        assert str(mount) in str(error), f"the error does not say where: {error}"
    else:
        raise AssertionError("a commit on a read-only disk was acknowledged")
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,rw", str(mount)], check=True)
    async with conformance.open_store(mount / "ns") as store:
        assert store.status().doubt is None, store.status().reason
        assert await store.scan(Table.SIGNED) == [(b"key", b"value")]
