"""What a session keeps beside its channels: numbers that go on after a restart, and the rescue file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perun_core.errors import ApiError
from perun_core.keys import Secret
from perun_core.node.rescue import open_rescue, public_key_of, read_entries
from perun_core.ports.store import Doubt, Table
from perun_core.testing.conversation import ADDRESSES
from perun_core.testing.store import MemoryStore
from perun_core.values import Address, Bytes32, Sig
from tests.unit.node.test_rescue import CODEC, version_of
from tests.unit.node.test_session_faults import ACCOUNTS, Bed, Home, bed, outcome

__all__ = ["bed"]
KEY = Secret(bytes(31) + b"\x07")


def numbers(home: Home) -> list[int]:
    channels = [(key, value) for (table, key), value in home.rows.items() if table is Table.CHANNELS]
    return sorted(CODEC.decode(key, value).sequence for key, value in channels)


async def test_numbers_of_channels_go_on_after_a_restart(bed: Bed) -> None:
    await bed.channel()
    await bed.channel()
    await bed.alice.reopen()
    await bed.bob.reopen()
    await bed.channel()
    assert numbers(bed.alice) == numbers(bed.bob) == [1, 2, 3]


async def test_numbers_go_on_in_a_store_of_a_version_that_did_not_keep_them(bed: Bed) -> None:
    await bed.channel()
    await bed.channel()
    await bed.alice.crash()
    del bed.alice.rows[(Table.META, b"sequence")]
    await bed.alice.open()
    await bed.channel()
    assert numbers(bed.alice) == [1, 2, 3]


async def test_opening_a_session_reads_nothing_that_grows_with_its_history(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bed.channel()
    read: list[Table] = []
    scan = MemoryStore.scan

    async def seen(
        store: MemoryStore, table: Table, prefix: bytes = b"", *, after: bytes | None = None, limit: int = 1000
    ) -> list[tuple[bytes, bytes]]:
        read.append(table)
        return await scan(store, table, prefix, after=after, limit=limit)

    monkeypatch.setattr(MemoryStore, "scan", seen)
    await bed.alice.reopen()
    assert Table.CHANNELS in read
    assert not {Table.ARCHIVE, Table.SIGNED, Table.USED} & set(read)


@asynccontextmanager
async def rescued(home: Home, path: Path) -> AsyncIterator[None]:
    """The session of `home` keeps the file at `path`."""

    async def contact(peer: Address) -> tuple[str, str]:
        return "bob", ""

    opening = open_rescue(
        path, public_key_of(KEY), codec=CODEC, own=ADDRESSES[home.index], receiver=ACCOUNTS[home.index], contact=contact
    )
    await home.crash()
    async with opening as home.rescue:
        await home.open()
        yield
        await home.crash()
    home.rescue = None


async def test_the_rescue_file_follows_every_payment(bed: Bed, tmp_path: Path) -> None:
    async with rescued(bed.alice, tmp_path / "rescue"):
        first, second = await bed.channel(), await bed.channel()
        for _ in range(3):
            await bed.payment(first)
    entries, _ = read_entries(tmp_path / "rescue", KEY)
    assert {entry.channel_id.hex(): version_of(entry) for entry in entries} == {first: 3, second: 0}


async def test_an_older_store_than_the_rescue_file_is_distrusted_before_anything_else(bed: Bed, tmp_path: Path) -> None:
    async with rescued(bed.alice, tmp_path / "rescue"):
        channel = await bed.channel()
        older = dict(bed.alice.rows)
        await bed.payment(channel)
    bed.alice.rows.clear()
    bed.alice.rows.update(older)
    async with rescued(bed.alice, tmp_path / "rescue"):
        status = bed.alice.store.status()
        assert status.doubt is Doubt.REPORTED
        assert "newer states of 1 channels" in status.reason
        assert not status.may_sign(bytes.fromhex(channel))


async def test_channels_opened_before_there_was_a_rescue_file_are_in_it_too(bed: Bed, tmp_path: Path) -> None:
    channel = await bed.channel()
    await bed.payment(channel)
    async with rescued(bed.alice, tmp_path / "rescue"):
        assert bed.alice.store.status().doubt is None
    (entry,), _ = read_entries(tmp_path / "rescue", KEY)
    assert (entry.channel_id.hex(), version_of(entry)) == (channel, 1)


async def test_a_session_in_doubt_signs_nothing(bed: Bed) -> None:
    """Whatever the code above the store thinks of it: without a mark in the guard no key is asked."""
    channel = await bed.channel()
    await bed.payment(channel)
    await bed.alice.store.distrust(Doubt.OLDER, "an older copy was put back")
    before = dict(bed.alice.rows)
    asked: list[bytes] = []
    sign = bed.alice.keys.sign_message

    async def seen(address: Address, digest: Bytes32) -> Sig:
        asked.append(bytes(digest))
        return await sign(address, digest)

    bed.alice.keys.sign_message = seen  # type: ignore[method-assign]
    assert isinstance(await outcome(bed.alice.pay(channel)), ApiError)
    assert asked == []
    marks = {place: value for place, value in bed.alice.rows.items() if place[0] is Table.SIGNED}
    assert marks == {place: value for place, value in before.items() if place[0] is Table.SIGNED}
