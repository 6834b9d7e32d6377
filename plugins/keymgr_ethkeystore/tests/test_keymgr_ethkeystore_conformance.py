"""The key store and the kit's keys in memory keep every promise of the port."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path

from perun_core.ports.keymgr import KeyManager, KeyManagerContext, KeyRole
from perun_core.testing.keymgr import KeyManagerConformance, open_in_memory
from perun_core.values import Address
from perun_keymgr_ethkeystore.keyfiles import write_key_file
from perun_keymgr_ethkeystore.keymgr import EthKeystoreConfig, open_ethkeystore


class TestEthKeystore(KeyManagerConformance):
    def open_keys(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AbstractAsyncContextManager[KeyManager]:
        for key in held:
            write_key_file(path, key, "open sesame", weak=True, name_time=datetime(2024, 1, 1, tzinfo=UTC))
        config = EthKeystoreConfig(keystorepath=str(path), password="open sesame")
        return open_ethkeystore(config, KeyManagerContext(role=KeyRole.OFF_CHAIN, addresses=wanted))


class TestInMemoryKeys(KeyManagerConformance):
    def open_keys(
        self, path: Path, *, held: tuple[bytes, ...], wanted: tuple[Address, ...]
    ) -> AbstractAsyncContextManager[KeyManager]:
        return open_in_memory(held, wanted)
