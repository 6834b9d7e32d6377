"""A directory of go-ethereum version 3 key files: finding, reading and creating them (API.md 4.4)."""

from __future__ import annotations

import logging
import os
import stat
from datetime import datetime
from pathlib import Path

from perun_core.errors import KeyExists, KeyLocked, KeyManagerError
from perun_core.keys import Secret, address_of
from perun_core.keys.keyfile import MAX_FILE_SIZE, Strength, decrypt, encrypt, file_name, stated_address
from perun_core.values import Address

_log = logging.getLogger(__name__)


def find_key_files(directory: Path) -> dict[Address, tuple[Path, ...]]:
    """The key files of a flat directory by the address they state; the file names mean nothing.

    Skipped are names that start with ``.`` or end with ``~``, everything that is not a regular file (symbolic links
    too) and files that state no address. Raises: KeyManagerError when the directory cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            paths = sorted(Path(entry.path) for entry in entries if _is_candidate(entry))
    except (OSError, ValueError) as error:
        raise KeyManagerError(f"key store directory {str(directory)!r} cannot be read") from error
    found: dict[Address, tuple[Path, ...]] = {}
    for path in paths:
        if (address := _stated_address(path)) is not None:
            found[address] = (*found.get(address, ()), path)
    return found


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".") or entry.name.endswith("~")
    return not hidden and entry.is_file(follow_symlinks=False)


def _stated_address(path: Path) -> Address | None:
    try:
        address = stated_address(_read(path))
    except KeyManagerError:
        address = None
    if address is None:
        _log.debug("%s is not a key file; skipped", path)
    return address


def _read(path: Path) -> bytes:
    try:
        # Non-blocking, and checked once open: the entry may have become a pipe or a link since it was listed.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise KeyManagerError(f"{path} is not a regular file")
            return file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise KeyManagerError(f"key file {path} cannot be read") from error


def decrypt_key_file(path: Path, password: str) -> tuple[Secret, tuple[str, ...]]:
    """The private key in a file, which the caller wipes, and what to warn of.

    Takes as long and as much memory as the file's parameters say.
    Raises: KeyLocked (wrong password), KeyManagerError (damaged, or parameters beyond the limit).
    """
    warnings: list[str] = []
    content = _read(path)
    try:
        key = decrypt(content, password, warn=warnings.append)
    except KeyLocked as error:
        raise KeyLocked(f"key file {path}: {error}") from None
    except KeyManagerError as error:
        raise KeyManagerError(f"key file {path}: {error}") from None
    return key, tuple(f"key file {path} {warning}" for warning in (*warnings, *_complaints(path)))


def _complaints(path: Path) -> tuple[str, ...]:
    mode = path.stat().st_mode
    return ("can be read by other users of this machine",) if mode & 0o077 else ()


def write_key_file(
    directory: Path, private_key: Secret | bytes, password: str, *, weak: bool, name_time: datetime
) -> Path:
    """Create a key file that go-ethereum reads too, mode 0600, in an existing directory; give its path.

    `weak` saves the second that the standard parameters take, for keys that guard nothing. `name_time` only names the
    file. Raises: KeyExists, KeyManagerError when it cannot be written; an existing file is never touched.
    """
    with private_key.copy() if isinstance(private_key, Secret) else Secret(private_key) as key:
        content = encrypt(key, password, strength=Strength.WEAK if weak else Strength.STANDARD)
        path = directory / file_name(address_of(key), name_time)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(directory)
    except FileExistsError as error:
        raise KeyExists(f"key file {path} exists already") from error
    except OSError as error:
        raise KeyManagerError(f"key file {path} cannot be written") from error
    return path


def remove_key_file(path: Path) -> None:
    """Delete a file, durably. Raises: KeyManagerError."""
    try:
        path.unlink()
        _sync_directory(path.parent)
    except OSError as error:
        raise KeyManagerError(f"key file {path} cannot be removed") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
