"""Port of key managers: they hold private keys and sign; keys never leave them."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from ..secret import Secret
from ..values import Address, Bytes32, Sig


class KeyRole(StrEnum):
    """What a session uses a key manager for; names the configuration block it was opened from."""

    ON_CHAIN = "onchainwallet"
    OFF_CHAIN = "offchainwallet"


class UnsignedTx(Struct, frozen=True):
    """An EIP-1559 transaction before signing. Fees are wei per gas, `gas` is the limit, `value` is wei."""

    chain_id: int
    nonce: int
    max_priority_fee: int
    max_fee: int
    gas: int
    to: Address | None
    """None creates a contract."""
    value: int
    data: bytes


class KeyManagerContext(Struct, frozen=True):
    """What a key manager is opened with."""

    role: KeyRole
    addresses: tuple[Address, ...]
    """The addresses the session will sign with; opening fails unless every one of them can sign."""


class KeyManager(Protocol):
    """Opened keys of one role. Key bytes never appear in a repr, log, error or pickle.

    Both ways of signing may be called concurrently and are cancellation-safe. Signatures are deterministic (RFC 6979).
    Keys that lie elsewhere may be slow to sign; a manager that has to wait for somebody limits that time itself and
    then raises KeysUnreachable. That a key signs for its address (rule U-13) is checked once per key when it is opened;
    a manager that receives signatures from elsewhere checks every one of them (`perun_core.keys.check_signature`).
    """

    async def addresses(self) -> tuple[Address, ...]:
        """Addresses this manager can sign with now. Raises: KeyManagerError."""
        ...

    async def sign_message(self, address: Address, digest: Bytes32) -> Sig:
        """Sign `digest` after putting the EIP-191 prefix for 32 bytes in front of it and hashing again.

        The prefix is applied here, so that no digest can ever be the hash of a transaction. Result: low s, v 27 or
        28. The core's signing guard is durable before this is called.
        Raises: KeyNotFound, KeyLocked, KeysUnreachable, SigningFailed.
        """
        ...

    async def sign_transaction(self, address: Address, tx: UnsignedTx) -> bytes:
        """The raw signed transaction (EIP-2718 type 2) ready for broadcasting.

        Raises: KeyNotFound, KeyLocked, KeysUnreachable, SigningFailed.
        """
        ...


class KeyCustody(Protocol):
    """Where a key manager keeps its keys, for the operator's ``perunnode keys``. No node and no session opens it.

    Every method raises KeyManagerError or one of its kinds, with no key material in it. What `add` and `remove` did
    is durable when they return.
    """

    async def addresses(self) -> tuple[Address, ...]:
        """Addresses of all keys kept here, sorted."""
        ...

    async def place(self, address: Address) -> str:
        """Where the key of `address` lies, for people. Raises: KeyNotFound."""
        ...

    async def add(self, key: Secret) -> Address:
        """Keep a copy of `key` and give its address. Raises: KeyExists, with nothing changed."""
        ...

    async def read(self, address: Address) -> tuple[Secret, tuple[str, ...]]:
        """The key of `address`, which the caller wipes, and what an operator should be warned of.

        The key is one that signs for `address` (rule U-13). Raises: KeyNotFound, KeyLocked, KeyAmbiguous.
        """
        ...

    async def remove(self, address: Address) -> None:
        """Keep the key of `address` no longer. Raises: KeyNotFound."""
        ...
