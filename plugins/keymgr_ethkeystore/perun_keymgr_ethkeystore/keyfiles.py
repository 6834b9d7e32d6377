"""go-ethereum version 3 key files (Web3 Secret Storage): finding, decrypting and creating them (API.md 4.4)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from perun_core.errors import KeyLocked, KeyManagerError
from perun_core.values import Address, keccak256

_log = logging.getLogger(__name__)

MAX_FILE_SIZE: Final = 64 * 1024
"""A key file has about 500 bytes; anything beyond this is none."""
MAX_MEMORY: Final = 1 << 30
"""Bytes that the parameters of one file may make scrypt use; four times what the standard parameters take."""
_SLACK: Final = 1 << 20
_STANDARD: Final = (1 << 18, 8, 1)
_WEAK: Final = (2, 8, 1)
_WEAK_SCRYPT_WORK: Final = 1 << 17
"""N·r·p below which a warning is due: under go-ethereum's light parameters (4096·8·6)."""
_WEAK_PBKDF2_ROUNDS: Final = 100_000


class _CipherParams(Struct, frozen=True):
    iv: str


class _ScryptParams(Struct, frozen=True):
    n: int
    r: int
    p: int
    dklen: int
    salt: str


class _Pbkdf2Params(Struct, frozen=True):
    c: int
    dklen: int
    prf: str
    salt: str


class _Crypto(Struct, frozen=True):
    cipher: str
    ciphertext: str
    cipherparams: _CipherParams
    kdf: str
    kdfparams: dict[str, Any]
    mac: str


class _KeyFile(Struct, frozen=True):
    version: int
    crypto: _Crypto


# ----------------------------------------------------------------------------------------------------------- finding


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
        text = _load(path).get("address")
        address = Address.parse(text) if isinstance(text, str) else None
    except (KeyManagerError, ValueError):
        address = None
    if address is None or address.is_zero:
        _log.debug("%s is not a key file; skipped", path)
        return None
    return address


def _load(path: Path) -> dict[str, Any]:
    """The JSON object in a file, keys in lower case as go-ethereum reads them. Raises: KeyManagerError."""
    try:
        # Non-blocking, and checked once open: the entry may have become a pipe or a link since it was listed.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise KeyManagerError(f"{path} is not a regular file")
            content = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise KeyManagerError(f"key file {path} cannot be read") from error
    if len(content) > MAX_FILE_SIZE:
        raise KeyManagerError(f"{path} is too large for a key file")
    try:
        # The cause is left out: its text may quote the file.
        found = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise KeyManagerError(f"{path} is not a key file") from None
    return {key.lower(): value for key, value in found.items()}


# -------------------------------------------------------------------------------------------------------- decrypting


def decrypt_key_file(path: Path, password: str) -> bytes:
    """The 32-byte private key in a file. Takes as long and as much memory as the file's parameters say.

    Raises: KeyLocked (wrong password), KeyManagerError (damaged, or parameters beyond `MAX_MEMORY`).
    """
    try:
        content = msgspec.convert(_load(path), _KeyFile)
        if content.version != 3 or content.crypto.cipher != "aes-128-ctr":
            raise ValueError("only version 3 with aes-128-ctr is known")
        derived = _derived_key(content.crypto, password.encode(), path)
        ciphertext = bytes.fromhex(content.crypto.ciphertext)
        iv = bytes.fromhex(content.crypto.cipherparams.iv)
        if len(ciphertext) != 32 or len(iv) != 16:
            raise ValueError("wrong sizes")
        mac = bytes.fromhex(content.crypto.mac)
    except (msgspec.ValidationError, ValueError, OverflowError, MemoryError) as error:
        problem = str(error) if isinstance(error, _Unusable) else "damaged or of an unknown kind"
        raise KeyManagerError(f"key file {path}: {problem}") from None
    if not hmac.compare_digest(keccak256(derived[16:32] + ciphertext), mac):
        raise KeyLocked(f"the password does not open key file {path}")
    return _aes_128_ctr(derived[:16], iv, ciphertext)


class _Unusable(ValueError):
    """Parameters that are understood and refused; the text names no secret."""


def _derived_key(crypto: _Crypto, password: bytes, path: Path) -> bytes:
    match crypto.kdf:
        case "scrypt":
            scrypt = msgspec.convert(crypto.kdfparams, _ScryptParams)
            _check_length(scrypt.dklen)
            if scrypt.n * scrypt.r * scrypt.p < _WEAK_SCRYPT_WORK:
                _warn_weak(path)
            return _scrypt(
                password, bytes.fromhex(scrypt.salt), cost=(scrypt.n, scrypt.r, scrypt.p), length=scrypt.dklen
            )
        case "pbkdf2":
            pbkdf2 = msgspec.convert(crypto.kdfparams, _Pbkdf2Params)
            _check_length(pbkdf2.dklen)
            if pbkdf2.prf != "hmac-sha256":
                raise ValueError("unknown prf")
            if pbkdf2.c < _WEAK_PBKDF2_ROUNDS:
                _warn_weak(path)
            return hashlib.pbkdf2_hmac("sha256", password, bytes.fromhex(pbkdf2.salt), pbkdf2.c, pbkdf2.dklen)
        case _:
            raise _Unusable("unknown key derivation function")


def _warn_weak(path: Path) -> None:
    _log.warning("key file %s is protected by weak parameters; use it on development chains only", path)


def _check_length(dklen: int) -> None:
    if not 32 <= dklen <= 1024:
        raise _Unusable(f"derived key length {dklen} is not supported")


def _scrypt(password: bytes, salt: bytes, *, cost: tuple[int, int, int], length: int) -> bytes:
    n, r, p = cost
    if min(cost) < 1:
        raise _Unusable("scrypt parameters must be positive")
    memory = 128 * r * (n + p + 2)
    if memory > MAX_MEMORY + _SLACK:
        raise _Unusable(f"scrypt with n={n}, r={r}, p={p} would need more than {MAX_MEMORY >> 20} MiB")
    if n.bit_length() > 16 * r:
        # Outside RFC 7914, which OpenSSL enforces; the definition of the key files itself has such an example.
        return _scrypt_beyond_rfc7914(password, salt, cost=cost, length=length)
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory + _SLACK, dklen=length)


def _scrypt_beyond_rfc7914(password: bytes, salt: bytes, *, cost: tuple[int, int, int], length: int) -> bytes:
    from Crypto.Protocol.KDF import scrypt

    n, r, p = cost
    # This function takes text and reads it as Latin-1, byte for byte.
    return cast(bytes, scrypt(password.decode("latin-1"), salt.decode("latin-1"), length, N=n, r=r, p=p))


def _aes_128_ctr(key: bytes, iv: bytes, text: bytes) -> bytes:
    from Crypto.Cipher import AES

    result: bytes = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=iv).encrypt(text)
    return result


# ---------------------------------------------------------------------------------------------------------- creating


def write_key_file(directory: Path, private_key: bytes, password: str, *, weak: bool, name_time: datetime) -> Path:
    """Create a key file that go-ethereum reads too, mode 0600, in an existing directory; give its path.

    `weak` saves the second that the standard parameters take, for keys that guard nothing. `name_time` only names the
    file. Raises: KeyManagerError when it cannot be written; an existing file is never touched.
    """
    from coincurve import PublicKey

    public = PublicKey.from_secret(private_key).format(compressed=False)
    address = keccak256(public[1:])[12:].hex()
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    n, r, p = _WEAK if weak else _STANDARD
    derived = _scrypt(password.encode(), salt, cost=(n, r, p), length=32)
    ciphertext = _aes_128_ctr(derived[:16], iv, private_key)
    content = {
        "address": address,
        "crypto": {
            "cipher": "aes-128-ctr",
            "ciphertext": ciphertext.hex(),
            "cipherparams": {"iv": iv.hex()},
            "kdf": "scrypt",
            "kdfparams": {"dklen": 32, "n": n, "p": p, "r": r, "salt": salt.hex()},
            "mac": keccak256(derived[16:32] + ciphertext).hex(),
        },
        "id": str(uuid.uuid4()),
        "version": 3,
    }
    when = name_time.astimezone(UTC)
    path = directory / f"UTC--{when:%Y-%m-%dT%H-%M-%S.%f}000Z--{address}"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(content))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise KeyManagerError(f"key file {path} cannot be written") from error
    return path
