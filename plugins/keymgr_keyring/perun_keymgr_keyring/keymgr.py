"""The key manager: reads the keys a session needs from the secret store once, signs with them, forgets them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from msgspec import Struct

from perun_core.errors import KeyExists, KeyManagerError, KeyNotFound
from perun_core.keys import HeldKeys, Secret, address_of, check_key
from perun_core.ports.keymgr import KeyManagerContext
from perun_core.values import Address

from .secretstore import SecretStore, Store

_INDEX: Final = "addresses"
"""Name of the entry that lists the others: secret stores in general cannot be asked what they keep."""


class KeyringConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options: the block ``user.onchainwallet`` or ``user.offchainwallet`` of a session with ``keymgr: keyring``."""

    service: str = "perunnode"
    """Name under which the store keeps the keys."""
    backend: Store = Store.SYSTEM
    """secretservice, kwallet, macos or windows; empty: what the system has."""
    timeout: float = 30.0
    """Seconds the store may take for one question, the time in which somebody unlocks it included."""


class KeyringKeys(HeldKeys):
    """The keys that were read when the session opened."""


@asynccontextmanager
async def open_keyring(config: KeyringConfig, context: KeyManagerContext) -> AsyncIterator[KeyringKeys]:
    """Read the keys of `context.addresses`, check them, and hold them until the context ends.

    Raises: KeyNotFound, KeyLocked (nobody unlocked the store), KeysUnreachable (no store, or no answer in time),
    KeyManagerError (an entry that is no key, or another one's).
    """
    store = _store(config)
    read: dict[Address, Secret] = {}
    try:
        for address in dict.fromkeys(context.addresses):
            read[address] = await _read(store, address)
    except BaseException:
        for key in read.values():
            key.wipe()
        raise
    finally:
        store.close()
    keys = KeyringKeys(read)
    try:
        yield keys
    finally:
        keys.close()


def _store(config: KeyringConfig) -> SecretStore:
    if not config.service:
        raise KeyManagerError("service must not be empty")
    if not 0 < config.timeout <= 600:
        raise KeyManagerError("timeout must be positive and at most 600 seconds")
    return SecretStore(config.backend, config.service, config.timeout)


async def _read(store: SecretStore, address: Address) -> Secret:
    """The key of `address`, after it signed for it (U-13). Raises: KeyNotFound, KeyManagerError."""
    text = await store.get(address.checksum)
    if text is None:
        raise KeyNotFound(f"the secret store has no key for {address.checksum}")
    try:
        key = Secret.from_hex(text)
    except ValueError:
        raise KeyManagerError(f"the entry for {address.checksum} is no private key of 64 hex digits") from None
    try:
        check_key(key, address)
    except KeyManagerError:
        key.wipe()
        raise
    return key


# ------------------------------------------------------------------------------------------------------------- custody


class KeyringCustody:
    """The entries of one service; implements `perun_core.ports.keymgr.KeyCustody`."""

    def __init__(self, store: SecretStore, service: str) -> None:
        self._store = store
        self._service = service

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyCustody.addresses`: those that were put here by `add`."""
        text = await self._store.get(_INDEX) or ""
        return tuple(sorted({Address.from_hex(word) for word in text.split() if re.fullmatch("0x[0-9a-f]{40}", word)}))

    async def place(self, address: Address) -> str:
        """See `KeyCustody.place`."""
        return f"{self._service}/{address.checksum}"

    async def add(self, key: Secret) -> Address:
        """See `KeyCustody.add`. The key is there before it is listed."""
        address = address_of(key)
        if await self._store.get(address.checksum) is not None:
            raise KeyExists(f"the secret store has a key for {address.checksum} already")
        await self._store.put(address.checksum, key.reveal())
        await self._list({*await self.addresses(), address})
        return address

    async def read(self, address: Address) -> tuple[Secret, tuple[str, ...]]:
        """See `KeyCustody.read`."""
        return await _read(self._store, address), ()

    async def remove(self, address: Address) -> None:
        """See `KeyCustody.remove`."""
        if await self._store.get(address.checksum) is None:
            raise KeyNotFound(f"the secret store has no key for {address.checksum}")
        await self._store.remove(address.checksum)
        await self._list({*await self.addresses()} - {address})

    async def _list(self, addresses: set[Address]) -> None:
        await self._store.put(_INDEX, " ".join(f"0x{address.hex()}" for address in sorted(addresses)))


@asynccontextmanager
async def open_keyring_custody(config: KeyringConfig) -> AsyncIterator[KeyringCustody]:
    """The entries of the configured service. Raises: KeyManagerError."""
    store = _store(config)
    try:
        yield KeyringCustody(store, config.service)
    finally:
        store.close()
