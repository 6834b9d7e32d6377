"""The key manager decrypts the keys a session needs once, signs with them, forgets them. The custody of the files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from msgspec import Struct

from perun_core.errors import KeyAmbiguous, KeyExists, KeyManagerError, KeyNotFound
from perun_core.keys import AskedText, HeldKeys, Secret, address_of, check_key
from perun_core.ports.keymgr import KeyManagerContext
from perun_core.values import Address

from .keyfiles import decrypt_key_file, find_key_files, remove_key_file, write_key_file

_log = logging.getLogger(__name__)


class EthKeystoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the key manager ``ethkeystore``: the block ``user.onchainwallet`` or ``user.offchainwallet``."""

    keystorepath: str = ""
    """Directory with go-ethereum key files. Relative paths are relative to the node's working directory."""
    password: AskedText = ""
    """Opens every key of the session in that directory. Not shown by `repr`."""
    passwordfile: str = ""
    """File whose first line is the password, instead of `password`."""

    def __repr__(self) -> str:
        return (
            f"EthKeystoreConfig(keystorepath={self.keystorepath!r}, password=***, passwordfile={self.passwordfile!r})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("options with secrets are not copied")

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("keystorepath", self.keystorepath), ("password", "***"), ("passwordfile", self.passwordfile)]


class EthKeystore(HeldKeys):
    """The opened keys of a directory."""


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


def _unlock(config: EthKeystoreConfig, addresses: tuple[Address, ...]) -> dict[Address, Secret]:
    files = find_key_files(_directory(config))
    password = _password(config)
    chosen = {address: _only_file(files.get(address, ()), address) for address in addresses}
    opened: dict[Address, Secret] = {}
    try:
        for address, path in chosen.items():
            opened[address], warnings = _checked_key(address, path, password)
            for warning in warnings:
                _log.warning("%s", warning)
    except BaseException:
        for key in opened.values():
            key.wipe()
        raise
    return opened


def _directory(config: EthKeystoreConfig) -> Path:
    if not config.keystorepath:
        raise KeyManagerError("no key store directory is configured")
    return Path(config.keystorepath)


def _password(config: EthKeystoreConfig) -> str:
    if not config.passwordfile:
        return config.password
    if config.password:
        raise KeyManagerError("both password and passwordfile are configured")
    try:
        with Path(config.passwordfile).open(encoding="utf-8") as file:
            return file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyManagerError(f"password file {config.passwordfile!r} cannot be read") from error


def _only_file(paths: tuple[Path, ...], address: Address) -> Path:
    if not paths:
        raise KeyNotFound(f"no key file for {address.checksum}")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise KeyAmbiguous(f"several key files for {address.checksum}: {names}")
    return paths[0]


def _checked_key(address: Address, path: Path, password: str) -> tuple[Secret, tuple[str, ...]]:
    """The key in the file, after it signed for `address` as rule U-13 wants (PROTOCOL.md 7.3.6), and warnings."""
    key, warnings = decrypt_key_file(path, password)
    try:
        check_key(key, address)
    except KeyManagerError:
        key.wipe()
        raise KeyManagerError(
            f"key file {path} states {address.checksum}, but its key belongs to another address"
        ) from None
    return key, warnings


# ------------------------------------------------------------------------------------------------------------- custody


class KeyFiles:
    """The key files of a directory; implements `perun_core.ports.keymgr.KeyCustody`. New files take a second each."""

    def __init__(self, directory: Path, password: str, *, weak: bool = False) -> None:
        self._directory = directory
        self._password = password
        self._weak = weak

    def __repr__(self) -> str:
        return f"KeyFiles({str(self._directory)!r})"

    async def addresses(self) -> tuple[Address, ...]:
        """See `KeyCustody.addresses`."""
        return tuple(sorted(await asyncio.to_thread(find_key_files, self._directory)))

    async def place(self, address: Address) -> str:
        """See `KeyCustody.place`."""
        return str(await asyncio.to_thread(self._path, address))

    async def add(self, key: Secret) -> Address:
        """See `KeyCustody.add`."""
        address = address_of(key)
        await asyncio.to_thread(self._write, key, address)
        return address

    async def read(self, address: Address) -> tuple[Secret, tuple[str, ...]]:
        """See `KeyCustody.read`."""
        return await asyncio.to_thread(lambda: _checked_key(address, self._path(address), self._password))

    async def remove(self, address: Address) -> None:
        """See `KeyCustody.remove`."""
        await asyncio.to_thread(lambda: remove_key_file(self._path(address)))

    def _path(self, address: Address) -> Path:
        return _only_file(find_key_files(self._directory).get(address, ()), address)

    def _write(self, key: Secret, address: Address) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyManagerError(f"key store directory {str(self._directory)!r} cannot be created") from error
        if existing := find_key_files(self._directory).get(address):
            raise KeyExists(f"key file {existing[0]} has the key of {address.checksum} already")
        write_key_file(self._directory, key, self._password, weak=self._weak, name_time=datetime.now(UTC))


@asynccontextmanager
async def open_key_files(config: EthKeystoreConfig) -> AsyncIterator[KeyFiles]:
    """The custody of the configured directory, which the first key creates. Raises: KeyManagerError."""
    yield KeyFiles(_directory(config), _password(config))
