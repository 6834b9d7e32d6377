"""An older copy that was put back is noticed, whichever way it came, and signs nothing."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from perun_core.errors import StoreBroken, StoreFenced, StoreLocked
from perun_core.ports.store import Doubt, Put, PutNew, StoreContext, StoreStatus, Table
from perun_store_sqlite.fence import COMMITS_PER_GENERATION, FenceFile, fence_path
from perun_store_sqlite.store import SqliteConfig, SqliteStore, open_sqlite

MARK = PutNew(Table.SIGNED, b"channel, version 1", b"hash")


@asynccontextmanager
async def opened(path: Path, *, fencedir: str = "") -> AsyncIterator[SqliteStore]:
    async with open_sqlite(SqliteConfig(fencedir=fencedir), StoreContext(path)) as store:
        assert isinstance(store, SqliteStore)
        yield store


async def pay(path: Path, number: int = 1) -> StoreStatus:
    async with opened(path) as store:
        await store.commit([Put(Table.CHANNELS, b"channel", bytes([number]))])
        return store.status()


async def judged(path: Path) -> StoreStatus:
    async with opened(path) as store:
        return store.status()


def copy_files(source: Path, target: Path) -> None:
    """What somebody does who copies the database of a node that is open or was killed."""
    target.mkdir(exist_ok=True)
    for name in ("store.db", "store.db-wal"):
        (target / name).unlink(missing_ok=True)
        if (source / name).exists():
            shutil.copy(source / name, target / name)


async def test_a_store_that_was_never_copied_is_never_doubted(tmp_path: Path) -> None:
    generations = []
    for number in range(5):
        status = await pay(tmp_path / "ns", number)
        assert status.doubt is None
        generations.append(status.generation)
    assert generations == sorted(set(generations))


async def test_an_older_copy_is_noticed_and_signs_nothing_until_it_is_trusted(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    copy_files(tmp_path / "ns", tmp_path / "copy")
    await pay(tmp_path / "ns")
    copy_files(tmp_path / "copy", tmp_path / "ns")
    async with opened(tmp_path / "ns") as store:
        assert store.status().doubt is Doubt.OLDER
        assert "behind" in store.status().reason
        with pytest.raises(StoreFenced, match="in doubt"):
            await store.commit([MARK])
        assert await store.get(Table.SIGNED, MARK.key) is None
        await store.commit([Put(Table.CHANNELS, b"channel", b"newer, from the peer")])
        await store.trust()
        await store.commit([MARK])
    assert (await judged(tmp_path / "ns")).doubt is None


@pytest.mark.parametrize("commits_after_the_copy", [1, COMMITS_PER_GENERATION + 1])
async def test_a_copy_made_while_the_store_was_open_is_noticed(tmp_path: Path, commits_after_the_copy: int) -> None:
    async with opened(tmp_path / "ns") as store:
        await store.commit([Put(Table.CHANNELS, b"channel", b"before")])
        copy_files(tmp_path / "ns", tmp_path / "copy")
        for number in range(commits_after_the_copy):
            await store.commit([Put(Table.CHANNELS, b"channel", number.to_bytes(2, "big"))])
    copy_files(tmp_path / "copy", tmp_path / "ns")
    assert (await judged(tmp_path / "ns")).doubt is Doubt.OLDER


async def test_a_doubt_outlives_reopening_and_ends_channel_by_channel(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as store:
        await store.distrust(Doubt.REPORTED, "the peer has version 12")
        await store.distrust(Doubt.OLDER, "said later")
    async with opened(tmp_path / "ns") as store:
        assert (store.status().doubt, store.status().reason) == (Doubt.REPORTED, "the peer has version 12")
        await store.trust(b"channel")
    async with opened(tmp_path / "ns") as store:
        assert store.status().trusted == (b"channel",)
        await store.commit([MARK])
        with pytest.raises(StoreFenced):
            await store.commit([PutNew(Table.SIGNED, b"another", b"hash")])
        with pytest.raises(StoreFenced):
            await store.commit([PutNew(Table.SIGNED, b"chan", b"hash")])


async def test_new_evidence_takes_back_what_was_trusted(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    async with opened(tmp_path / "ns") as store:
        await store.distrust(Doubt.REPORTED, "first")
        await store.trust(b"channel")
    copy_files(tmp_path / "ns", tmp_path / "copy")
    await pay(tmp_path / "ns")
    copy_files(tmp_path / "copy", tmp_path / "ns")
    assert (await judged(tmp_path / "ns")).trusted == ()


async def test_another_database_in_its_place_is_noticed(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    await pay(tmp_path / "other")
    copy_files(tmp_path / "other", tmp_path / "ns")
    assert (await judged(tmp_path / "ns")).doubt is Doubt.OTHER


async def test_a_database_that_is_gone_is_noticed(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    shutil.rmtree(tmp_path / "ns")
    status = await judged(tmp_path / "ns")
    assert status.doubt is Doubt.GONE
    assert "is gone" in status.reason


async def test_a_fence_that_is_gone_or_older_is_noticed(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    fence = fence_path(tmp_path / "ns", None)
    older = fence.read_bytes()
    await pay(tmp_path / "ns")
    fence.write_bytes(older)
    assert (await judged(tmp_path / "ns")).doubt is Doubt.UNFENCED
    await pay(tmp_path / "gone")
    fence_path(tmp_path / "gone", None).unlink()
    assert (await judged(tmp_path / "gone")).doubt is Doubt.UNFENCED


async def test_a_store_that_moved_with_its_fence_is_not_doubted_only_without(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    (tmp_path / "ns").rename(tmp_path / "moved")
    fence = fence_path(tmp_path / "ns", None)
    copied = fence.read_bytes()
    fence.rename(fence_path(tmp_path / "moved", None))
    assert (await judged(tmp_path / "moved")).doubt is None
    (tmp_path / "moved").rename(tmp_path / "again")
    status = await judged(tmp_path / "again")
    assert status.doubt is Doubt.UNFENCED
    assert "moved or copied" in status.reason
    assert copied


async def test_a_trusted_copy_fences_the_original(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    copy_files(tmp_path / "ns", tmp_path / "copy")
    async with opened(tmp_path / "copy") as copy:
        assert copy.status().doubt is Doubt.UNFENCED
        await copy.trust()
        await copy.commit([MARK])
    status = await judged(tmp_path / "ns")
    assert status.doubt is Doubt.TAKEN_OVER
    assert str(tmp_path / "copy") in status.reason


async def test_a_copy_is_not_trusted_while_the_original_is_open(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    copy_files(tmp_path / "ns", tmp_path / "copy")
    async with opened(tmp_path / "ns") as original, opened(tmp_path / "copy") as copy:
        with pytest.raises(StoreLocked, match="of which this is a copy"):
            await copy.trust()
        with pytest.raises(StoreFenced):
            await copy.commit([MARK])
        await original.commit([MARK])


async def test_who_gets_past_the_lock_takes_over_and_the_first_owner_is_refused_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path / "ns") as first:
        await first.commit([Put(Table.CHANNELS, b"channel", b"before")])
        (tmp_path / "ns" / "lock").unlink()  # as on a file system whose locks do not reach the other machine
        async with opened(tmp_path / "ns") as second:
            assert second.status().generation > first.status().generation
            for _ in range(2):
                with pytest.raises(StoreFenced, match="somebody else"):
                    await first.commit([MARK])
            with pytest.raises(StoreFenced):
                await first.trust()
            await second.commit([MARK])
        assert await first.get(Table.CHANNELS, b"channel") == b"before", "looking stays possible"


async def test_a_fence_that_somebody_else_writes_stops_the_owner(tmp_path: Path) -> None:
    """Two machines that share the directory of the fences, each with a copy of the database."""
    async with opened(tmp_path / "ns") as store:
        fence = fence_path(tmp_path / "ns", None)
        found = msgspec.json.decode(fence.read_bytes(), type=FenceFile)
        fence.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, owner="somebody else")))
        with pytest.raises(StoreFenced, match=r"\.ns\.fence"):
            await store.commit([MARK])
    async with opened(tmp_path / "gone") as store:
        fence_path(tmp_path / "gone", None).unlink()
        with pytest.raises(StoreFenced):
            await store.commit([MARK])


async def test_fences_can_be_kept_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "fences"
    elsewhere.mkdir()
    for _ in range(2):
        async with opened(tmp_path / "a" / "ns", fencedir=str(elsewhere)) as store:
            await store.commit([Put(Table.CHANNELS, b"channel", b"x")])
            assert store.status().doubt is None
    await pay(tmp_path / "b" / "ns")
    async with opened(tmp_path / "b" / "two", fencedir=str(elsewhere)):
        pass
    assert len(list(elsewhere.iterdir())) == 2
    assert {entry.name for entry in (tmp_path / "a").iterdir()} == {"ns"}
    assert {entry.stat().st_mode & 0o777 for entry in elsewhere.iterdir()} == {0o600}


async def test_a_directory_of_fences_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreBroken, match=r"nowhere.*fencedir"):
        async with opened(tmp_path / "ns", fencedir=str(tmp_path / "nowhere")):
            pass


async def test_a_damaged_fence_is_named_and_what_to_do_is_said(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    fence_path(tmp_path / "ns", None).write_bytes(b"{")
    with pytest.raises(StoreBroken, match=r"\.ns\.fence is damaged.*remove it"):
        await judged(tmp_path / "ns")
    fence_path(tmp_path / "ns", None).unlink()
    assert (await judged(tmp_path / "ns")).doubt is Doubt.UNFENCED


async def test_a_snapshot_changes_neither_generation_nor_fence(tmp_path: Path) -> None:
    await pay(tmp_path / "ns")
    fence = fence_path(tmp_path / "ns", None).read_bytes()
    async with open_sqlite(SqliteConfig(), StoreContext(tmp_path / "ns", snapshot=True)) as snapshot:
        generation = snapshot.status().generation
    assert fence_path(tmp_path / "ns", None).read_bytes() == fence
    assert (await judged(tmp_path / "ns")).generation == generation + 1
