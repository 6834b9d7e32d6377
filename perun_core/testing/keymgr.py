"""Proof of `perun_core.ports.keymgr.KeyManager`, and keys in memory for tests of code that signs."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final

import coincurve
import pytest
from msgspec import structs

from perun_core.errors import KeyLocked, KeyManagerError, KeyNotFound, KeysUnreachable, SigningFailed
from perun_core.ports.keymgr import KeyManager, UnsignedTx
from perun_core.values import Address, Bytes32, Sig, keccak256

HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half of the order of secp256k1; s of a signature that a contract accepts is at most this (PROTOCOL.md 2.3)."""


# ------------------------------------------------------------------------------------------------------------ tools


def address_of(private_key: bytes) -> Address:
    """The address of a 32-byte private key."""
    return _address(coincurve.PublicKey.from_secret(private_key))


def recovered(digest: bytes, sig: bytes) -> Address:
    """Who made the 65-byte signature `sig` (v 27 or 28) of exactly these 32 bytes. Raises: ValueError."""
    if len(sig) != 65 or sig[64] not in (27, 28):
        raise ValueError("not a signature with v 27 or 28")
    compact = sig[:64] + bytes([sig[64] - 27])
    return _address(coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None))


def message_digest(digest: bytes) -> bytes:
    """What `sign_message` really signs: the EIP-191 prefix for 32 bytes and `digest`, hashed."""
    return keccak256(b"\x19Ethereum Signed Message:\n32" + digest)


def _address(key: coincurve.PublicKey) -> Address:
    return Address(keccak256(key.format(compressed=False)[1:])[12:])


RlpItem = bytes | list["RlpItem"]


def rlp_decode(data: bytes) -> RlpItem:
    """The one RLP item that `data` is (Ethereum yellow paper, appendix B). Raises: ValueError."""
    item, rest = _rlp_item(data)
    if rest:
        raise ValueError("bytes behind the item")
    return item


def _rlp_item(data: bytes) -> tuple[RlpItem, bytes]:
    if not data:
        raise ValueError("nothing to decode")
    head = data[0]
    if head < 0x80:
        return data[:1], data[1:]
    is_list = head >= 0xC0
    size, start = head - (0xC0 if is_list else 0x80), 1
    if size > 55:
        start = 1 + size - 55
        size = int.from_bytes(data[1:start], "big")
    body, rest = data[start : start + size], data[start + size :]
    if len(body) != size:
        raise ValueError("item is cut off")
    if not is_list:
        return body, rest
    items: list[RlpItem] = []
    while body:
        item, body = _rlp_item(body)
        items.append(item)
    return items, rest


def rlp_encode(item: RlpItem) -> bytes:
    """`item` as RLP."""
    if isinstance(item, bytes):
        return item if len(item) == 1 and item[0] < 0x80 else _rlp_head(0x80, len(item)) + item
    body = b"".join(map(rlp_encode, item))
    return _rlp_head(0xC0, len(body)) + body


def _rlp_head(offset: int, size: int) -> bytes:
    if size <= 55:
        return bytes([offset + size])
    return bytes([offset + 55 + len(_minimal(size))]) + _minimal(size)


def _minimal(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


# -------------------------------------------------------------------------------------------------------------- fake


class InMemoryKeys:
    """A `KeyManager` over private keys that a test made up. Never for keys that guard anything.

    `messages` and `transactions` list what was signed, in order, so that a test can say what must not be.
    """

    def __init__(self, private_keys: Iterable[bytes]) -> None:
        self._keys = {address_of(key): coincurve.PrivateKey(key) for key in private_keys}
        self.messages: list[tuple[Address, Bytes32]] = []
        self.transactions: list[tuple[Address, UnsignedTx]] = []
        self.failure: KeyManagerError | None = None
        """When set, both ways of signing raise it instead."""
        self.closed = False

    def __repr__(self) -> str:
        return f"InMemoryKeys({len(self._keys)} keys)"

    def __reduce__(self) -> str:
        raise TypeError("keys are not copied out of their manager")

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyManager.addresses`."""
        self._refuse_when_closed()
        return tuple(self._keys)

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """See `KeyManager.sign_message`."""
        key = self._key(address)
        self.messages.append((address, digest))
        signature = key.sign_recoverable(message_digest(digest), hasher=None)
        return Sig(signature[:64] + bytes([27 + signature[64]]))

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """See `KeyManager.sign_transaction`."""
        key = self._key(address)
        numbers = (tx.chain_id, tx.nonce, tx.max_priority_fee, tx.max_fee, tx.gas, tx.value)
        if min(numbers) < 0:
            raise SigningFailed("a transaction has no negative field")
        *fees, value = map(_minimal, numbers)
        fields: list[RlpItem] = [*fees, bytes(tx.to or b""), value, tx.data, []]
        self.transactions.append((address, tx))
        signature = key.sign_recoverable(keccak256(b"\x02" + rlp_encode(fields)), hasher=None)
        parity, r, s = (int.from_bytes(part, "big") for part in (signature[64:], signature[:32], signature[32:64]))
        return b"\x02" + rlp_encode([*fields, _minimal(parity), _minimal(r), _minimal(s)])

    def _key(self, address: Address) -> coincurve.PrivateKey:
        self._refuse_when_closed()
        if self.failure is not None:
            raise self.failure
        if address not in self._keys:
            raise KeyNotFound(f"no key for {address.checksum}")
        return self._keys[address]

    def _refuse_when_closed(self) -> None:
        if self.closed:
            raise KeyLocked("the key manager is closed")


@asynccontextmanager
async def open_in_memory(private_keys: Iterable[bytes], wanted: Iterable[Address]) -> AsyncIterator[InMemoryKeys]:
    """Keys in memory, opened the way a session opens a key manager. Raises: KeyNotFound."""
    keys = InMemoryKeys(private_keys)
    missing = set(wanted) - set(await keys.addresses())
    if missing:
        raise KeyNotFound(f"no key for {', '.join(sorted(address.checksum for address in missing))}")
    try:
        yield keys
    finally:
        keys.closed = True


# ------------------------------------------------------------------------------------------------------- conformance


class KeyManagerConformance:
    """Every promise of the `KeyManager` port. Subclass as ``class TestMine(KeyManagerConformance)``.

    Define `open_keys`. Should your key manager be unable to import keys, let `HELD` be keys it has.
    """

    HELD: ClassVar[tuple[bytes, ...]] = (b"\x11" * 32, b"\x22" * 32)
    """Private keys that anybody knows (PROTOCOL.md 3.8)."""
    STRANGER: ClassVar[Address] = address_of(b"\x33" * 32)
    """An address whose key is not held."""
    TX: ClassVar[UnsignedTx] = UnsignedTx(
        chain_id=1337,
        nonce=7,
        max_priority_fee=10**9,
        max_fee=3 * 10**10,
        gas=21_000,
        to=Address(b"\xaa" * 20),
        value=10**18,
        data=b"",
    )

    def open_keys(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AbstractAsyncContextManager[KeyManager]:
        """Prepare at the empty directory `path` a key manager with the private keys `held`, and open it for `wanted`.

        Preparing and opening both happen when the result is entered, or preparing happens before.
        """
        raise NotImplementedError

    def open_silent(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AbstractAsyncContextManager[KeyManager]:
        """As `open_keys`, but once open, whatever the manager asks for signatures takes questions and answers none.

        Managers that wait for nobody leave this as it is; its test is then skipped with that reason.
        """
        pytest.skip("this key manager waits for nobody when it signs")

    def _open(self, path: Path) -> AbstractAsyncContextManager[KeyManager]:
        return self.open_keys(path, held=self.HELD, wanted=self._own())

    def _own(self) -> tuple[Address, ...]:
        return tuple(address_of(key) for key in self.HELD)

    async def test_it_can_sign_with_every_address_it_was_opened_for(self, tmp_path: Path) -> None:
        async with self._open(tmp_path) as keys:
            assert set(self._own()) <= set(await keys.addresses())
            for address in self._own():
                digest = Bytes32(keccak256(address))
                assert recovered(message_digest(digest), await keys.sign_message(address, digest)) == address

    async def test_opening_for_an_address_without_key_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeyNotFound):
            async with self.open_keys(tmp_path, held=self.HELD, wanted=(*self._own(), self.STRANGER)):
                pass

    async def test_signing_with_an_unknown_address_is_refused(self, tmp_path: Path) -> None:
        async with self._open(tmp_path) as keys:
            with pytest.raises(KeyNotFound):
                await keys.sign_message(self.STRANGER, Bytes32(bytes(32)))
            with pytest.raises(KeyNotFound):
                await keys.sign_transaction(self.STRANGER, self.TX)

    async def test_signatures_have_low_s_and_v_27_or_28_and_both_occur(self, tmp_path: Path) -> None:
        address = self._own()[0]
        async with self._open(tmp_path) as keys:
            sigs = [await keys.sign_message(address, Bytes32(keccak256(bytes([n])))) for n in range(40)]
        assert all(isinstance(sig, Sig) for sig in sigs)
        assert all(1 <= int.from_bytes(sig[32:64], "big") <= HALF_ORDER for sig in sigs)
        assert {sig[64] for sig in sigs} == {27, 28}

    async def test_signing_the_same_digest_again_gives_the_same_bytes(self, tmp_path: Path) -> None:
        address, digest = self._own()[0], Bytes32(keccak256(b"again"))
        async with self._open(tmp_path) as keys:
            assert await keys.sign_message(address, digest) == await keys.sign_message(address, digest)
            assert await keys.sign_transaction(address, self.TX) == await keys.sign_transaction(address, self.TX)

    async def test_signatures_are_those_of_rfc_6979_over_the_prefixed_digest(self, tmp_path: Path) -> None:
        address, key, digest = self._own()[0], coincurve.PrivateKey(self.HELD[0]), Bytes32(keccak256(b"expected"))
        expected = key.sign_recoverable(message_digest(digest), hasher=None)
        async with self._open(tmp_path) as keys:
            sig = await keys.sign_message(address, digest)
        assert sig == expected[:64] + bytes([27 + expected[64]])

    async def test_no_digest_can_become_the_signature_of_a_transaction(self, tmp_path: Path) -> None:
        address = self._own()[0]
        async with self._open(tmp_path) as keys:
            fields = rlp_decode((await keys.sign_transaction(address, self.TX))[1:])
            assert isinstance(fields, list)
            hash_of_tx = Bytes32(keccak256(b"\x02" + rlp_encode(fields[:-3])))
            sig = await keys.sign_message(address, hash_of_tx)
        assert recovered(hash_of_tx, sig) != address
        assert recovered(message_digest(hash_of_tx), sig) == address

    async def test_concurrent_requests_get_their_own_signatures(self, tmp_path: Path) -> None:
        jobs = [(address, Bytes32(keccak256(bytes([n])))) for n in range(32) for address in self._own()]
        async with self._open(tmp_path) as keys:
            sigs = await asyncio.gather(*(keys.sign_message(address, digest) for address, digest in jobs))
        for (address, digest), sig in zip(jobs, sigs, strict=True):
            assert recovered(message_digest(digest), sig) == address

    @pytest.mark.parametrize("creates", [False, True])
    async def test_a_signed_transaction_says_what_was_asked_and_names_its_sender(
        self, tmp_path: Path, creates: bool
    ) -> None:
        address = self._own()[1]
        tx = UnsignedTx(
            chain_id=1337,
            nonce=0,
            max_priority_fee=0,
            max_fee=2**64,
            gas=5_000_000,
            to=None if creates else Address(bytes(19) + b"\x01"),
            value=0 if creates else 127,
            data=bytes(range(256)) * 20,
        )
        async with self._open(tmp_path) as keys:
            raw = await keys.sign_transaction(address, tx)
        assert raw[:1] == b"\x02"
        fields = rlp_decode(raw[1:])
        assert isinstance(fields, list)
        *body, parity, r, s = fields
        numbers = [int.from_bytes(field, "big") for field in body if isinstance(field, bytes)]
        assert numbers[:5] == [tx.chain_id, tx.nonce, tx.max_priority_fee, tx.max_fee, tx.gas]
        assert body[5:] == [bytes(tx.to or b""), tx.value.to_bytes(1 if tx.value else 0, "big"), tx.data, []]
        assert isinstance(parity, bytes) and isinstance(r, bytes) and isinstance(s, bytes)
        assert not any(field.startswith(b"\0") for field in (*body[:5], parity, r, s) if isinstance(field, bytes))
        assert int.from_bytes(s, "big") <= HALF_ORDER
        signed = keccak256(b"\x02" + rlp_encode(body))
        sig = r.rjust(32, b"\0") + s.rjust(32, b"\0") + bytes([27 + int.from_bytes(parity, "big")])
        assert recovered(signed, sig) == address

    async def test_an_impossible_transaction_is_refused(self, tmp_path: Path) -> None:
        async with self._open(tmp_path) as keys:
            with pytest.raises(SigningFailed):
                await keys.sign_transaction(
                    self._own()[0],
                    UnsignedTx(chain_id=1, nonce=-1, max_priority_fee=1, max_fee=1, gas=1, to=None, value=0, data=b""),
                )

    async def test_a_request_that_is_cancelled_disturbs_no_other(self, tmp_path: Path) -> None:
        address = self._own()[0]
        digests = [Bytes32(keccak256(b"cancelled" + bytes([n]))) for n in range(8)]
        async with self._open(tmp_path) as keys:
            jobs = [asyncio.ensure_future(keys.sign_message(address, digest)) for digest in digests]
            await asyncio.sleep(0)
            for job in jobs[::2]:
                job.cancel()
            done = await asyncio.gather(*jobs, return_exceptions=True)
            again = await keys.sign_message(address, digests[0])
        assert recovered(message_digest(digests[0]), again) == address
        for digest, sig in zip(digests[1::2], done[1::2], strict=True):
            assert isinstance(sig, Sig) and recovered(message_digest(digest), sig) == address

    async def test_a_signer_that_does_not_answer_is_given_up_in_time_with_a_typed_error(self, tmp_path: Path) -> None:
        address = self._own()[0]
        async with self.open_silent(tmp_path, held=self.HELD, wanted=self._own()) as keys:
            for _ in range(2):
                with pytest.raises(KeysUnreachable):
                    async with asyncio.timeout(30):
                        await keys.sign_message(address, Bytes32(bytes(32)))

    async def test_neither_repr_nor_logs_nor_errors_show_a_key(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        impossible = structs.replace(self.TX, nonce=-1)
        async with self._open(tmp_path) as keys:
            shown = [repr(keys), str(keys), f"{keys}"]
            await keys.sign_message(self._own()[0], Bytes32(bytes(32)))
            for request in (
                keys.sign_message(self.STRANGER, Bytes32(bytes(32))),
                keys.sign_transaction(self.STRANGER, self.TX),
                keys.sign_transaction(self._own()[0], impossible),
            ):
                with pytest.raises(KeyManagerError) as caught:
                    await request
                error = caught.value
                shown += [str(error), repr(error)]
                # As an error collector would send it away: with every local variable of the manager's frames.
                trace = traceback.TracebackException.from_exception(error, capture_locals=True)
                shown += [
                    f"{name} = {value}"
                    for frame in trace.stack
                    if frame.filename != __file__
                    for name, value in (frame.locals or {}).items()
                ]
        shown += [record.getMessage() for record in caplog.records] + [caplog.text]
        assert not self._leaks(shown)

    async def test_an_error_of_opening_shows_no_key(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        with pytest.raises(KeyNotFound) as caught:
            async with self.open_keys(tmp_path, held=self.HELD, wanted=(*self._own(), self.STRANGER)):
                pass
        chain = "".join(traceback.format_exception(caught.value))
        assert not self._leaks([str(caught.value), repr(caught.value), chain, caplog.text])

    def _leaks(self, shown: list[str]) -> list[str]:
        """The texts in which a key is, in any of the forms that a program prints bytes in."""
        forms = [
            form
            for key in self.HELD
            for form in (key.hex(), repr(key), repr(bytearray(key)), str(list(key)), str(int.from_bytes(key, "big")))
        ]
        return [text for text in shown if any(form.lower() in text.lower() for form in forms)]

    async def test_an_open_manager_cannot_be_pickled_or_copied(self, tmp_path: Path) -> None:
        async with self._open(tmp_path) as keys:
            with pytest.raises(TypeError):
                pickle.dumps(keys)
            with pytest.raises(TypeError):
                copy.copy(keys)
            with pytest.raises(TypeError):
                copy.deepcopy(keys)

    async def test_a_closed_manager_signs_nothing(self, tmp_path: Path) -> None:
        async with self._open(tmp_path) as keys:
            pass
        with pytest.raises(KeyManagerError):
            await keys.sign_message(self._own()[0], Bytes32(bytes(32)))
        with pytest.raises(KeyManagerError):
            await keys.sign_transaction(self._own()[0], self.TX)
