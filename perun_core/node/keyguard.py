"""A key manager as the node uses it: whatever the plugin does, a signature is right and in time, or a typed error.

Rule U-13 (PROTOCOL.md 7.3.6) is checked here: once per key for managers that hold keys in memory with our own code, for
every signature of all others, because what signs for them may be anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Final, TypeVar

from ..errors import KeyManagerError, KeysUnreachable, SigningFailed
from ..keys import HeldKeys, NeverCopied, check_signature, check_transaction
from ..ports.keymgr import KeyManager, UnsignedTx
from ..values import Address, Bytes32, Sig, keccak256

LIMIT: Final = 60.0
"""Seconds after which a key manager that sets itself no limit, or does not keep it, counts as hanging."""

T = TypeVar("T")


async def guarded(keys: KeyManager, addresses: Iterable[Address], *, limit: float = LIMIT) -> KeyManager:
    """`keys`, which were opened for `addresses`, after each of them signed a digest of no use to anybody.

    Raises: KeyManagerError.
    """
    guard = KeyGuard(keys, limit=limit)
    for address in addresses:
        await guard.sign_message(address, Bytes32(keccak256(b"perun: is this the key of its address?")))
    return keys if isinstance(keys, HeldKeys) else guard


class KeyGuard(NeverCopied):
    """Implements `KeyManager` over one that is not believed."""

    def __init__(self, keys: KeyManager, *, limit: float = LIMIT) -> None:
        self._keys = keys
        self._limit = limit

    def __repr__(self) -> str:
        return f"KeyGuard({self._keys!r})"

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyManager.addresses`."""
        return tuple(Address(address) for address in await self._bounded(self._keys.addresses()))

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """See `KeyManager.sign_message`."""
        signature: object = await self._bounded(self._keys.sign_message(address, digest))
        if not isinstance(signature, bytes):
            raise SigningFailed(f"the key manager gave a {type(signature).__name__} instead of a signature")
        return check_signature(signature, digest, address)

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """See `KeyManager.sign_transaction`."""
        raw: object = await self._bounded(self._keys.sign_transaction(address, tx))
        if not isinstance(raw, bytes):
            raise SigningFailed(f"the key manager gave a {type(raw).__name__} instead of a transaction")
        return check_transaction(raw, tx, address)

    async def _bounded(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._limit) as limit:
                return await work
        except KeyManagerError:
            raise
        except TimeoutError as error:
            if limit.expired():
                raise KeysUnreachable(f"the key manager did not answer within {self._limit:g} s") from error
            raise SigningFailed("the key manager failed: TimeoutError") from error
        except (Exception, SystemExit) as error:
            # A stranger's text may hold anything, so its kind has to do.
            raise SigningFailed(f"the key manager failed: {type(error).__name__}") from error
