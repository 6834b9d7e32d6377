"""The key manager: decrypts the keys a session needs once, signs with them, forgets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from msgspec import Struct

from perun_core.errors import KeyAmbiguous, KeyLocked, KeyManagerError, KeyNotFound, SigningFailed
from perun_core.ports.keymgr import KeyManagerContext, UnsignedTx
from perun_core.values import Address, Bytes32, Sig, keccak256

from .keyfiles import decrypt_key_file, find_key_files
from .transaction import signed_payload, unsigned_payload

if TYPE_CHECKING:
    from coincurve import PrivateKey

_EIP191: Final = b"\x19Ethereum Signed Message:\n32"


class EthKeystoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the key manager ``ethkeystore``: the block ``user.onchainwallet`` or ``user.offchainwallet``."""

    keystorepath: str = ""
    """Directory with go-ethereum key files. Relative paths are relative to the node's working directory."""
    password: str = ""
    """Opens every key of the session in that directory. Not shown by `repr`."""

    def __repr__(self) -> str:
        return f"EthKeystoreConfig(keystorepath={self.keystorepath!r}, password=***)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("keystorepath", self.keystorepath), ("password", "***")]


class EthKeystore:
    """Opened keys; implements `perun_core.ports.keymgr.KeyManager`. Signing takes some 30 µs, on the loop."""

    def __init__(self, keys: dict[Address, PrivateKey]) -> None:
        self._keys = keys
        self._closed = False

    def __repr__(self) -> str:
        return f"EthKeystore({len(self._keys)} keys)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not copied out of their manager")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__reduce__()

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyManager.addresses`. Raises: KeyLocked once closed."""
        self._refuse_when_closed()
        return tuple(self._keys)

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """See `KeyManager.sign_message`."""
        signature = _sign(self._key(address), keccak256(_EIP191 + Bytes32(digest)))
        return Sig(signature[:64] + bytes([27 + signature[64]]))

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """See `KeyManager.sign_transaction`."""
        key = self._key(address)
        try:
            return signed_payload(tx, _sign(key, keccak256(unsigned_payload(tx))))
        except ValueError as error:
            raise SigningFailed(f"not a transaction that can be signed: {error}") from error

    def close(self) -> None:
        """Forget the keys. Python cannot wipe immutable bytes; no reference to them remains here."""
        self._closed = True
        for key in self._keys.values():
            key.secret = bytes(32)
        self._keys.clear()

    def _key(self, address: Address) -> PrivateKey:
        self._refuse_when_closed()
        if (key := self._keys.get(address)) is None:
            raise KeyNotFound(f"no key for {Address(address).checksum} was opened")
        return key

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise KeyLocked("the key store is closed")


def _sign(key: PrivateKey, digest: bytes) -> bytes:
    """r ‖ s ‖ parity; libsecp256k1 gives low s and the nonce of RFC 6979. Raises: SigningFailed."""
    try:
        return key.sign_recoverable(digest, hasher=None)
    except Exception as error:
        raise SigningFailed("the key could not sign") from error


# ----------------------------------------------------------------------------------------------------------- opening


@asynccontextmanager
async def open_ethkeystore(config: EthKeystoreConfig, context: KeyManagerContext) -> AsyncIterator[EthKeystore]:
    """Decrypt the keys of `context.addresses`, check them, and hold them until the context ends.

    No file is ever written. Decrypting runs in a thread, one file after the other: with standard parameters each takes
    about a second and 256 MiB.
    Raises: KeyNotFound, KeyAmbiguous (several files state one address), KeyLocked (wrong password), KeyManagerError.
    """
    keys = EthKeystore(await asyncio.to_thread(_unlock, config, context.addresses))
    try:
        yield keys
    finally:
        keys.close()


def _unlock(config: EthKeystoreConfig, addresses: tuple[Address, ...]) -> dict[Address, PrivateKey]:
    if not config.keystorepath:
        raise KeyManagerError("no key store directory is configured")
    files = find_key_files(Path(config.keystorepath))
    chosen = {address: _only_file(files.get(address, ()), address) for address in addresses}
    return {address: _checked_key(address, path, config.password) for address, path in chosen.items()}


def _only_file(paths: tuple[Path, ...], address: Address) -> Path:
    if not paths:
        raise KeyNotFound(f"no key file for {address.checksum}")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise KeyAmbiguous(f"several key files for {address.checksum}: {names}")
    return paths[0]


def _checked_key(address: Address, path: Path, password: str) -> PrivateKey:
    """The key in the file, after it signed for `address` as rule U-13 wants (PROTOCOL.md 7.3.6)."""
    from coincurve import PrivateKey, PublicKey

    secret = decrypt_key_file(path, password)
    try:
        key = PrivateKey(secret)
    except ValueError:
        raise KeyManagerError(f"key file {path} holds no private key") from None
    # A digest of its own kind, prefixed like every message, so that the trial signature is of no use to anybody.
    digest = keccak256(_EIP191 + keccak256(b"perun: does this key sign for its address?"))
    signer = PublicKey.from_signature_and_message(_sign(key, digest), digest, hasher=None)
    if keccak256(signer.format(compressed=False)[1:])[12:] != address:
        raise KeyManagerError(f"key file {path} states {address.checksum}, but its key belongs to another address")
    return key
