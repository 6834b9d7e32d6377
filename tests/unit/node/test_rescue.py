"""The rescue file: it follows the store, tells only its owner, survives damage, and proves when the store is behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from perun_core.apps.registry import NO_APPS
from perun_core.channel import Transaction
from perun_core.errors import BackupError
from perun_core.keys import Secret
from perun_core.node import rescue
from perun_core.node.rescue import MARKER, RescueEntry, RescueFile, open_rescue, public_key_of, read_entries, split
from perun_core.profile.gp090 import PROFILE
from perun_core.protocol.records import ChannelRecord, RecordCodec
from perun_core.testing.conversation import ADDRESSES
from perun_core.values import Address
from tests.unit.node.test_diagnosis import channel

OWN, RECEIVER = ADDRESSES[0], Address(b"\x0a" * 20)
CODEC = RecordCodec(PROFILE, NO_APPS)


@pytest.fixture
def secret() -> Secret:
    return Secret(bytes(31) + b"\x07")


async def contact(peer: Address) -> tuple[str, str]:
    return "bob", "127.0.0.1:6002"


@asynccontextmanager
async def kept(path: Path, secret: Secret) -> AsyncIterator[RescueFile]:
    opening = open_rescue(path, public_key_of(secret), codec=CODEC, own=OWN, receiver=RECEIVER, contact=contact)
    async with opening as file:
        yield file


def at_version(record: ChannelRecord, version: int) -> ChannelRecord:
    state = record.current.state
    assert state is not None
    return replace(record, current=Transaction(replace(state, version=version), record.current.sigs))


def versions(path: Path, secret: Secret) -> dict[bytes, int]:
    return {entry.channel_id: version_of(entry) for entry in read_entries(path, secret)[0]}


def version_of(entry: RescueEntry) -> int:
    state = CODEC.decode(entry.channel_id, entry.record).current.state
    assert state is not None
    return state.version


async def test_the_newest_state_of_every_open_channel_can_be_read_with_the_key(tmp_path: Path, secret: Secret) -> None:
    one, two, three = channel(1), channel(2), channel(3)
    async with kept(tmp_path / "rescue", secret) as file:
        for record in (one, at_version(one, 50), two, three):
            file.note(record)
    async with kept(tmp_path / "rescue", secret) as file:
        file.note(at_version(two, 60))
        file.note(three, closed=True)
    assert versions(tmp_path / "rescue", secret) == {bytes(one.channel_id): 50, bytes(two.channel_id): 60}
    (entry, _), lost = read_entries(tmp_path / "rescue", secret)
    assert CODEC.decode(entry.channel_id, entry.record) == at_version(one, 50)
    assert (entry.own, entry.receiver) == (bytes(OWN), bytes(RECEIVER))
    assert (entry.peer_alias, entry.peer_address) == ("bob", "127.0.0.1:6002")
    assert lost == 0
    assert (tmp_path / "rescue").stat().st_mode & 0o777 == 0o600


async def test_another_key_reads_nothing_and_no_id_is_in_clear(tmp_path: Path, secret: Secret) -> None:
    record = channel(1)
    async with kept(tmp_path / "rescue", secret) as file:
        file.note(record)
    with pytest.raises(BackupError, match="another key"):
        read_entries(tmp_path / "rescue", Secret(bytes(31) + b"\x08"))
    content = (tmp_path / "rescue").read_bytes()
    assert bytes(record.channel_id) not in content
    assert bytes(record.peer) not in content


async def test_a_changed_head_is_noticed(tmp_path: Path, secret: Secret) -> None:
    async with kept(tmp_path / "rescue", secret) as file:
        file.note(channel(1))
    salt, _, (frame,), _ = split((tmp_path / "rescue").read_bytes())
    forged = frame._replace(data=frame.data[:9] + b"\x7f" + frame.data[10:])
    with pytest.raises(BackupError, match="changed"):
        rescue.unseal(forged, secret=secret, salt=salt)


@pytest.mark.parametrize("damage", ["torn tail", "hole in the middle", "garbage between"])
async def test_damage_costs_only_the_records_it_hit(tmp_path: Path, secret: Secret, damage: str) -> None:
    path = tmp_path / "rescue"
    for nonce in (1, 2, 3):
        async with kept(path, secret) as file:
            file.note(channel(nonce))
    content = path.read_bytes()
    second = content.index(MARKER, content.index(MARKER) + 1)
    third = content.index(MARKER, second + 1)
    match damage:
        case "torn tail":
            path.write_bytes(content[:-20])
            missing = {bytes(channel(3).channel_id)}
        case "hole in the middle":
            path.write_bytes(content[: second + 40] + bytes(60) + content[second + 100 :])
            missing = {bytes(channel(2).channel_id)}
        case _:
            path.write_bytes(content[:third] + MARKER + b"\xff" * 50 + content[third:])
            missing = set()
    async with kept(path, secret) as file:
        file.note(channel(4))
    every = {bytes(channel(nonce).channel_id) for nonce in (1, 2, 3, 4)}
    assert set(versions(path, secret)) == every - missing
    assert read_entries(path, secret)[1] > 0


async def test_a_file_that_knows_more_than_the_store_proves_it(tmp_path: Path, secret: Secret) -> None:
    one, two = channel(1), channel(2)
    async with kept(tmp_path / "rescue", secret) as file:
        file.note(at_version(one, 50))
        file.note(two)
    async with kept(tmp_path / "rescue", secret) as file:
        assert file.ahead_of([at_version(one, 50), two], []) == ""
        assert "newer states of 1 channels" in file.ahead_of([at_version(one, 49), two], [])
        assert file.lacks([one])
        assert "1 channels the store lacks" in file.ahead_of([at_version(one, 50)], [])
        assert file.ahead_of([at_version(one, 50)], [bytes(two.channel_id)]) == "", "it was closed"
    assert versions(tmp_path / "rescue", secret)[bytes(one.channel_id)] == 50, "and keeps what it knows"


async def test_what_the_file_lacks_is_added_when_the_session_opens(tmp_path: Path, secret: Secret) -> None:
    records = [channel(nonce) for nonce in range(1, 6)]
    async with kept(tmp_path / "rescue", secret) as file:
        assert file.ahead_of(records, []) == ""
    assert len(versions(tmp_path / "rescue", secret)) == 5


async def test_an_older_state_that_is_appended_later_takes_nothing_away(tmp_path: Path, secret: Secret) -> None:
    async with kept(tmp_path / "rescue", secret) as file:
        file.note(at_version(channel(1), 50))
    async with kept(tmp_path / "rescue", secret) as file:
        file.note(at_version(channel(1), 49))
    assert versions(tmp_path / "rescue", secret) == {bytes(channel(1).channel_id): 50}


async def test_rewriting_keeps_every_open_channel(
    tmp_path: Path, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "COMPACT_FROM", 4000)
    records = [channel(nonce) for nonce in range(1, 4)]
    path = tmp_path / "rescue"
    async with kept(path, secret) as file:
        file.note(records[0])
    for version in range(10, 30):
        async with kept(path, secret) as file:
            file.note(at_version(records[1], version))
            file.note(records[2], closed=version % 2 == 0)
    assert versions(path, secret) == {
        bytes(records[0].channel_id): version_of_record(records[0]),
        bytes(records[1].channel_id): 29,
        bytes(records[2].channel_id): version_of_record(records[2]),
    }
    assert path.stat().st_size < 12_000
    assert os.listdir(tmp_path) == ["rescue"]


def version_of_record(record: ChannelRecord) -> int:
    state = record.current.state
    assert state is not None
    return state.version


async def test_a_disk_that_fails_delays_nobody_is_visible_and_is_caught_up(
    tmp_path: Path, secret: Secret, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rescue, "COALESCE", 0.0)
    monkeypatch.setattr(rescue, "RETRY", 0.01)
    failures = 3
    real = rescue.os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(5, "Input/output error")
        real(descriptor)

    async with kept(tmp_path / "rescue", secret) as file:
        monkeypatch.setattr(rescue.os, "fsync", fsync)
        file.note(channel(1))
        assert file.lag().channels == 1
        async with asyncio.timeout(10):
            await file.caught_up()
        assert file.lag() == rescue.Lag(0, 0.0)
    assert failures == 0
    assert "cannot be written" in caplog.text
    assert set(versions(tmp_path / "rescue", secret)) == {bytes(channel(1).channel_id)}


async def test_files_that_are_not_ours_are_left_alone(tmp_path: Path, secret: Secret) -> None:
    async def refused(path: Path, key: Secret, problem: str) -> None:
        with pytest.raises(BackupError, match=problem):
            async with kept(path, key):
                pass

    (tmp_path / "letter").write_text("Dear Bob, this is a long letter about something else, " * 5)
    await refused(tmp_path / "letter", secret, "no rescue file")
    assert (tmp_path / "letter").read_text().startswith("Dear Bob")
    async with kept(tmp_path / "mine", secret) as file:
        file.note(channel(1))
        await refused(tmp_path / "mine", secret, "in use")
    await refused(tmp_path / "mine", Secret(bytes(31) + b"\x09"), "another key")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    await refused(tmp_path / "link", secret, "cannot be opened")
    with pytest.raises(BackupError, match="not a public key"):
        async with open_rescue(tmp_path / "x", "02zz", codec=CODEC, own=OWN, receiver=RECEIVER, contact=contact):
            pass
