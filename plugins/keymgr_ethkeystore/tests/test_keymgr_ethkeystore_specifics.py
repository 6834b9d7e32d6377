"""Key files: published vectors, what is skipped, what is refused, and that secrets stay inside (API.md 4.4, U4)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from eth_account import Account

import perun_keymgr_ethkeystore
from perun_core.errors import KeyAmbiguous, KeyExists, KeyLocked, KeyManagerError, KeyNotFound
from perun_core.keys import Secret
from perun_core.ports.keymgr import KeyManagerContext, KeyRole, UnsignedTx
from perun_core.testing.keymgr import address_of
from perun_core.values import Address, Bytes32, keccak256
from perun_keymgr_ethkeystore import keyfiles
from perun_keymgr_ethkeystore.keyfiles import find_key_files, write_key_file
from perun_keymgr_ethkeystore.keymgr import EthKeystore, EthKeystoreConfig, open_ethkeystore, open_key_files

ALICE = b"\x11" * 32
BOB = b"\x22" * 32
NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)


def keystore(directory: Path, *addresses: Address, password: str = "right") -> AbstractAsyncContextManager[EthKeystore]:
    config = EthKeystoreConfig(keystorepath=str(directory), password=password)
    return open_ethkeystore(config, KeyManagerContext(role=KeyRole.ON_CHAIN, addresses=addresses))


async def expect_refusal(error: type[Exception], directory: Path, *addresses: Address, password: str = "right") -> str:
    with pytest.raises(error) as caught:
        async with keystore(directory, *addresses, password=password):
            pass
    assert caught.type is error
    return str(caught.value)


def write(directory: Path, key: bytes = ALICE, *, password: str = "right") -> Path:
    return write_key_file(directory, key, password, weak=True, name_time=NOON)


def decrypt_key_file(path: Path, password: str) -> bytes:
    key, _ = keyfiles.decrypt_key_file(path, password)
    with key:
        return bytes(key.buffer)


def edited(path: Path, **changes: Any) -> None:
    """Rewrite a key file with other values; ``a__b`` reaches into ``a``."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = content
        for step in outer:
            place = place[step]
        place[last] = value
    path.write_text(json.dumps(content))


# ----------------------------------------------------------------------------------------------------------- vectors

PUBLISHED_KEY = bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")
PUBLISHED = {
    # The two test vectors of the Web3 Secret Storage definition; the password is "testpassword".
    "pbkdf2": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "scrypt": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
}


@pytest.mark.parametrize("kdf", sorted(PUBLISHED))
@pytest.mark.parametrize("capital", [False, True])
def test_the_published_key_files_open(tmp_path: Path, kdf: str, capital: bool) -> None:
    name = "Crypto" if capital else "crypto"
    (tmp_path / "key").write_text(json.dumps({name: PUBLISHED[kdf], "id": "x", "version": 3}))
    assert decrypt_key_file(tmp_path / "key", "testpassword") == PUBLISHED_KEY


async def test_signatures_are_those_of_the_original_key_store(tmp_path: Path) -> None:
    """The vector of go-perun's key store wallet (PROTOCOL.md 2.3), made by a publicly known development key."""
    key = bytes.fromhex("ae6ae8e5ccbfb04590405997ee2d52d2b330726137b875053c36d94e974d162f")
    address = Address.from_hex("f17f52151ebef6c7334fad080c5704d77216b732")
    write(tmp_path, key)
    async with keystore(tmp_path, address) as keys:
        digest = Bytes32.from_hex("979ff3037510fd86ff52996ae31edee26058ca0b7e8bc70a5a89edda4f441f8e")
        assert (await keys.sign_message(address, digest)).hex() == (
            "538da6430f7915832de165f89c69239020461b80861559a00d4f5a2a77057652"
            "19eb3969eb7095f8addb6bf9c9f96f6adf44cfd4a8136516f88b337a428bf1bb1b"
        )


@pytest.mark.parametrize(
    "tx",
    [
        UnsignedTx(1337, 0, 0, 0, 21_000, Address(b"\xaa" * 20), 0, b""),
        UnsignedTx(1, 127, 10**9, 2**64 - 1, 30_000_000, Address(b"\x01" * 20), 2**256 - 1, b"\x00"),
        UnsignedTx(31337, 128, 1, 2, 3, None, 4, bytes(range(256)) * 300),
        UnsignedTx(5, 2**32, 1, 2, 3, Address(bytes(20)), 1, b"\x7f" * 56),
    ],
)
async def test_transactions_are_those_of_eth_account(tmp_path: Path, tx: UnsignedTx) -> None:
    write(tmp_path)
    expected = Account.from_key(ALICE).sign_transaction(
        {
            "type": 2,
            "chainId": tx.chain_id,
            "nonce": tx.nonce,
            "maxPriorityFeePerGas": tx.max_priority_fee,
            "maxFeePerGas": tx.max_fee,
            "gas": tx.gas,
            "to": b"" if tx.to is None else tx.to.checksum,
            "value": tx.value,
            "data": tx.data,
        }
    )
    async with keystore(tmp_path, address_of(ALICE)) as keys:
        raw = await keys.sign_transaction(address_of(ALICE), tx)
    assert raw == bytes(expected.raw_transaction)


# ----------------------------------------------------------------------------------------------------------- opening


async def test_wrong_password_missing_directory_and_unknown_account_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path)
    await expect_refusal(KeyLocked, tmp_path, address_of(ALICE), password="wrong")
    await expect_refusal(KeyManagerError, tmp_path / "nowhere", address_of(ALICE))
    await expect_refusal(KeyManagerError, write(tmp_path, BOB), address_of(ALICE))
    await expect_refusal(KeyNotFound, tmp_path, address_of(b"\x33" * 32))


async def test_no_configured_directory_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyManagerError):
        async with open_ethkeystore(
            EthKeystoreConfig(password="right"),
            KeyManagerContext(role=KeyRole.ON_CHAIN, addresses=(address_of(ALICE),)),
        ):
            pass


async def test_unlocking_twice_works_one_after_the_other_and_at_the_same_time(tmp_path: Path) -> None:
    write(tmp_path)
    for _ in range(2):
        async with keystore(tmp_path, address_of(ALICE)) as first, keystore(tmp_path, address_of(ALICE)) as second:
            assert await first.addresses() == await second.addresses() == (address_of(ALICE),)


async def test_one_address_asked_twice_is_opened_once(tmp_path: Path) -> None:
    write(tmp_path)
    async with keystore(tmp_path, address_of(ALICE), address_of(ALICE)) as keys:
        assert await keys.addresses() == (address_of(ALICE),)


async def test_keys_that_were_not_asked_for_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, BOB, password="another password")
    async with keystore(tmp_path, address_of(ALICE)) as keys:
        with pytest.raises(KeyNotFound):
            await keys.sign_message(address_of(BOB), Bytes32(bytes(32)))


async def test_the_users_files_are_never_changed(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = (path.read_bytes(), path.stat().st_mtime_ns, os.listdir(tmp_path))
    async with keystore(tmp_path, address_of(ALICE)):
        pass
    await expect_refusal(KeyLocked, tmp_path, address_of(ALICE), password="wrong")
    assert (path.read_bytes(), path.stat().st_mtime_ns, os.listdir(tmp_path)) == before


async def test_two_files_of_one_address_are_ambiguous_only_for_that_address(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "copy").write_bytes(path.read_bytes())
    write(tmp_path, BOB)
    text = await expect_refusal(KeyAmbiguous, tmp_path, address_of(ALICE))
    assert "copy" in text and path.name in text
    async with keystore(tmp_path, address_of(BOB)):
        pass


@pytest.mark.parametrize("form", ["upper", "prefixed"])
async def test_the_stated_address_counts_and_the_file_name_does_not(tmp_path: Path, form: str) -> None:
    digits = address_of(ALICE).hex()
    path = write(tmp_path).rename(tmp_path / f"UTC--2020--{address_of(BOB).hex()}")
    edited(path, address=digits.upper() if form == "upper" else "0x" + digits)
    async with keystore(tmp_path, address_of(ALICE)):
        pass
    await expect_refusal(KeyNotFound, tmp_path, address_of(BOB))


def test_everything_that_is_no_key_file_is_skipped(tmp_path: Path) -> None:
    content = write(tmp_path).read_text()
    (tmp_path / ".hidden").write_text(content)
    (tmp_path / "backup~").write_text(content)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "nested").write_text(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "README.txt").write_text("put your keys here")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "deep").write_text("[" * 10_000)
    (tmp_path / "no-address").write_text('{"version": 3}')
    (tmp_path / "zero-address").write_text(json.dumps({"address": "00" * 20}))
    (tmp_path / "number").write_text('{"address": 5}')
    (tmp_path / "long").write_text(json.dumps({"address": address_of(BOB).hex(), "padding": "x" * 70_000}))
    assert list(find_key_files(tmp_path)) == [address_of(ALICE)]


def test_a_link_to_a_key_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(write(tmp_path))
    assert find_key_files(tmp_path / "store") == {}


async def test_a_key_that_belongs_to_another_address_is_refused(tmp_path: Path) -> None:
    edited(write(tmp_path), address=address_of(BOB).hex())
    await expect_refusal(KeyManagerError, tmp_path, address_of(BOB))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"version": "3"},
        {"crypto": None},
        {"crypto__cipher": "aes-256-gcm"},
        {"crypto__kdf": "argon2"},
        {"crypto__kdfparams": {}},
        {"crypto__kdfparams__n": 3},
        {"crypto__kdfparams__n": 0},
        {"crypto__kdfparams__r": 0},
        {"crypto__kdfparams__p": -1},
        {"crypto__kdfparams__dklen": 16},
        {"crypto__kdfparams__dklen": 1 << 30},
        {"crypto__kdfparams__salt": "not hex"},
        {"crypto__kdfparams__n": 1 << 21},
        {"crypto__kdfparams__r": 1 << 40},
        {"crypto__kdfparams__p": 1 << 29},
        {"crypto__kdfparams__n": 1 << 80},
        {"crypto__ciphertext": "00"},
        {"crypto__cipherparams": {"iv": "00"}},
        {"crypto__mac": "zz"},
    ],
)
async def test_damaged_or_excessive_files_are_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path)
    edited(path, **changes)
    assert path.name in await expect_refusal(KeyManagerError, tmp_path, address_of(ALICE))


async def test_a_flipped_bit_in_the_encrypted_key_does_not_open(tmp_path: Path) -> None:
    path = write(tmp_path)
    ciphertext = json.loads(path.read_text())["crypto"]["ciphertext"]
    edited(path, crypto__ciphertext=f"{int(ciphertext, 16) ^ 1:064x}")
    await expect_refusal(KeyLocked, tmp_path, address_of(ALICE))


async def test_an_encrypted_zero_is_no_key(tmp_path: Path) -> None:
    zero = Account.encrypt(ALICE, "right", kdf="scrypt", iterations=4096)
    derived = hashlib.scrypt(
        b"right", salt=bytes.fromhex(zero["crypto"]["kdfparams"]["salt"]), n=4096, r=8, p=1, maxmem=2**26, dklen=32
    )
    stream = bytes(a ^ b for a, b in zip(bytes.fromhex(zero["crypto"]["ciphertext"]), ALICE, strict=True))
    zero["crypto"]["ciphertext"] = stream.hex()
    zero["crypto"]["mac"] = keccak256(derived[16:32] + stream).hex()
    (tmp_path / "zero").write_text(json.dumps(zero))
    assert "no private key" in await expect_refusal(KeyManagerError, tmp_path, address_of(ALICE))


# ---------------------------------------------------------------------------------------------------------- creating


def test_a_created_file_has_the_name_the_mode_and_the_content_of_the_original(tmp_path: Path) -> None:
    path = write_key_file(
        tmp_path, ALICE, "pässword", weak=True, name_time=NOON.astimezone(timezone(timedelta(hours=5)))
    )
    assert path.name == f"UTC--2024-02-29T12-00-00.123456000Z--{address_of(ALICE).hex()}"
    assert path.stat().st_mode & 0o777 == 0o600
    content = json.loads(path.read_text())
    assert content["crypto"]["kdfparams"] | {"salt": ""} == {"dklen": 32, "n": 2, "p": 1, "r": 8, "salt": ""}
    assert bytes(Account.decrypt(content, "pässword")) == ALICE


@pytest.mark.slow
def test_standard_parameters_are_those_of_the_original_and_open_again(tmp_path: Path) -> None:
    path = write_key_file(tmp_path, ALICE, "", weak=False, name_time=NOON)
    parameters = json.loads(path.read_text())["crypto"]["kdfparams"]
    assert (parameters["n"], parameters["r"], parameters["p"]) == (262144, 8, 1)
    assert decrypt_key_file(path, "") == ALICE


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(KeyManagerError):
        write(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("kdf", "work"), [("scrypt", 4096), ("pbkdf2", 2000)])
def test_key_files_of_eth_account_open(tmp_path: Path, kdf: Literal["scrypt", "pbkdf2"], work: int) -> None:
    (tmp_path / "key").write_text(json.dumps(Account.encrypt(BOB, "right", kdf=kdf, iterations=work)))
    assert decrypt_key_file(tmp_path / "key", "right") == BOB


async def test_the_password_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    write(tmp_path / "keys")
    (tmp_path / "password").write_text("right\nnot this line\n")
    context = KeyManagerContext(role=KeyRole.ON_CHAIN, addresses=(address_of(ALICE),))
    in_file = EthKeystoreConfig(keystorepath=str(tmp_path / "keys"), passwordfile=str(tmp_path / "password"))
    async with open_ethkeystore(in_file, context):
        pass
    for wrong in ({"passwordfile": str(tmp_path / "missing")}, {"password": "right", "passwordfile": "both"}):
        with pytest.raises(KeyManagerError, match="password"):
            async with open_ethkeystore(EthKeystoreConfig(keystorepath=str(tmp_path / "keys"), **wrong), context):
                pass


@pytest.mark.parametrize("n", [2, 4096])
def test_files_weaker_than_the_standard_open_with_a_warning(tmp_path: Path, n: int) -> None:
    """4096·8·6 are the light parameters of the original key store."""
    content = Account.encrypt(BOB, "right", kdf="scrypt", iterations=n)
    (tmp_path / "key").write_text(json.dumps(content))
    (tmp_path / "key").chmod(0o600)
    key, warnings = keyfiles.decrypt_key_file(tmp_path / "key", "right")
    assert key.buffer == BOB
    assert len(warnings) == 1 and "weak" in warnings[0]


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.chmod(0o644)
    assert any("other users" in warning for warning in keyfiles.decrypt_key_file(path, "right")[1])


# ----------------------------------------------------------------------------------------------------------- custody


@pytest.mark.slow
async def test_the_custody_keeps_lists_gives_and_removes_files(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "keys"
    async with open_key_files(EthKeystoreConfig(keystorepath=str(directory), password="right")) as custody:
        with pytest.raises(KeyManagerError):
            await custody.addresses()
        assert os.listdir(tmp_path) == [], "looking creates nothing"
        assert await custody.add(Secret(ALICE)) == address_of(ALICE)
        with pytest.raises(KeyExists):
            await custody.add(Secret(ALICE))
        assert await custody.addresses() == (address_of(ALICE),)
        check_strength_and_modes(Path(await custody.place(address_of(ALICE))))
        key, warnings = await custody.read(address_of(ALICE))
        assert (key.buffer, warnings) == (ALICE, ())
        await custody.remove(address_of(ALICE))
        assert os.listdir(directory) == []
        with pytest.raises(KeyNotFound):
            await custody.remove(address_of(ALICE))


def check_strength_and_modes(path: Path) -> None:
    assert json.loads(path.read_text())["crypto"]["kdfparams"]["n"] == 1 << 18
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


# ----------------------------------------------------------------------------------------------------------- secrets


async def test_weak_protection_is_warned_of_without_naming_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = write(tmp_path, password="hunter2hunter2")
    async with keystore(tmp_path, address_of(ALICE), password="hunter2hunter2"):
        pass
    assert path.name in caplog.text and "weak" in caplog.text
    assert ALICE.hex() not in caplog.text and "hunter2" not in caplog.text


async def test_no_error_shows_the_password_or_a_part_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    texts = [await expect_refusal(KeyLocked, tmp_path, address_of(ALICE), password="hunter2")]
    secret = json.loads(path.read_text())["crypto"]["ciphertext"]
    edited(path, crypto__mac=secret + "zz")
    texts.append(await expect_refusal(KeyManagerError, tmp_path, address_of(ALICE), password="hunter2"))
    assert not [text for text in texts if "hunter2" in text or secret in text]


def test_the_options_of_the_session_file_hide_the_password() -> None:
    config = msgspec.convert({"keystorepath": "alice/keystore", "password": "hunter2"}, EthKeystoreConfig)
    assert "hunter2" not in f"{config!r} {config} {config.__rich_repr__()}"
    assert "alice/keystore" in repr(config)
    with pytest.raises(TypeError):
        pickle.dumps(config)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"keystorepath": "x", "passwrod": "y"}, EthKeystoreConfig)


async def test_closing_forgets_the_keys(tmp_path: Path) -> None:
    write(tmp_path)
    async with keystore(tmp_path, address_of(ALICE)) as keys:
        (key,) = keys._keys.values()
        buffer = key.buffer
        assert buffer == ALICE
    assert buffer == bytes(32), "the memory itself is overwritten"
    assert keys._keys == {}


async def test_the_loop_runs_on_while_a_key_is_decrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_moved_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    original = keyfiles.decrypt_key_file

    def slow(path: Path, password: str) -> tuple[Secret, tuple[str, ...]]:
        async def move_on() -> None:
            loop_moved_on.set()

        asyncio.run_coroutine_threadsafe(move_on(), loop).result(timeout=10)
        return original(path, password)

    monkeypatch.setattr("perun_keymgr_ethkeystore.keymgr.decrypt_key_file", slow)
    write(tmp_path)
    async with keystore(tmp_path, address_of(ALICE)):
        assert loop_moved_on.is_set()


def test_the_hook_declares_ethkeystore_without_loading_cryptography() -> None:
    backend = perun_keymgr_ethkeystore.perun_register_keymgr()
    assert (backend.name, backend.config, backend.open) == ("ethkeystore", EthKeystoreConfig, open_ethkeystore)
    script = (
        "import sys, perun_keymgr_ethkeystore as p; p.perun_register_keymgr(); "
        "assert not {'coincurve', 'Crypto', 'eth_account'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
