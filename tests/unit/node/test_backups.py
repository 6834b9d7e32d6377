"""Backups give everything back or nothing, and never let a restored session sign before it was compared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from perun_core.apps.registry import NO_APPS
from perun_core.errors import BackupError, StoreFenced
from perun_core.node.backups import BackupHeader, import_rescue, read_backup, restore_backup, write_backup
from perun_core.node.rescue import RescueEntry
from perun_core.ports.store import Doubt, Put, PutNew, Table
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec, guard_key
from perun_core.testing.store import MemoryStore
from tests.unit.node.test_diagnosis import channel
from tests.unit.node.test_rescue import at_version

CODEC = RecordCodec(PROFILE, NO_APPS)
HEADER = BackupHeader("some identity", 7, 1_700_000_000, "alice/database", "0xabc")


def filled(records: int = 1700) -> MemoryStore:
    store = MemoryStore()
    for number in range(records):
        store.rows[(Table.ARCHIVE, number.to_bytes(4, "big"))] = b"closed" * 20
    store.rows |= {(table, b"key"): table.value.encode() for table in Table}
    store.rows[(Table.META, b"")] = b""
    return store


async def test_a_backup_gives_every_record_back_in_doubt(tmp_path: Path) -> None:
    store = filled()
    written = await write_backup(store, tmp_path / "backup", HEADER)
    assert (written.records, written.channels) == (len(store.rows), 1)
    restored = MemoryStore()
    assert await restore_backup(restored, tmp_path / "backup") == written
    assert restored.rows == store.rows
    assert restored.status().doubt is Doubt.RESTORED
    with pytest.raises(StoreFenced):
        await restored.commit([PutNew(Table.SIGNED, b"new", b"mark")])


async def test_only_an_empty_store_is_restored_into(tmp_path: Path) -> None:
    await write_backup(filled(3), tmp_path / "backup", HEADER)
    store = MemoryStore({(Table.PEERS, b"bob"): b"here"})
    with pytest.raises(BackupError, match="records already"):
        await restore_backup(store, tmp_path / "backup")
    assert store.rows == {(Table.PEERS, b"bob"): b"here"}
    assert store.status().doubt is None


async def test_a_backup_is_never_overwritten_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    await write_backup(filled(3), tmp_path / "backup", HEADER)
    before = (tmp_path / "backup").read_bytes()
    with pytest.raises(BackupError, match="never overwritten"):
        await write_backup(filled(4), tmp_path / "backup", HEADER)
    with pytest.raises(BackupError, match="cannot be written"):
        await write_backup(filled(4), tmp_path / "nowhere" / "backup", HEADER)
    assert (tmp_path / "backup").read_bytes() == before
    assert os.listdir(tmp_path) == ["backup"]
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600


async def test_of_a_damaged_backup_nothing_is_restored(tmp_path: Path) -> None:
    await write_backup(filled(30), tmp_path / "backup", HEADER)
    content = (tmp_path / "backup").read_bytes()
    for place in (0, 20, len(content) // 2, len(content) - 1):
        (tmp_path / "damaged").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(BackupError):
            read_backup(tmp_path / "damaged")
    for length in (0, 10, 100, len(content) - 1):
        (tmp_path / "damaged").write_bytes(content[:length])
        store = MemoryStore()
        with pytest.raises(BackupError):
            await restore_backup(store, tmp_path / "damaged")
        assert store.rows == {}


def entry(record: ChannelRecord) -> RescueEntry:
    return RescueEntry(bytes(record.channel_id), CODEC.encode(record), b"\x01" * 20, b"\x02" * 20, "bob", "", 0)


async def test_a_rescue_file_brings_back_what_the_store_lacks_with_its_marks() -> None:
    newer, older, missing, closed = channel(1), channel(2), replace(channel(3), sequence=9), channel(4)
    store = MemoryStore()
    await store.commit(
        [
            Put(Table.CHANNELS, bytes(newer.channel_id), CODEC.encode(at_version(newer, 50))),
            Put(Table.CHANNELS, bytes(older.channel_id), CODEC.encode(at_version(older, 3))),
            Put(Table.ARCHIVE, bytes(closed.channel_id), CODEC.encode(closed)),
        ]
    )
    entries = [entry(record) for record in (at_version(newer, 40), at_version(older, 8), missing, closed)]
    summary = await import_rescue(store, entries, codec=CODEC, profile=PROFILE)
    assert (summary.added, summary.renewed, summary.kept) == (1, 1, 2)
    found = {key: CODEC.decode(key, value) for key, value in await store.scan(Table.CHANNELS)}
    assert found == {
        bytes(newer.channel_id): at_version(newer, 50),
        bytes(older.channel_id): at_version(older, 8),
        bytes(missing.channel_id): missing,
    }
    state = at_version(older, 8).current.state
    assert state is not None
    assert await store.get(Table.SIGNED, guard_key(older.channel_id, 8, 0)) == bytes(PROFILE.state_hash(state))
    assert await store.get(Table.USED, bytes(missing.channel_id)) == (9).to_bytes(8, "big")
    assert await store.get(Table.META, b"sequence") == (9).to_bytes(8, "big")
    assert store.status().doubt is Doubt.RESTORED
