"""The file of peers: what is read, what is refused, what is written (API.md 4.3 and 7.7, U3)."""

# ruff: noqa: ASYNC240 (tests prepare and look at tiny files)

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import yaml

import perun_idprovider_local
from perun_core.errors import IDProviderBroken, PeerExists, PeerUnknown
from perun_core.ports.idprovider import IDProviderContext, PeerID
from perun_core.values import Address
from perun_idprovider_local.provider import LocalConfig, LocalProvider, open_local

# What perunnode generates for alice: keys in lower case, addresses unquoted.
GENERATED = """\
bob:
  alias: bob
  offchain_address: 0xA298Fc05bccff341f340a11FffA30567a00e651f
  comm_address: 127.0.0.1:5752
  comm_type: tcp
"""
BOB = Address.parse("0xA298Fc05bccff341f340a11FffA30567a00e651f")
CAROL = PeerID(alias="carol", address=Address(b"\xca" * 20), comm_address="127.0.0.1:5753", comm_type="tcp")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "idprovider.yaml"
    path.write_text(GENERATED)
    return path


def provider(file: Path, *, write_back: bool = False) -> AbstractAsyncContextManager[LocalProvider]:
    return open_local(LocalConfig(write_back=write_back), IDProviderContext(url=str(file)))


async def expect_broken(file: Path, match: str = "ID provider file") -> None:
    with pytest.raises(IDProviderBroken, match=match):
        async with provider(file):
            pass


# ----------------------------------------------------------------------------------------------------------- reading


async def test_a_generated_file_is_read_and_its_address_stays_text(file: Path) -> None:
    async with provider(file) as directory:
        bob = await directory.by_address(BOB)
    assert (bob.alias, bob.comm_address, bob.comm_type) == ("bob", "127.0.0.1:5752", "tcp")
    assert bob.shown_address == "0xA298Fc05bccff341f340a11FffA30567a00e651f"


@pytest.mark.parametrize(
    "text",
    [
        "0xa298fc05bccff341f340a11fffa30567a00e651f",
        "A298FC05BCCFF341F340A11FFFA30567A00E651F",
        "'0XA298FC05BCCFF341F340A11FFFA30567A00E651F'",
    ],
)
async def test_however_an_address_is_written_its_owner_is_recognised(file: Path, text: str) -> None:
    file.write_text(GENERATED.replace("0xA298Fc05bccff341f340a11FffA30567a00e651f", text))
    async with provider(file) as directory:
        assert (await directory.by_address(BOB)).shown_address == text.strip("'")


async def test_numbers_truth_values_and_dates_stay_text(file: Path) -> None:
    file.write_text(
        "123: {offchain_address: 0x1e5, comm_address: 2024-01-01, comm_type: no}\ntrue: {offchain_address: 7}"
    )
    async with provider(file) as directory:
        peer = await directory.by_alias("123")
        assert peer.address == Address.parse("1e5")
        assert (peer.shown_address, peer.comm_address, peer.comm_type) == ("0x1e5", "2024-01-01", "no")
        assert (await directory.by_alias("true")).shown_address == "7"


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody yet\n", "{}", "---\n", "~", "null", "\ufeff"])
async def test_an_empty_file_is_valid(file: Path, text: str) -> None:
    file.write_text(text)
    async with provider(file) as directory:
        assert await directory.peers() == ()


async def test_the_key_names_the_peer_when_the_inner_alias_differs(file: Path) -> None:
    file.write_text(GENERATED.replace("alias: bob", "alias: somebody"))
    async with provider(file) as directory:
        assert (await directory.by_alias("bob")).alias == "bob"
        with pytest.raises(PeerUnknown):
            await directory.by_alias("somebody")


async def test_unknown_fields_are_ignored_and_field_names_have_any_case(file: Path) -> None:
    file.write_text("bob: {OffChain_Address: 0xb, note: a friend}")
    async with provider(file) as directory:
        assert (await directory.by_alias("bob")).address == Address.parse("b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("self: {offchain_address: 0x1}", "reserved"),
        ("bob: {offchain_address: invalid-addr}", "malformed"),
        ("bob: {offchain_address: 0x931d387731BBbc988B31221D387706c74f77d004d6b84b}", "malformed"),
        ("bob: {comm_address: x}", "no off-chain address"),
        ("bob: {offchain_address: 0x0}", "no off-chain address"),
        ("'': {offchain_address: 0x1}", "empty"),
        ("bob: {offchain_address: 0x1}\nbob: {offchain_address: 0x2}", "occurs twice"),
        ("bob: {offchain_address: 0x1, offchain_address: 0x2}", "occurs twice"),
        ("bob: {offchain_address: 0xAB}\neve: {offchain_address: ab}", "same off-chain address"),
        ("bob: just a text", "not a map"),
        ("bob:", "not a map"),
        ("bob: {offchain_address: {deeper: x}}", "not a text"),
        ("{a: b}: {offchain_address: 0x1}", "not a text"),
        ("just a text", "not a map"),
        ("[bob]", "list"),
        ("bob: [1, 2]", "list"),
        ("a: &x {offchain_address: 0x1}\nb: *x", "anchors"),
        ("bob: !!python/name:os.system {offchain_address: 0x1}", "tags"),
        ("bob: {offchain_address: !!int 5}", "tags"),
        ("{}\n---\n{}", "several documents"),
        ("bob: {offchain_address: 0x1", "not valid YAML"),
        ("\tbob: x", "not valid YAML"),
        ("{" * 5000, "ID provider file"),
    ],
)
async def test_malformed_files_are_refused_with_the_reason(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    await expect_broken(file, problem)


async def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    for content in (b"\xff\xfe\x00", b"bob: {offchain_address: \xc3}", b"a\x00b"):
        file.write_bytes(content)
        await expect_broken(file, "not valid YAML")


async def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (10 * 1024 * 1024 + 1))
    for name in ("missing", ".", "pipe", "large", "null\0byte", "x" * 300):
        await expect_broken(tmp_path / name)
    with pytest.raises(IDProviderBroken):
        async with open_local(LocalConfig(), IDProviderContext(url="")):
            pass


# ----------------------------------------------------------------------------------------------------------- writing


async def test_without_write_back_the_file_is_never_touched(file: Path) -> None:
    async with provider(file) as directory:
        await directory.add(CAROL)
        await directory.remove("bob")
    assert file.read_text() == GENERATED
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("before", ["", GENERATED])
async def test_with_write_back_an_added_peer_is_there_next_time(file: Path, before: str) -> None:
    file.write_text(before)
    async with provider(file, write_back=True) as directory:
        await directory.add(CAROL)
        expected = await directory.peers()
    async with provider(file) as directory:
        assert [(p.alias, p.shown_address) for p in await directory.peers()] == [
            (p.alias, p.shown_address) for p in expected
        ]
        assert (await directory.by_alias("carol")).same_as(CAROL)
    assert os.listdir(file.parent) == [file.name]


async def test_a_written_file_means_the_same_to_ordinary_yaml_readers(file: Path) -> None:
    odd = PeerID(alias="yes", address=Address.parse("1e5"), comm_address="0x10", comm_type="null", address_text="0x1e5")
    async with provider(file, write_back=True) as directory:
        await directory.add(odd)
    assert yaml.safe_load(file.read_text())["yes"] == {
        "alias": "yes",
        "offchain_address": "0x1e5",
        "comm_address": "0x10",
        "comm_type": "null",
    }


async def test_with_write_back_a_removed_peer_stays_away(file: Path) -> None:
    async with provider(file, write_back=True) as directory:
        await directory.remove("bob")
    async with provider(file) as directory:
        assert await directory.peers() == ()


async def test_a_refused_peer_is_not_written(file: Path) -> None:
    async with provider(file, write_back=True) as directory:
        with pytest.raises(PeerExists):
            await directory.add(PeerID(alias="robert", address=BOB, comm_address="x", comm_type="tcp"))
    assert file.read_text() == GENERATED


async def test_concurrent_additions_are_all_written(file: Path) -> None:
    peers = [
        PeerID(alias=f"peer {n}", address=Address(bytes([n]) * 20), comm_address="x", comm_type="tcp")
        for n in range(1, 20)
    ]
    async with provider(file, write_back=True) as directory:
        await asyncio.gather(*(directory.add(peer) for peer in peers))
    async with provider(file) as directory:
        assert len(await directory.peers()) == 20


async def test_a_file_that_cannot_be_written_is_an_error_and_changes_nothing(file: Path) -> None:
    async with provider(file, write_back=True) as directory:
        file.rename(file.parent / "moved away")
        with pytest.raises(IDProviderBroken):
            await directory.add(CAROL)
        with pytest.raises(PeerUnknown):
            await directory.by_alias("carol")
    assert os.listdir(file.parent) == ["moved away"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
async def test_a_read_only_file_is_not_replaced(file: Path) -> None:
    file.chmod(0o400)
    async with provider(file, write_back=True) as directory:
        with pytest.raises(IDProviderBroken):
            await directory.add(CAROL)
    assert file.read_text() == GENERATED


async def test_a_failure_while_writing_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    async with provider(file, write_back=True) as directory:
        monkeypatch.setattr("perun_idprovider_local.peerfile.os.fsync", full)
        with pytest.raises(IDProviderBroken):
            await directory.add(CAROL)
        with pytest.raises(PeerUnknown):
            await directory.by_address(CAROL.address)
    assert file.read_text() == GENERATED
    assert os.listdir(file.parent) == [file.name]


async def test_what_the_user_edited_meanwhile_is_not_overwritten(file: Path) -> None:
    edited = GENERATED + "# my own note\n"
    async with provider(file, write_back=True) as directory:
        file.write_text(edited)
        with pytest.raises(IDProviderBroken, match="changed by somebody else"):
            await directory.add(CAROL)
    assert file.read_text() == edited


async def test_mode_and_link_of_the_file_are_kept(file: Path) -> None:
    file.chmod(0o640)
    link = file.parent / "link.yaml"
    link.symlink_to(file.name)
    async with provider(link, write_back=True) as directory:
        await directory.add(CAROL)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert "carol" in file.read_text()


async def test_a_cancelled_addition_leaves_memory_and_file_agreeing(file: Path) -> None:
    async with provider(file, write_back=True) as directory:
        adding = asyncio.create_task(directory.add(CAROL))
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait([adding])
        dora = PeerID(alias="dora", address=Address(b"\xdd" * 20), comm_address="x", comm_type="tcp")
        await directory.add(dora)
        remembered = {peer.alias for peer in await directory.peers()}
    async with provider(file) as directory:
        assert {peer.alias for peer in await directory.peers()} == remembered


def test_the_hook_declares_local_without_loading_yaml() -> None:
    backend = perun_idprovider_local.perun_register_idprovider()
    assert (backend.name, backend.config, backend.open) == ("local", LocalConfig, open_local)
    script = "import sys, perun_idprovider_local as p; p.perun_register_idprovider(); assert 'yaml' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
