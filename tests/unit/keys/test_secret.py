"""A private key in memory is shown nowhere, copied by nobody, and overwritten."""

from __future__ import annotations

import copy
import json
import pickle
import traceback

import msgspec
import pytest

from perun_core.cli.keys import _fresh_key
from perun_core.errors import KeyLocked, KeyManagerError
from perun_core.keys import HeldKeys, Secret, address_of, check_key, sign_message
from perun_core.keys.keyfile import Strength, decrypt, encrypt
from perun_core.values import Address, Bytes32

KEY = bytes(range(1, 33))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def test_it_is_shown_in_no_way_a_program_shows_values() -> None:
    secret = Secret(KEY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!a:>30}", repr([secret]), repr({"key": secret})]
    assert not [text for text in shown if KEY.hex() in text or repr(KEY) in text or "\\x02" in text]


def test_it_is_neither_pickled_nor_copied_nor_encoded() -> None:
    secret = Secret(KEY)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(secret, protocol)
    for way in (copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins):
        with pytest.raises(TypeError):
            way(secret)


def test_wiping_overwrites_the_memory_itself() -> None:
    secret = Secret(KEY)
    buffer = secret.buffer
    secret.wipe()
    secret.wipe()
    assert buffer == bytes(32)
    for use in (lambda: secret.buffer, secret.reveal, secret.copy, lambda: sign_message(secret, Bytes32(bytes(32)))):
        with pytest.raises(ValueError, match="wiped"):
            use()


def test_a_block_wipes_it_also_when_it_fails() -> None:
    with pytest.raises(RuntimeError), Secret(KEY) as secret:
        buffer = secret.buffer
        raise RuntimeError
    assert buffer == bytes(32)


def test_what_it_is_made_of_is_overwritten() -> None:
    buffer = bytearray(KEY)
    assert Secret.of(buffer).buffer == KEY
    assert buffer == bytes(32)
    bad = bytearray(b"\xff" * 32)
    with pytest.raises(ValueError):
        Secret.of(bad)
    assert bad == bytes(32)


@pytest.mark.parametrize("number", [0, ORDER, ORDER + 1, 2**256 - 1])
def test_numbers_that_are_no_keys_are_refused_without_showing_them(number: int) -> None:
    with pytest.raises(ValueError) as caught:
        Secret(number.to_bytes(32, "big"))
    assert f"{number:064x}" not in "".join(traceback.format_exception(caught.value))
    Secret((ORDER - 1).to_bytes(32, "big"))
    Secret((1).to_bytes(32, "big"))


@pytest.mark.parametrize("text", ["", "0x", "zz" * 32, "11" * 31, "11" * 33, "1" * 63, "0x0x" + "11" * 32])
def test_text_that_is_no_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Secret.from_hex(text)
    assert len(text) < 3 or text not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("form", ["{}", "0x{}", " {}\n"])
def test_a_key_is_read_from_hex(form: str) -> None:
    assert Secret.from_hex(form.format(KEY.hex())).buffer == KEY


def test_fresh_keys_differ() -> None:
    assert len({_fresh_key().reveal() for _ in range(50)}) == 50


def test_a_key_is_checked_against_its_address() -> None:
    check_key(Secret(KEY), address_of(Secret(KEY)))
    with pytest.raises(KeyManagerError, match="another address"):
        check_key(Secret(KEY), Address(b"\x01" * 20))


async def test_closing_held_keys_wipes_them() -> None:
    secret = Secret(KEY)
    address, buffer = address_of(secret), secret.buffer
    keys = HeldKeys({address: secret})
    await keys.sign_message(address, Bytes32(bytes(32)))
    keys.close()
    assert buffer == bytes(32)
    with pytest.raises(KeyLocked):
        await keys.sign_message(address, Bytes32(bytes(32)))


def test_a_key_file_holds_the_key_and_shows_nothing_of_it() -> None:
    content = encrypt(Secret(KEY), "pässword", strength=Strength.WEAK)
    assert KEY.hex().encode() not in content
    assert json.loads(content)["address"] == address_of(Secret(KEY)).hex()
    assert decrypt(content, "pässword").buffer == KEY
    with pytest.raises(KeyLocked) as caught:
        decrypt(content, "wrong")
    assert "wrong" not in str(caught.value) and json.loads(content)["crypto"]["ciphertext"] not in str(caught.value)
