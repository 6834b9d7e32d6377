"""Signing with keys in memory, as `KeyManager` wants it: the EIP-191 prefix, low s, v 27 or 28, deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import KeyLocked, KeyManagerError, KeyNotFound, SigningFailed
from ..ports.keymgr import UnsignedTx
from ..secret import NeverCopied, Secret
from ..values import Address, Bytes32, Sig, keccak256
from .transaction import signature_in, signed_payload, unsigned_payload

_EIP191: Final = b"\x19Ethereum Signed Message:\n32"
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def address_of(key: Secret) -> Address:
    """The address that `key` signs for."""
    from coincurve import PublicKey

    ffi, lib, context = _library()
    public = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_create(context.ctx, public, ffi.from_buffer(key.buffer)):
        raise SigningFailed("not a private key")
    return _address(PublicKey(public))


def sign_message(key: Secret, digest: Bytes32) -> Sig:
    """See `KeyManager.sign_message`. Raises: SigningFailed."""
    signature = _sign(key, keccak256(_EIP191 + Bytes32(digest)))
    return Sig(signature[:64] + bytes([27 + signature[64]]))


def sign_transaction(key: Secret, tx: UnsignedTx) -> bytes:
    """See `KeyManager.sign_transaction`. Raises: SigningFailed."""
    try:
        return signed_payload(tx, _sign(key, keccak256(unsigned_payload(tx))))
    except ValueError as error:
        raise SigningFailed(f"not a transaction that can be signed: {error}") from error


def check_key(key: Secret, address: Address) -> None:
    """Rule U-13 (PROTOCOL.md 7.3.6), once per key: a signature of `key` is one of `address`.

    The trial signature is over a digest of its own kind, of no use to anybody. Raises: KeyManagerError.
    """
    digest = Bytes32(keccak256(b"perun: does this key sign for its address?"))
    try:
        check_signature(sign_message(key, digest), digest, address)
    except SigningFailed as error:
        raise KeyManagerError(f"the key kept for {address.checksum} belongs to another address") from error


def check_signature(signature: bytes, digest: Bytes32, address: Address) -> Sig:
    """Rule U-13 per signature, for answers of a remote signer: `signature` is what `sign_message` must return.

    Raises: SigningFailed when it is malformed, has a high s or another v than 27 and 28, or is somebody else's.
    """
    problem = f"what came back is no signature of {address.checksum}"
    if len(signature) != Sig.SIZE or signature[64] not in (27, 28):
        raise SigningFailed(problem)
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise SigningFailed(f"{problem}: its s is not the low one")
    compact = bytes(signature[:64]) + bytes([signature[64] - 27])
    if _signer(compact, keccak256(_EIP191 + bytes(digest))) != address:
        raise SigningFailed(problem)
    return Sig(signature)


def check_transaction(raw: bytes, tx: UnsignedTx, address: Address) -> bytes:
    """For answers of a remote signer: `raw` is what `sign_transaction` must return, the transaction `tx` of `address`.

    Raises: SigningFailed when it is another transaction, malformed, has a high s, or is signed by somebody else.
    """
    problem = f"what came back is not the transaction of {address.checksum}"
    try:
        signature = signature_in(raw, tx)
        digest = keccak256(unsigned_payload(tx))
    except ValueError as error:
        raise SigningFailed(f"{problem}: {error}") from error
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER or _signer(signature, digest) != address:
        raise SigningFailed(problem)
    return raw


class HeldKeys(NeverCopied):
    """Opened keys; implements `perun_core.ports.keymgr.KeyManager`. Signing takes some 30 µs, on the loop."""

    def __init__(self, keys: Mapping[Address, Secret]) -> None:
        """Takes the keys over: `close` overwrites them. Each passed `check_key` before."""
        self._keys = dict(keys)
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._keys)} keys)"

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyManager.addresses`. Raises: KeyLocked once closed."""
        self._refuse_when_closed()
        return tuple(self._keys)

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """See `KeyManager.sign_message`."""
        return sign_message(self._key(address), digest)

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """See `KeyManager.sign_transaction`."""
        return sign_transaction(self._key(address), tx)

    def close(self) -> None:
        """Overwrite and forget the keys."""
        self._closed = True
        for key in self._keys.values():
            key.wipe()
        self._keys.clear()

    def _key(self, address: Address) -> Secret:
        self._refuse_when_closed()
        if (key := self._keys.get(address)) is None:
            raise KeyNotFound(f"no key for {Address(address).checksum} was opened")
        return key

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise KeyLocked("the key manager is closed")


def _sign(key: Secret, digest: bytes) -> bytes:
    """r ‖ s ‖ parity; libsecp256k1 gives low s and the nonce of RFC 6979. Raises: SigningFailed."""
    ffi, lib, context = _library()
    signature = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    signed = lib.secp256k1_ecdsa_sign_recoverable(
        context.ctx, signature, digest, ffi.from_buffer(key.buffer), ffi.NULL, ffi.NULL
    )
    if not signed:
        raise SigningFailed("the key could not sign")
    output, parity = ffi.new("unsigned char[64]"), ffi.new("int *")
    lib.secp256k1_ecdsa_recoverable_signature_serialize_compact(context.ctx, output, parity, signature)
    return bytes(ffi.buffer(output, 64)) + bytes([parity[0]])


def _library() -> tuple[Any, Any, Any]:
    """libsecp256k1 itself: unlike the classes around it, it reads a key from a buffer that can be overwritten."""
    from coincurve._libsecp256k1 import ffi, lib
    from coincurve.context import GLOBAL_CONTEXT

    return ffi, lib, GLOBAL_CONTEXT


def _signer(signature: bytes, digest: bytes) -> Address | None:
    """Who made r ‖ s ‖ parity of exactly `digest`; None when nobody can have."""
    from coincurve import PublicKey

    try:
        return _address(PublicKey.from_signature_and_message(signature, digest, hasher=None))
    except Exception:  # the library raises bare exceptions
        return None


def _address(key: Any) -> Address:
    return Address(keccak256(key.format(compressed=False)[1:])[12:])
