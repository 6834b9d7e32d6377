"""go-ethereum version 3 key files (Web3 Secret Storage) as bytes: encrypting and decrypting one (API.md 4.4)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from ..errors import KeyLocked, KeyManagerError
from ..secret import Secret
from ..values import Address, keccak256
from .signing import address_of

MAX_FILE_SIZE: Final = 64 * 1024
"""A key file has about 500 bytes; anything beyond this is none."""
MAX_MEMORY: Final = 1 << 30
"""Bytes that the parameters of one file may make scrypt use; four times what the standard parameters take."""
_SLACK: Final = 1 << 20
_WEAK_SCRYPT_WORK: Final = 1 << 20
"""N·r·p below which a warning is due: half of the standard parameters' 2^18·8·1, more than the light ones'."""
_WEAK_PBKDF2_ROUNDS: Final = 100_000


class Strength(Enum):
    """Parameters N, r, p of scrypt for a new file."""

    STANDARD = (1 << 18, 8, 1)
    """About a second and 256 MiB to open."""
    WEAK = (2, 8, 1)
    """For keys that guard nothing."""


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


def stated_address(content: bytes) -> Address | None:
    """The address a key file states; None when this is no key file."""
    try:
        text = _fields(content).get("address")
        address = Address.parse(text) if isinstance(text, str) else None
    except (KeyManagerError, ValueError):
        return None
    return None if address is None or address.is_zero else address


def decrypt(content: bytes, password: str, *, warn: Callable[[str], None] | None = None) -> Secret:
    """The private key in a key file. Takes as long and as much memory as the file's parameters say.

    `warn` is told in half a sentence when its parameters are weak.
    Raises: KeyLocked (wrong password), KeyManagerError (damaged, or parameters beyond `MAX_MEMORY`).
    """
    try:
        file = msgspec.convert(_fields(content), _KeyFile)
        if file.version != 3 or file.crypto.cipher != "aes-128-ctr":
            raise ValueError("only version 3 with aes-128-ctr is known")
        derived, weak = _derived_key(file.crypto, password.encode())
        ciphertext = bytes.fromhex(file.crypto.ciphertext)
        iv = bytes.fromhex(file.crypto.cipherparams.iv)
        if len(ciphertext) != Secret.SIZE or len(iv) != 16:
            raise ValueError("wrong sizes")
        mac = bytes.fromhex(file.crypto.mac)
    except (msgspec.ValidationError, ValueError, OverflowError, MemoryError) as error:
        problem = str(error) if isinstance(error, _Unusable) else "damaged or of an unknown kind"
        raise KeyManagerError(problem) from None
    if weak and warn is not None:
        warn("is protected by weak parameters; use it on development chains only")
    if not hmac.compare_digest(keccak256(derived[16:32] + ciphertext), mac):
        raise KeyLocked("the password does not open it")
    try:
        return Secret.of(_aes_128_ctr(derived[:16], iv, ciphertext))
    except ValueError:
        raise KeyManagerError("holds no private key") from None


def encrypt(key: Secret, password: str, *, strength: Strength = Strength.STANDARD) -> bytes:
    """The content of a key file that go-ethereum reads too."""
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    n, r, p = strength.value
    derived = _scrypt(password.encode(), salt, cost=(n, r, p), length=32)
    ciphertext = bytes(_aes_128_ctr(derived[:16], iv, key.buffer))
    content = {
        "address": address_of(key).hex(),
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
    return msgspec.json.encode(content)


def file_name(address: Address, now: datetime) -> str:
    """``UTC--<time, colons as dashes, nanoseconds>Z--<40 hex digits>``."""
    return f"UTC--{now.astimezone(UTC):%Y-%m-%dT%H-%M-%S.%f}000Z--{address.hex()}"


# ---------------------------------------------------------------------------------------------------------- the inside


def _fields(content: bytes) -> dict[str, Any]:
    """The JSON object, keys in lower case as go-ethereum reads them. Raises: KeyManagerError."""
    if len(content) > MAX_FILE_SIZE:
        raise KeyManagerError("too large for a key file")
    try:
        # The cause is left out: its text may quote the file.
        found = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise KeyManagerError("not a key file") from None
    return {key.lower(): value for key, value in found.items()}


class _Unusable(ValueError):
    """Parameters that are understood and refused; the text names no secret."""


def _derived_key(crypto: _Crypto, password: bytes) -> tuple[bytes, bool]:
    """The derived key, and whether the parameters are weak."""
    match crypto.kdf:
        case "scrypt":
            scrypt = msgspec.convert(crypto.kdfparams, _ScryptParams)
            _check_length(scrypt.dklen)
            cost = (scrypt.n, scrypt.r, scrypt.p)
            derived = _scrypt(password, bytes.fromhex(scrypt.salt), cost=cost, length=scrypt.dklen)
            return derived, scrypt.n * scrypt.r * scrypt.p < _WEAK_SCRYPT_WORK
        case "pbkdf2":
            pbkdf2 = msgspec.convert(crypto.kdfparams, _Pbkdf2Params)
            _check_length(pbkdf2.dklen)
            if pbkdf2.prf != "hmac-sha256":
                raise ValueError("unknown prf")
            derived = hashlib.pbkdf2_hmac("sha256", password, bytes.fromhex(pbkdf2.salt), pbkdf2.c, pbkdf2.dklen)
            return derived, pbkdf2.c < _WEAK_PBKDF2_ROUNDS
        case _:
            raise _Unusable("unknown key derivation function")


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


def _aes_128_ctr(key: bytes, iv: bytes, text: bytes | bytearray) -> bytearray:
    from Crypto.Cipher import AES

    result = bytearray(len(text))
    AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=iv).encrypt(text, output=result)
    return result
